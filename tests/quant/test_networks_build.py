"""The whole way from our networks to engines, in each precision, with NVIDIA's own parser and compiler on the CPU.

Small inputs, so that it is quick; layers and operators are those of the full size. A network of each kind is built by
default, every deployable one by `make test-all-builds`.
"""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from settled import settled

from sodeploy.calib_data import open_dataset
from sodeploy.export import to_onnx
from sodeploy.quant import engine
from sodeploy.quant.build_engine import build as quantize
from sodeploy.quant.engine import EngineReport
from sodeploy.quant.engines.kernels import Kernel, precision_read
from sodeploy.quant.engines.shapes import Profile
from sodeploy.quant.graph import load_network
from sodeploy.quant.planning.plan import read_plan
from sodeploy.quant.sources import Images
from sodeploy.training.models import NETWORKS, entry

pytestmark = pytest.mark.skipif(
    "tensorrt_rtx" not in engine.installed_builders(),
    reason="tensorrt_rtx is not installed: pip install 'sodeploy[rtx]'",
)
SIZE = 96
# Scales are fp16 in the graph because its body is; the compiler says that it widens them.
EXPECTED_WARNINGS = {
    "(foreignNode) Converting conv activation scales to fp32.",
    "(foreignNode) Converting conv weight scales to fp32.",
}


class Graphs(NamedTuple):
    """A network's graphs, and the names of the layers that its plan has in int8."""

    fp32: Path
    fp16: Path
    int8: Path
    int8_layers: set[str]


def weights(network: str, folder: Path) -> Path:
    torch.save(settled(network, SIZE).state_dict(), folder / f"{network}.pth")
    return folder / f"{network}.pth"


# U-shaped, octave convolutions, reverse attention on a ResNet; Res2Net and the transformers take too long to be here.
KINDS = ("u2netp", "csnet_x1", "ras_v2")
DEPLOYABLE = [name for name, entry in NETWORKS.items() if entry.sees == "images"]


def param(name: str) -> Any:
    """One worker for all tests of a network, so that its graphs are made once."""
    marks = [pytest.mark.xdist_group(name), *([] if name in KINDS else [pytest.mark.all_builds])]
    return pytest.param(name, marks=marks)


@pytest.fixture(scope="module", params=[param(name) for name in DEPLOYABLE])
def graphs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        # Single pixels of an untrained network differ by more than is allowed; tests/training compares the means.
        patch.setattr(to_onnx, "require", lambda *_: None)
        fp32 = to_onnx.export(request.param, weights(request.param, folder), folder / "net.onnx", size=(SIZE, SIZE))
    images = open_dataset("synthetic:calib:2", masks=False)
    # Which way weights are rounded does not matter to a compiler.
    quantize(fp32, folder, Images(images, adaptive_rounding=False), engines=False)
    plan = read_plan(folder / "net.plan.json")  # of the equalized network where there are depthwise layers
    return Graphs(fp32, folder / "net.fp16.onnx", folder / "net.int8.trt.onnx", set(plan.nodes("int8")))


def weighted_nodes(graph: Path) -> set[str]:
    """Convolutions and matrix products with weights."""
    network = load_network(graph)
    return {node.name for node in network.nodes if network.is_weighted(node)}


def convolutions(report: EngineReport) -> list[Kernel]:
    return [kernel for kernel in report.kernels if kernel.is_convolution]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_float_engine(graphs: Graphs, precision: str, tmp_path: Path) -> None:
    graph = graphs.fp32 if precision == "fp32" else graphs.fp16
    report = engine.build(graph, tmp_path / "net.engine", "tensorrt_rtx")
    assert report.precision == precision
    assert not report.warnings
    assert {precision_read(kernel) for kernel in convolutions(report)} == {precision}
    computed = {node for kernel in report.kernels for node in kernel.nodes}
    assert weighted_nodes(graphs.fp32) <= computed


def test_int8_engine_keeps_the_plan(graphs: Graphs, tmp_path: Path) -> None:
    report = engine.build(graphs.int8, tmp_path / "net.engine", "tensorrt_rtx")
    assert report.precision == "int8"
    assert set(report.warnings) <= EXPECTED_WARNINGS
    weighted = weighted_nodes(graphs.fp32)
    planned = graphs.int8_layers & weighted
    assert len(planned) > len(weighted) / 2
    wide = {
        node: kernel.name
        for kernel in convolutions(report)
        if precision_read(kernel) != "int8"
        for node in planned.intersection(kernel.nodes)
    }
    assert not wide, "the plan says int8, the engine does not"
    assert graphs.int8_layers <= {node for kernel in report.kernels for node in kernel.nodes}


def test_int8_engine_of_dynamic_batch(tmp_path: Path) -> None:
    checkpoint = weights("u2net_tiny", tmp_path)
    fp32 = to_onnx.export("u2net_tiny", checkpoint, tmp_path / "net.onnx", size=(SIZE, SIZE), batch=None)
    assert entry("u2net_tiny").contract.batch == 1
    quantize(fp32, tmp_path, Images(open_dataset("synthetic:calib:2", masks=False)), engines=False)
    shapes = Profile(*((batch, 3, SIZE, SIZE) for batch in (1, 4, 8)))
    for name in ("net.fp16.onnx", "net.int8.trt.onnx"):
        report = engine.build(tmp_path / name, tmp_path / "net.engine", "tensorrt_rtx", profile=shapes)
        assert set(report.warnings) <= EXPECTED_WARNINGS
    assert any(precision_read(kernel) == "int8" for kernel in convolutions(report))
