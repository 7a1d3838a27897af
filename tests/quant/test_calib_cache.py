"""calib.cache: what TensorRT writes is read, what we write TensorRT could read, and anything else is named."""

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from sodeploy.artifacts import read_manifest
from sodeploy.errors import UserError
from sodeploy.quant import build_engine
from sodeploy.quant.calib_cache import cache_of, plan_from_cache, read_cache
from sodeploy.quant.emit.checks import check_cpu, check_tensorrt
from sodeploy.quant.emit.cpu import emit_cpu
from sodeploy.quant.emit.tensorrt import emit_simulation, emit_tensorrt
from sodeploy.quant.graph import Network
from sodeploy.quant.planning.plan import Plan, load_plan, save_plan
from sodeploy.quant.sources import Cache
from sodeploy.runtime.processing import preprocess


@pytest.fixture
def cache(unet: Network, plan: Plan, tmp_path: Path) -> Path:
    path = tmp_path / "calib.cache"
    path.write_text(cache_of(unet, plan, "8.6.1"))
    return path


def without(cache: Path, *tensors: str) -> Path:
    lines = [line for line in cache.read_text().splitlines() if line.rsplit(":", 1)[0] not in tensors]
    cache.write_text("\n".join(lines))
    return cache


def test_a_file_of_tensorrt(tmp_path: Path) -> None:
    """Lines as TensorRT 8.5 wrote them: names with colons, spaces and brackets."""
    path = tmp_path / "calib.cache"
    path.write_text(
        "TRT-8510-EntropyCalibration2\nx: 4000890a\ninput:0: 3f800000\n(Unnamed Layer* 8) [Constant]_output: 39137939\n"
    )
    amax = read_cache(path)
    assert amax["x"] == pytest.approx(2.0083642 * 127, rel=1e-6)
    assert amax["input:0"] == 127.0
    assert len(amax) == 3


def test_what_is_written_is_big_endian_amax_over_127(unet: Network, plan: Plan, cache: Path) -> None:
    lines = dict(line.rsplit(": ", 1) for line in cache.read_text().splitlines()[1:])
    assert struct.unpack(">f", bytes.fromhex(lines["image"]))[0] == np.float32(plan.range_of()["image"].amax / 127)
    assert lines["a_pre"] == lines["a"]  # TensorRT asks for the result before the ReLU too
    assert "head" not in lines


@pytest.mark.parametrize(
    ("version", "header"), [("8.6.1", "TRT-8601-"), ("10.3", "TRT-100300-"), ("7.1.3.4", "TRT-7103-")]
)
def test_the_header_names_the_version(unet: Network, plan: Plan, version: str, header: str) -> None:
    assert cache_of(unet, plan, version).startswith(header + "EntropyCalibration2\n")


@pytest.mark.parametrize("version", ["11.0", "latest", "8"])
def test_versions_that_read_none(unet: Network, plan: Plan, version: str) -> None:
    with pytest.raises(UserError, match=f"--tensorrt {version}: give a version"):
        cache_of(unet, plan, version)


def test_ranges_survive_the_way_there_and_back(
    unet: Network, plan: Plan, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    back = plan_from_cache(unet, cache)
    assert {name: layer.precision for name, layer in back.layers.items()} == {
        name: layer.precision for name, layer in plan.layers.items()
    }
    for tensor, shared in plan.range_of().items():
        found = back.range_of()[tensor]
        assert found.amax == pytest.approx(shared.amax, rel=1e-6)
        assert found.signed == shared.signed, tensor
        assert found.maximum is None
    layer = back.layers["a_pre/Conv"]
    assert layer.weight_scales == plan.layers["a_pre/Conv"].weight_scales
    assert layer.bias_correction is None
    assert "bias not corrected" in layer.reason
    assert capsys.readouterr().err == ""


def test_such_a_plan_gives_every_graph(
    unet: Network, cache: Path, pictures: list, run: Callable, tmp_path: Path
) -> None:
    made = plan_from_cache(unet, cache)
    save_plan(made, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json", unet) == made
    check_tensorrt(emit_tensorrt(unet, made))
    cpu, simulation = emit_cpu(unet, made), emit_simulation(unet, made)
    assert check_cpu(cpu) == []
    image = preprocess(pictures[0].image(), unet.contract)[None]
    reference = run(unet.model, image)
    for model in (cpu, simulation):
        assert np.abs(run(model, image) - reference).mean() < 0.2 * reference.std()


def test_layers_without_a_range_stay_in_float(unet: Network, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = plan_from_cache(unet, without(cache, "c", "c_pre"))
    assert made.layers["c_pre/Conv"].precision == "fp16"
    assert made.layers["c_pre/Conv"].reason == "the calib.cache has no range for c"
    assert made.layers["total/Add"].precision == "fp16"
    assert made.layers["d_pre/Conv"].precision == "int8"
    assert "c_pre/Conv, total/Add" in capsys.readouterr().err
    check_tensorrt(emit_tensorrt(unet, made))


def test_tensors_of_another_network_are_named(unet: Network, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.write_text(cache.read_text() + "stranger: 3c008912\n(Unnamed Layer* 1) [Constant]_output: 39137939\n")
    plan_from_cache(unet, cache)
    assert "1 of 15 tensors are not in" in (err := capsys.readouterr().err)
    assert "stranger" in err


def test_a_cache_of_another_network(unet: Network, tmp_path: Path) -> None:
    (tmp_path / "calib.cache").write_text("TRT-8601-MinMaxCalibration\nx: 4000890a\n")
    with pytest.raises(UserError, match="no range for any int8 layer"):
        plan_from_cache(unet, tmp_path / "calib.cache")


def test_an_infinite_scale_counts_as_none(unet: Network, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without(cache, "image")
    cache.write_text(cache.read_text() + "\nimage: 7f800000\n")
    assert plan_from_cache(unet, cache).layers["a_pre/Conv"].precision == "fp16"
    assert "tensor image has scale inf" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no calib.cache"),
        (b"\x89PNG\r\n\xff\xfe", "is no calib.cache"),
        (b"1 2 3\n", "is no calib.cache"),
        (b"TRT-8601-EntropyCalibration2\nimage 3c008912\n", r"line 2: 'image 3c008912' is not"),
        (b"TRT-8601-EntropyCalibration2\na: 3c008912\nb: 1.5\n", r"line 3: 'b: 1\.5' is not"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "calib.cache").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_cache(tmp_path / "calib.cache")


def test_the_commands(
    repository: Path, unet_file: Path, plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_plan(plan, tmp_path / "plan.json")
    cache = tmp_path / "unet.cache"
    command = [sys.executable, repository / "quant" / "calib_cache.py", unet_file, tmp_path / "plan.json", cache]
    done = subprocess.run([*command, "--tensorrt", "8.6.1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = build_engine.build(unet_file, tmp_path / "out", Cache(cache), engines=False)
    assert made.plan == tmp_path / "out" / "unet.plan.json"
    assert read_manifest(made.plan)["inputs"]["calib_cache"]["path"] == str(cache)
    assert "5 of 6 layers int8, ranges from" in capsys.readouterr().err
    metadata = {e.key: e.value for e in onnx.load(tmp_path / "out" / "unet.int8.trt.onnx").metadata_props}
    assert any("calib.cache" in value for value in metadata.values())
