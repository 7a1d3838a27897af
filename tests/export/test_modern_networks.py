"""Networks of the structures of 2024 to 2026 on the whole way: adopted, quantized, compiled by TensorRT-RTX."""

from pathlib import Path
from typing import Any

import modern_networks
import numpy as np
import onnx
import onnxruntime
import pytest

from sodeploy.calib_data import open_dataset
from sodeploy.export.adopt import adopt
from sodeploy.quant import engine
from sodeploy.quant.build_engine import Images, build
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.processing import preprocess

PREPROCESSING: dict[str, Any] = {"network": "modern", "mean": modern_networks.MEAN, "std": modern_networks.STD}


def maps(path: Path, batches: list[np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        path, providers=["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
    )
    name = session.get_inputs()[0].name
    return np.stack([np.asarray(session.run(None, {name: batch})[0]) for batch in batches])


def decibels(reference: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(reference.var() / max(float(np.mean((reference - found) ** 2)), 1e-30)))


def prepared(size: int, count: int = 2) -> list[np.ndarray]:
    contract = Contract(height=size, width=size, **PREPROCESSING)
    return [preprocess(sample.image(), contract)[None] for sample in open_dataset(f"synthetic:eval:{count}:96")]


@pytest.mark.parametrize("backbone", modern_networks.BACKBONES)
def test_adopted(tmp_path: Path, backbone: str) -> None:
    network = modern_networks.network(backbone)
    source = modern_networks.export(network, tmp_path / f"{backbone}.onnx", 64)
    assert [node.op_type for node in onnx.load(source).graph.node].count("DeformConv") == 3
    path = adopt(source, tmp_path / "new.onnx", PREPROCESSING)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert "DeformConv" not in kinds
    assert kinds.count("GridSample") == 3
    batches = prepared(64)
    found, wanted = maps(path, batches), maps(source, batches)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.ptp(wanted) > 0.3  # it says something


@pytest.mark.all_builds
@pytest.mark.skipif(
    "tensorrt_rtx" not in engine.installed_builders(),
    reason="tensorrt_rtx is not installed: pip install 'sodeploy[rtx]'",
)
@pytest.mark.parametrize("size", [64, 1024])
@pytest.mark.parametrize("backbone", modern_networks.BACKBONES)
def test_built(tmp_path: Path, backbone: str, size: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Engines of both precisions stand; how close each graph's map is to the fp32 one is printed."""
    source = modern_networks.export(modern_networks.network(backbone, size), tmp_path / "source.onnx", size)
    path = adopt(source, tmp_path / f"{backbone}.onnx", PREPROCESSING)
    count = 16 if size == 64 else 12  # 4 images leave 7 dB of an image beyond them
    made = build(path, tmp_path / "out", Images(open_dataset(f"synthetic:calib:{count}:96")))
    assert set(made.engines) == {"fp16", "int8"}
    batches = prepared(size, 8 if size == 64 else 1)
    reference = maps(path, batches)
    found = {
        name: decibels(reference, maps(file, batches)) for name, file in made.graphs.items() if name != "fp16"
    }  # onnxruntime's CPU provider leaves most of fp16's rounding out; fp16.sim has it
    with capsys.disabled():
        listed = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
        print(f"\n{backbone} at {size} x {size}: {listed} dB to the fp32 map")
    assert all(value > 10 for value in found.values())
