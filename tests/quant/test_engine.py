"""Building engines: with TensorRT-RTX for real, which needs no GPU; TensorRT's own branch on RTX's bindings."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typed_graphs import write

from sodeploy.errors import UserError
from sodeploy.quant import engine
from sodeploy.quant.engines import builder as trt_builder
from sodeploy.quant.engines.kernels import summary
from sodeploy.quant.engines.shapes import Profile, parse_profile
from sodeploy.runtime.contract import CALIBRATION_KEY, DIALECT_KEY, annotate
from sodeploy.runtime.gpu.driver import Gpu, driver_problem
from sodeploy.runtime.gpu.engine_record import read_record
from sodeploy.terminal import Step, on_progress

needs_rtx = pytest.mark.skipif(
    "tensorrt_rtx" not in engine.installed_builders(),
    reason="tensorrt_rtx is not installed: pip install 'sodeploy[rtx]'",
)
DYNAMIC = Profile((1, 3, 64, 64), (4, 3, 64, 64), (8, 3, 64, 64))


@needs_rtx
@pytest.mark.parametrize(
    ("precision", "convolutions"), [("fp32", {"fp32": 5}), ("fp16", {"fp16": 5}), ("int8", {"fp16": 2, "int8": 3})]
)
def test_engine_runs_convolutions_in_the_precision_of_the_graph(
    tmp_path: Path, precision: Any, convolutions: dict[str, int]
) -> None:
    graph = write(tmp_path / "small.onnx", precision)
    report = engine.build(graph, tmp_path / "small.engine", "tensorrt_rtx")
    assert report.path.stat().st_size > 10_000
    assert summary(report.kernels)["convolutions"] == convolutions
    assert report.targets == engine.RTX_TARGETS
    by_node = {kernel.nodes[0]: kernel for kernel in report.kernels if kernel.is_convolution}
    assert by_node.keys() >= {"/enc/Conv", "/mid/Conv", "/dec/Conv"}
    assert {by_node[node].inputs for node in ("/enc/Conv", "/mid/Conv", "/dec/Conv")} == {(precision,)}


@needs_rtx
def test_record_says_what_was_built_and_how_to_build_it_again(tmp_path: Path) -> None:
    calibration = {"method": "kl", "digests_sha256": ["0" * 64]}
    graph = edited(
        write(tmp_path / "small.onnx", "int8", stretch=True),
        lambda model: annotate(model, {CALIBRATION_KEY: json.dumps(calibration)}),
    )
    built = engine.build(graph, tmp_path / "out" / "small.engine", "tensorrt_rtx", targets=["sm89"], workspace_mib=256)
    record = read_record(built.path)
    assert (record.builder, record.builder_version) == ("tensorrt_rtx", built.builder_version)
    assert (record.precision, record.targets, record.gpu) == ("int8", ("sm89",), None)
    assert (record.input_dtype, record.output_dtype) == ("float32", "float32")
    assert record.contract.stretch
    assert record.calibration == calibration
    first = built.path.read_bytes()
    built.path.unlink()
    subprocess.run(
        [sys.executable, "-m", *record.rebuild.split()],
        cwd=Path(engine.__file__).parent.parent,
        check=True,
        timeout=120,
    )
    assert len(built.path.read_bytes()) == pytest.approx(len(first), rel=0.05)
    again = json.loads(Path(f"{built.path}.json").read_text())
    assert (again["targets"], again["rebuild"]) == (["sm89"], record.rebuild)


@needs_rtx
def test_turing_gets_an_engine_of_its_own(tmp_path: Path) -> None:
    graph = write(tmp_path / "small.onnx", "int8")
    turing = engine.build(graph, tmp_path / "turing.engine", "tensorrt_rtx", targets=["sm75"])
    assert "int8" not in summary(turing.kernels)["convolutions"]  # the reason for the rule
    with pytest.raises(UserError, match="sm75 beside newer targets"):
        engine.build(graph, tmp_path / "both.engine", "tensorrt_rtx", targets=["sm75", "sm89"])


@needs_rtx
def test_dynamic_batch_takes_a_profile(tmp_path: Path) -> None:
    graph = write(tmp_path / "small.onnx", "fp16", batch="batch")
    report = engine.build(graph, tmp_path / "small.engine", "tensorrt_rtx", profile=DYNAMIC)
    assert summary(report.kernels)["convolutions"] == {"fp16": 5}
    assert json.loads((tmp_path / "small.engine.json").read_text())["profile"]["opt"] == [4, 3, 64, 64]


@needs_rtx
@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (None, r"takes \*x3x64x64; .* --shapes 1x3x64x64:1x3x64x64:8x3x64x64"),
        (Profile((1, 3, 64, 64), (4, 3, 64, 64), (8, 3, 96, 64)), "does not fit"),
        (Profile((1, 3, 64), (4, 3, 64), (8, 3, 64)), "does not fit"),
        (Profile((4, 3, 64, 64), (1, 3, 64, 64), (8, 3, 64, 64)), "does not grow"),
    ],
)
def test_profile_must_fit(tmp_path: Path, profile: Profile | None, message: str) -> None:
    graph = write(tmp_path / "small.onnx", "fp32", batch="batch")
    with pytest.raises(UserError, match=message):
        engine.build(graph, tmp_path / "small.engine", "tensorrt_rtx", profile=profile)


@needs_rtx
def test_fixed_shape_takes_no_profile(tmp_path: Path) -> None:
    graph = write(tmp_path / "small.onnx", "fp32")
    with pytest.raises(UserError, match="takes 1x3x64x64 only"):
        engine.build(graph, tmp_path / "small.engine", "tensorrt_rtx", profile=DYNAMIC)


@pytest.mark.parametrize("text", ["", "1x3x64x64", "1x3x64x64:1x3x64x64", "1x3x64:1x3x64:1x3x64", "axbxcxd:1:2",
                                  "0x3x64x64:1x3x64x64:1x3x64x64", "2x3x64x64:1x3x64x64:4x3x64x64"])  # fmt: skip
def test_profile_text_that_is_none(text: str) -> None:
    with pytest.raises(UserError, match="is not min:opt:max"):
        parse_profile(text)


def test_profile_text() -> None:
    assert parse_profile("1x3x64x64:4x3x64x64:8x3x64x64") == DYNAMIC
    assert parse_profile(str(DYNAMIC)) == DYNAMIC


@needs_rtx
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["sm90"]}, "no target sm90; choose from sm75, sm80"),
        ({"hardware_compatible": True}, "name all compute capabilities"),
        ({"version_compatible": True}, "its own version only"),
        ({"workspace_mib": 1}, "workspace"),
    ],
)
def test_what_rtx_cannot_do_is_said_in_one_line(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    graph = write(tmp_path / "small.onnx", "fp32")
    with pytest.raises(UserError, match=message) as caught:
        engine.build(graph, tmp_path / "small.engine", "tensorrt_rtx", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [graph]


@needs_rtx
@pytest.mark.skipif(driver_problem() is None, reason="there is a GPU")
def test_refit_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="refittable engine is built on a GPU"):
        engine.build(write(tmp_path / "small.onnx", "fp32"), tmp_path / "small.engine", "tensorrt_rtx", refit=True)


def edited(path: Path, edit: Any) -> Path:
    """The graph in `path` after `edit(model)`."""
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)
    return path


def use_unknown_operator(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Sigmoid")
    node.op_type, node.domain = "Saliency", "elsewhere"
    model.opset_import.add(domain="elsewhere", version=1)


def shift_zero_point(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "/mid/Conv/input_zero":
            tensor.CopyFrom(numpy_helper.from_array(np.int8(3), tensor.name))


def use_uint8(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "/mid/Conv/input_zero":
            tensor.CopyFrom(numpy_helper.from_array(np.uint8(0), tensor.name))


def name_another_dialect(model: onnx.ModelProto) -> None:
    next(entry for entry in model.metadata_props if entry.key == DIALECT_KEY).value = "cpu"


def drop_contract(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


@needs_rtx
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (use_unknown_operator, r"has no operator Saliency \(node \S+\)"),
        (shift_zero_point, "node /mid/Conv/input/Q has zero point 3"),
        (use_uint8, "node /mid/Conv/input/Q quantizes to uint8"),
        (name_another_dialect, r"quantized for cpu; give the \.int8\.trt\.onnx"),
        (drop_contract, "has no sodeploy contract"),
    ],
)
def test_graph_that_cannot_be_built_is_refused_in_one_line(tmp_path: Path, edit: Any, message: str) -> None:
    graph = edited(write(tmp_path / "small.onnx", "int8"), edit)
    with pytest.raises(UserError, match=message) as caught:
        engine.build(graph, tmp_path / "small.engine", "tensorrt_rtx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [graph]


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        engine.build(tmp_path / "none.onnx", tmp_path / "small.engine", "tensorrt_rtx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match=r"broken\.onnx is not an ONNX file"):
        engine.build(broken, tmp_path / "small.engine", "tensorrt_rtx")


@needs_rtx
def test_interrupt_leaves_nothing(tmp_path: Path) -> None:
    graph = write(tmp_path / "small.onnx", "fp32")
    handler = signal.getsignal(signal.SIGINT)
    reported: list[Step] = []

    def press_ctrl_c(step: Step) -> None:
        reported.append(step)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = on_progress(press_ctrl_c)
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.build(graph, tmp_path / "small.engine", "tensorrt_rtx")
    finally:
        on_progress(watcher)
    assert reported[0].label == "building small.onnx"
    assert {step.label for step in reported} == {step.label for step in reported if step.finished}
    assert list(tmp_path.iterdir()) == [graph]
    assert signal.getsignal(signal.SIGINT) is handler


@needs_rtx
def test_full_disk_leaves_the_old_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = write(tmp_path / "small.onnx", "fp32")
    old = tmp_path / "small.engine"
    old.write_bytes(b"old")

    def no_space(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(OSError, match="No space left"):
        engine.build(graph, old, "tensorrt_rtx")
    assert old.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == [old, graph]


class RtxAsTensorrt(ModuleType):
    """TensorRT-RTX's real bindings under TensorRT's name; the two share every call that is made here."""

    __version__ = "11.4.0.106"

    def __getattr__(self, name: str) -> Any:
        import tensorrt_rtx

        return getattr(tensorrt_rtx, name)


@needs_rtx
@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_tensorrt_keeps_its_timing_cache_and_names_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", RtxAsTensorrt("tensorrt"))
    monkeypatch.setattr(engine, "driver_problem", lambda: None)
    monkeypatch.setattr(engine, "current_gpu", lambda: Gpu("NVIDIA L4", "sm89"))
    monkeypatch.setattr(trt_builder, "_inspect", lambda *_: [])  # TensorRT's runtime without a driver crashes
    made, parts = trt_builder._made, []
    monkeypatch.setattr(trt_builder, "_made", lambda part, *rest: (parts.append(part), made(part, *rest))[1])
    graph = write(tmp_path / "small.onnx", "fp32")
    for _ in range(2):  # the second reads the cache of the first
        report = engine.build(graph, tmp_path / "small.engine", "tensorrt", workspace_mib=512)
    assert (report.targets, report.gpu, report.builder_version) == (("sm89",), "NVIDIA L4", "11.4.0.106")
    assert (tmp_path / "tensorrt-11.4.0.106-sm89.timing").stat().st_size > 0
    import tensorrt_rtx

    configs = [part for part in parts if isinstance(part, tensorrt_rtx.IBuilderConfig)]
    assert [config.get_flag(tensorrt_rtx.BuilderFlag.TF32) for config in configs] == [False, False]  # fp32 is fp32
    with pytest.raises(UserError, match="leave the targets out"):
        engine.build(graph, tmp_path / "small.engine", "tensorrt", targets=["sm89"])


@needs_rtx
def test_old_tensorrt_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = RtxAsTensorrt("tensorrt")
    old.__version__ = "8.6.1"
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    with pytest.raises(UserError, match=r"tensorrt 8\.6\.1 is too old, 10\.8 or newer"):
        engine.build(write(tmp_path / "small.onnx", "fp32"), tmp_path / "small.engine", "tensorrt")


@needs_rtx
def test_a_builder_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(RtxAsTensorrt):
        def Builder(self, logger: Any) -> None:
            logger.log(self.ILogger.ERROR, "CUDA out of memory")

    monkeypatch.setitem(sys.modules, "tensorrt", Full("tensorrt"))
    monkeypatch.setattr(engine, "driver_problem", lambda: None)
    monkeypatch.setattr(engine, "current_gpu", lambda: Gpu("NVIDIA L4", "sm89"))
    with pytest.raises(UserError, match="CUDA out of memory"):
        engine.build(write(tmp_path / "small.onnx", "fp32"), tmp_path / "small.engine", "tensorrt")


@needs_rtx
def test_a_driver_too_old_for_the_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old(RtxAsTensorrt):
        def Builder(self, logger: Any) -> None:
            logger.log(self.ILogger.WARNING, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setitem(sys.modules, "tensorrt", Old("tensorrt"))
    monkeypatch.setattr(engine, "driver_problem", lambda: None)
    monkeypatch.setattr(engine, "current_gpu", lambda: Gpu("NVIDIA L4", "sm89"))
    with pytest.raises(UserError, match=r"does not start \(CUDA initialization failure with error: 35\); update"):
        engine.build(write(tmp_path / "small.onnx", "fp32"), tmp_path / "small.engine", "tensorrt")


@pytest.mark.skipif(driver_problem() is None, reason="there is a GPU")
def test_tensorrt_without_a_driver_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt = ModuleType("tensorrt")
    tensorrt.__version__ = "11.4.0.106"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    with pytest.raises(UserError, match="tensorrt builds on the GPU that the engine is for, but no NVIDIA driver"):
        engine.build(write(tmp_path / "small.onnx", "fp32"), tmp_path / "small.engine", "tensorrt")


def test_absent_and_broken_builders_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = write(tmp_path / "small.onnx", "fp32")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)  # importing it raises ModuleNotFoundError
    with pytest.raises(UserError, match=r"tensorrt_rtx .*pip install 'sodeploy\[rtx\]'"):
        engine.build(graph, tmp_path / "small.engine", "tensorrt_rtx")
    package = tmp_path / "site" / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise OSError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(UserError, match=r"installed but does not load \(libnvinfer\.so\.11"):
        engine.build(graph, tmp_path / "small.engine", "tensorrt")


def test_builder_is_chosen_by_what_can_build_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def machine(builders: list[str], problem: str | None) -> None:
        monkeypatch.setattr(engine, "installed_builders", lambda: builders)
        monkeypatch.setattr(engine, "driver_problem", lambda: problem)

    machine(["tensorrt", "tensorrt_rtx"], None)
    assert engine.choose_builder() == "tensorrt"
    machine(["tensorrt", "tensorrt_rtx"], "no driver")
    assert engine.choose_builder() == "tensorrt_rtx"
    machine(["tensorrt"], "no driver")
    with pytest.raises(UserError, match="but no driver"):
        engine.choose_builder()
    machine([], None)
    with pytest.raises(UserError, match="no engine builder is installed"):
        engine.choose_builder()
