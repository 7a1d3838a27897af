"""A graph gets its name only if its map shows that it computes what it should."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sodeploy.calib_data import Dataset
from sodeploy.errors import UserError
from sodeploy.folder_lock import locked
from sodeploy.quant import build_engine
from sodeploy.quant.emit.targets import TARGETS, Target
from sodeploy.quant.graph import Network
from sodeploy.quant.planning.plan import Plan
from sodeploy.quant.proof import Disproved, Proof, Prover, worse_than_simulated
from sodeploy.quant.sources import Images
from sodeploy.quant.write_graphs import write_graphs
from sodeploy.runtime.session import installed_engines
from tests.quant.conftest import Picture

ALL = {target.name: target for target in TARGETS}


@pytest.fixture(scope="module")
def prover(unet_file: Path, unet: Network, pictures: list[Picture]) -> Prover:
    return Prover(unet_file, unet, pictures)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[onnx.ModelProto], Path]:
    """Write a graph to a file."""

    def save(graph: onnx.ModelProto) -> Path:
        onnx.save(graph, tmp_path / "graph.onnx")
        return tmp_path / "graph.onnx"

    return save


def changed(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    """The graph with other values in one of its constants."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(change(values).astype(values.dtype), name))
    return model


@pytest.mark.parametrize("name", ALL)
def test_good_graphs_have_a_figure(
    prover: Prover, unet: Network, plan: Plan, name: str, saved: Callable[[onnx.ModelProto], Path]
) -> None:
    proof, warning = prover.prove(ALL[name], saved(ALL[name].emit(unet, plan)), plan)
    assert warning is None
    assert proof.sqnr_db is not None
    assert proof.sqnr_db > (40 if ALL[name].precision == "fp16" else 15)
    assert 0 < proof.largest_difference < 0.2
    assert proof.images == 4
    without = () if "openvino" in installed_engines() else ("int8.openvino",)
    assert (proof.limits is not None) == (name in ("fp16", "bf16", "int8.trt", *without))
    assert (proof.engine == "openvino") == (name == "int8.openvino" and not without)


def test_a_broken_openvino_is_no_fault_of_the_graph(
    prover: Prover,
    unet: Network,
    plan: Plan,
    saved: Callable[[onnx.ModelProto], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    openvino = pytest.importorskip("openvino")
    monkeypatch.setattr(openvino.Core, "available_devices", property(lambda _: []))
    target = ALL["int8.openvino"]
    graph = target.emit(unet, plan)
    (warning,) = target.check(graph, saved(graph), Path("net.onnx"))
    assert warning.startswith(
        "net.onnx has not been run in OpenVINO: this OpenVINO has no CPU plugin; install it again"
    )
    proof, _ = prover.prove(target, saved(graph), plan)
    assert proof.engine == "onnxruntime"
    assert proof.limits is not None
    assert proof.limits.endswith("; onnxruntime ran its graph")


def test_nan_and_constant_maps_are_refused(
    prover: Prover, unet: Network, plan: Plan, saved: Callable[[onnx.ModelProto], Path]
) -> None:
    simulation = ALL["int8.sim"]
    for value, problem in ((np.nan, "NaN or infinite"), (1e4, "is constant")):
        graph = changed(simulation.emit(unet, plan), "head.bias/rounded", lambda bias, value=value: bias * 0 + value)
        with pytest.raises(Disproved, match=problem):
            prover.prove(simulation, saved(graph), plan)


def test_the_layer_that_lost_its_bias_is_named(
    prover: Prover, unet: Network, plan: Plan, saved: Callable[[onnx.ModelProto], Path]
) -> None:
    simulation = ALL["int8.sim"]
    graph = simulation.emit(unet, plan)
    (bias,) = {node.input[2] for node in graph.graph.node if node.name == "d_pre/Conv"}
    with pytest.raises(Disproved, match=r"layer d_pre/Conv by itself .* dB where the plan explains"):
        prover.prove(simulation, saved(changed(graph, bias, lambda values: values + 3)), plan)


def test_a_sensitive_network_is_a_warning(
    prover: Prover, unet: Network, plan: Plan, saved: Callable[[onnx.ModelProto], Path]
) -> None:
    """Coarse ranges are what the plan says, so no layer is blamed for their noise."""
    coarse = [shared.model_copy(update={"amax": shared.amax * 20}) for shared in plan.ranges]
    worse = plan.model_copy(update={"ranges": coarse})
    proof, warning = prover.prove(ALL["int8.sim"], saved(ALL["int8.sim"].emit(unet, worse)), worse)
    assert proof.sqnr_db is not None
    assert proof.sqnr_db < 15
    assert warning is not None
    assert "sensitive to rounding" in warning


def test_a_graph_far_below_its_simulation_is_no_good() -> None:
    assert worse_than_simulated(Proof(10.0, 0.1, 4), Proof(25.0, 0.1, 4))
    assert not worse_than_simulated(Proof(24.0, 0.1, 4), Proof(60.0, 0.1, 4))
    assert not worse_than_simulated(Proof(None, 0.0, 4), Proof(60.0, 0.1, 4))


def test_one_graph_at_a_time_is_in_memory(
    prover: Prover, unet: Network, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    prove = prover.prove

    def emitted(target: Target) -> Target:
        return replace(target, emit=lambda network, plan: (steps.append("emit"), target.emit(network, plan))[1])

    monkeypatch.setattr(prover, "prove", lambda *given: (steps.append("prove"), prove(*given))[1])
    targets = [emitted(ALL[name]) for name in ("fp16.sim", "int8.sim")]
    written = write_graphs(unet, plan, None, tmp_path / "net", prover, targets)
    assert steps == ["emit", "prove"] * 2
    assert list(written.files) == ["fp16.sim", "int8.sim"]


def test_a_refused_graph_has_no_name_and_the_others_stand(
    unet_file: Path,
    tmp_path: Path,
    pictures: list[Picture],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = Images(Dataset("pictures", pictures))
    built = build_engine.build(unet_file, tmp_path, images, engines=False)
    manifest = json.loads(Path(f"{built.graphs['int8.sim']}.json").read_text())
    assert manifest["proof"]["sqnr_db"] > 15

    def emit(network: Network, plan: Plan) -> onnx.ModelProto:
        graph = ALL["int8.cpu"].emit(network, plan)
        return changed(graph, "head.bias", lambda bias: bias * 0 + 1e4)

    broken = Target("int8.cpu", "int8", "", emit)
    others = [target for target in TARGETS if target.name != "int8.cpu" and target.precision != "bf16"]
    monkeypatch.setattr(build_engine, "targets_of", lambda plan, floats: [*others, broken])
    again = build_engine.build(unet_file, tmp_path, images, engines=False)
    assert "not written: " in caplog.text
    assert "unet.int8.cpu.onnx: its map is constant" in caplog.text
    assert "int8.cpu" not in again.graphs
    assert not built.graphs["int8.cpu"].exists()  # the graph of the first build does not go with the new plan
    assert all(built.graphs[target.name].exists() for target in others)
    monkeypatch.setattr(build_engine, "targets_of", lambda plan, floats: [*others[:2], broken])
    with pytest.raises(UserError, match="no int8 graph was written"):
        build_engine.build(unet_file, tmp_path, images, engines=False)


def test_two_builds_do_not_share_a_folder(unet_file: Path, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UserError, match=r"another run .*is writing"):
        build_engine.build(unet_file, tmp_path, engines=False)
    build_engine.build(unet_file, tmp_path, engines=False)
