"""Sessions on engines: their logic on an imitation of TensorRT, real engines where there is a GPU to run them."""

import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imitated_tensorrt
import numpy as np
import pytest

from sodeploy.artifacts import write_manifest
from sodeploy.calib_data import open_dataset
from sodeploy.errors import UserError
from sodeploy.quant.graph import load_network
from sodeploy.quant.proof import Disproved, Proof, Prover, prove_engine
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.errors import DeviceError, DeviceLost, OutOfDeviceMemory
from sodeploy.runtime.gpu import engine_record, engine_session
from sodeploy.runtime.gpu.device import open_device
from sodeploy.runtime.gpu.driver import Gpu, driver_problem
from sodeploy.runtime.gpu.engine_session import Engine, EngineSession, open_engine
from sodeploy.runtime.session import open_session

IMITATED = "IMITATED_CUDA_KERNELS" in os.environ
SaveEngine = Callable[..., Path]


@pytest.fixture
def imitation(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT 11.4 on a GPU of capability 8.9, as far as the code can tell."""
    monkeypatch.setattr(imitated_tensorrt, "device", device)
    monkeypatch.setattr(device, "close", lambda: None)  # it serves the other tests too
    monkeypatch.setitem(sys.modules, "tensorrt", imitated_tensorrt)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", imitated_tensorrt)
    monkeypatch.setattr(engine_record, "driver_problem", lambda: None)
    monkeypatch.setattr(engine_record, "current_gpu", lambda: Gpu("NVIDIA L4", "sm89"))


@pytest.fixture
def save_engine(imitation: None, tmp_path: Path, make_contract: Callable[..., Contract]) -> SaveEngine:
    def save(least: int = 1, most: int = 4, dtype: str = "FLOAT", builder: str = "tensorrt", **facts: Any) -> Path:
        contract = make_contract(batch=None)
        names = {"input": contract.input_name, "output": contract.output_name}
        shapes = {"least": [least, 3, 16, 24], "most": [most, 3, 16, 24]}
        path = tmp_path / "tiny.engine"
        path.write_text(json.dumps(names | shapes | {"dtype": dtype} | facts))
        write_manifest(
            path,
            {},
            contract=contract.model_dump(mode="json"),
            precision="int8",
            calibration=None,
            builder=builder,
            builder_version=imitated_tensorrt.__version__,
            targets=["sm89"],
            gpu="NVIDIA L4",
            any_newer_gpu=False,
            any_newer_version=False,
            rebuild="python quant/engine.py tiny.onnx",
        )
        return path

    return save


def batch(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 3, 16, 24), np.float32)


def expected(images: np.ndarray) -> np.ndarray:
    return np.clip(np.einsum("nchw,c->nhw", images, np.float32([0.3, 0.4, 0.3])), 0, 1)[:, None]


@pytest.mark.parametrize("count", [1, 4, 9])
@pytest.mark.parametrize(("dtype", "tolerance"), [("FLOAT", 1e-6), ("HALF", 2e-3)])
def test_batches_of_any_size_come_back_whole(
    device: Any, save_engine: SaveEngine, count: int, dtype: str, tolerance: float
) -> None:
    with open_engine(save_engine(dtype=dtype), device) as session:
        for seed in range(4):  # the third time as a recorded graph
            made = session.infer(batch(count, seed))
            assert made.dtype == np.float32
            np.testing.assert_allclose(made, expected(batch(count, seed)), atol=tolerance)
        assert (session.precision, session.contract.network) == ("int8", "tiny")


def test_a_fixed_batch_is_filled_up(device: Any, save_engine: SaveEngine) -> None:
    with open_engine(save_engine(least=4, most=4), device) as session:
        np.testing.assert_allclose(session.infer(batch(6)), expected(batch(6)), atol=1e-6)


def test_everything_is_freed(device: Any, save_engine: SaveEngine) -> None:
    if not hasattr(device, "live"):
        pytest.skip("only the emulated device counts its memory")
    before = device.live()
    with open_engine(save_engine(), device) as session, session.fork() as other:
        session.infer(batch(1))
        other.infer(batch(2))
        assert device.live() > before
    assert device.live() == before
    with pytest.raises(ValueError, match="is closed"):
        session.infer(batch(1))
    session.close()


def test_graphs_belong_to_one_shape(device: Any, save_engine: SaveEngine) -> None:
    """A context that was set to another shape replays none of its older graphs: they would write wrong maps."""
    with open_engine(save_engine(), device) as session:
        kept = []
        for count in (2, 2, 2, 1, 2, 2, 2, 4, 2, 1, 1, 1):
            np.testing.assert_allclose(session.infer(batch(count)), expected(batch(count)), atol=1e-6)
            kept.append(len(session.graphs))
        assert kept == [0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1]


def test_an_output_of_another_shape_is_refused_before_it_runs(device: Any, save_engine: SaveEngine) -> None:
    with (
        open_engine(save_engine(makes=[1, 32, 24]), device) as session,
        pytest.raises(UserError, match="makes 2x1x32x24 of 2x3x16x24, maps are 2x1x16x24; build it again"),
    ):
        session.infer(batch(2))


def test_tensorrt_rtx_records_its_own_graphs_and_keeps_its_kernels(
    device: Any,
    save_engine: SaveEngine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(type(device), "record", lambda *_: pytest.fail("a graph of ours would freeze slow kernels"))
    path = save_engine(builder="tensorrt_rtx")
    configs = []
    for _ in range(2):
        with open_engine(path, device) as session:
            for _ in range(4):
                np.testing.assert_allclose(session.infer(batch(2)), expected(batch(2)), atol=1e-6)
            assert session.engine.rtx is not None
            configs.append(session.engine.rtx._config)
    for config in configs:
        assert config.cuda_graph_strategy == imitated_tensorrt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        strategy = imitated_tensorrt.DynamicShapesKernelSpecializationStrategy.EAGER
        assert config.dynamic_shapes_kernel_specialization_strategy == strategy
    (cache,) = (tmp_path / "cache/sodeploy/rtx").iterdir()
    assert cache.read_bytes() == b"kernels for (2, 3, 16, 24)"
    cache.write_bytes(b"of another driver")
    with open_engine(path, device) as session:
        session.infer(batch(1))
    assert cache.read_bytes() == b"kernels for (1, 3, 16, 24)"


def test_a_lost_gpu_ends_the_run(device: Any, save_engine: SaveEngine) -> None:
    if not hasattr(device, "lost"):
        pytest.skip("only the emulated device can be lost and found again")
    with open_engine(save_engine(breaks_on=3), device) as session:
        session.infer(batch(2))
        with pytest.raises(DeviceLost, match=r"lost to this process \(CUDA_ERROR_ILLEGAL_ADDRESS\)"):
            session.infer(batch(3))
        with pytest.raises(DeviceLost):
            session.infer(batch(2))
        device.lost = ""


def test_no_room_for_a_batch_means_smaller_ones_and_a_warning(
    device: Any, save_engine: SaveEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    allocate = type(device).allocate
    limit = 2 * 3 * 16 * 24 * 4  # bytes of a batch of two

    def small(self: Any, size: int) -> Any:
        if size > -(-limit // 4096) * 4096:
            raise OutOfDeviceMemory("the GPU has no room for 1 MiB more; choose a smaller batch")
        return allocate(self, size)

    monkeypatch.setattr(type(device), "allocate", small)
    with open_engine(save_engine(most=8), device) as session:
        np.testing.assert_allclose(session.infer(batch(8)), expected(batch(8)), atol=1e-6)
    assert "going on with batches of 2" in capsys.readouterr().err
    monkeypatch.setattr(type(device), "allocate", lambda *_: (_ for _ in ()).throw(OutOfDeviceMemory("no room")))
    with open_engine(save_engine(), device) as session, pytest.raises(OutOfDeviceMemory):
        session.infer(batch(1))


def test_a_shape_outside_of_the_profile(device: Any, save_engine: SaveEngine) -> None:
    with (
        open_engine(save_engine(), device) as session,
        pytest.raises(UserError, match="built for 1x3x16x24 to 4x3x16x24, got 1x3x16x32; build it with that --shapes"),
    ):
        session.infer(np.zeros((1, 3, 16, 32), np.float32))


def test_a_failing_run_is_reported_with_tensorrts_reason(device: Any, save_engine: SaveEngine) -> None:
    with open_engine(save_engine(fails_on=3), device) as session:
        with pytest.raises(DeviceError, match=r"does not run .*illegal memory access"):
            session.infer(batch(3))
        np.testing.assert_allclose(session.infer(batch(2)), expected(batch(2)), atol=1e-6)


def test_no_room_for_a_context(device: Any, save_engine: SaveEngine) -> None:
    with pytest.raises(OutOfDeviceMemory, match=r"no execution context \(CUDA out of memory\)"):
        open_engine(save_engine(contexts=0), device)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"dtype": "INT8"}, "export the model with float32 input and output"),
        ({"output": "side"}, "has the tensors image, side, its contract names image and saliency"),
    ],
)
def test_an_engine_that_is_not_what_its_contract_says(
    device: Any, save_engine: SaveEngine, facts: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_engine(save_engine(**facts), device)


def test_broken_and_foreign_engines_are_refused_with_the_command_that_rebuilds(
    device: Any, save_engine: SaveEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_engine()
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(UserError, match=r"truncated or was replaced; build it again: python quant/engine.py tiny.onnx"):
        open_engine(path, device)
    path.write_bytes(whole)
    monkeypatch.setattr(engine_record, "current_gpu", lambda: Gpu("NVIDIA H200", "sm90"))
    with pytest.raises(UserError, match=r"built for sm89, here is NVIDIA H200 \(sm90\); build it again"):
        open_engine(path, device)


@pytest.mark.skipif(driver_problem() is None, reason="there is a GPU")
def test_open_session_opens_engines(save_engine: SaveEngine) -> None:
    with pytest.raises(UserError, match="a GPU is needed, but no NVIDIA driver is installed"):
        open_session(save_engine())


def test_an_engine_tensorrt_cannot_read(device: Any, save_engine: SaveEngine, tmp_path: Path) -> None:
    path = save_engine()
    manifest = json.loads(Path(f"{path}.json").read_text())
    path.write_bytes(b"garbage")
    kept = [key for key in engine_record.EngineRecord.model_fields if key in manifest and key != "sha256"]
    write_manifest(path, {}, **{key: manifest[key] for key in kept})
    with pytest.raises(UserError, match=r"cannot be loaded \(Serialization assertion .* build it again"):
        open_engine(path, device)


def test_a_driver_too_old_for_tensorrt(device: Any, save_engine: SaveEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imitated_tensorrt.Runtime, "_driver_is_too_old", True)
    message = r"tensorrt does not start \(CUDA initialization failure with error: 35\); update the NVIDIA driver"
    with pytest.raises(UserError, match=message):
        open_engine(save_engine(), device)


@pytest.mark.skipif(driver_problem() is None, reason="there is a GPU")
@pytest.mark.parametrize(
    "name",
    [
        *("Runtime", "ICudaEngine", "IExecutionContext", "ILogger", "DataType", "IRuntimeConfig", "IRuntimeCache"),
        *("CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy"),
    ],
)
def test_the_imitation_promises_nothing_that_tensorrt_lacks(name: str) -> None:
    real = pytest.importorskip("tensorrt_rtx")
    ours = {member for member in vars(getattr(imitated_tensorrt, name)) if not member.startswith("_")}
    lacking = {member for member in ours if not hasattr(getattr(real, name), member)}
    assert not lacking


@pytest.mark.skipif(driver_problem() is not None, reason=f"no GPU: {driver_problem()}")
@pytest.mark.parametrize("builder", ["tensorrt", "tensorrt_rtx"])
def test_a_real_engine_agrees_with_onnxruntime(builder: str, save_model: Callable[..., Path], tmp_path: Path) -> None:
    if IMITATED:
        pytest.skip("the imitated driver runs no engines")
    if importlib.util.find_spec(builder) is None:
        pytest.skip(f"{builder} is not installed")
    from sodeploy.quant.engine import build
    from sodeploy.quant.engines.shapes import parse_profile
    from sodeploy.runtime.gpu.driver import current_gpu

    model = save_model(batch=None)
    targets = None
    if builder == "tensorrt_rtx":
        targets = [current_gpu().capability]
        if not hasattr(importlib.import_module(builder).ComputeCapability, targets[0].upper()):
            pytest.skip(f"tensorrt_rtx compiles nothing for {targets[0]}")
    build(
        model,
        tmp_path / "tiny.engine",
        builder,
        targets=targets,
        profile=parse_profile("1x3x16x24:2x3x16x24:4x3x16x24"),
    )  # type: ignore[arg-type]
    device = open_device()
    with open_session(model) as reference, open_engine(tmp_path / "tiny.engine", device) as session:
        assert isinstance(session, EngineSession)
        assert isinstance(session.engine, Engine)
        for count in (1, 1, 1, 4, 9):
            np.testing.assert_allclose(session.infer(batch(count)), reference.infer(batch(count)), atol=1e-3)


@pytest.fixture
def prover(save_model: Callable[..., Path]) -> Prover:
    """Of the network that the imitated engine computes."""
    path = save_model("tiny.onnx", batch=None)
    return Prover(path, load_network(path), list(open_dataset("synthetic:eval:4:32", masks=False)))


def test_an_engine_is_proved_against_its_graph(
    device: Any, save_engine: SaveEngine, prover: Prover, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_session, "open_device", lambda gpu: device)
    proof = prove_engine(save_engine(), prover, Proof(30.0, 0.1, 4))
    assert (proof.images, proof.largest_difference) == (4, pytest.approx(0, abs=1e-5))
    assert proof.sqnr_db is None or proof.sqnr_db > 80


@pytest.mark.parametrize(
    ("value", "message"), [(math.nan, "the engine gives NaN"), (0.25, r"its map is constant \(0\.25\)")]
)
def test_an_engine_without_a_map_is_refused(
    device: Any, save_engine: SaveEngine, prover: Prover, monkeypatch: pytest.MonkeyPatch, value: float, message: str
) -> None:
    monkeypatch.setattr(engine_session, "open_device", lambda gpu: device)
    with pytest.raises(Disproved, match=message):
        prove_engine(save_engine(value=value), prover, Proof(30.0, 0.1, 4))


def test_an_engine_that_is_worse_than_its_graph_is_refused(
    device: Any, save_engine: SaveEngine, save_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_session, "open_device", lambda gpu: device)
    path = save_model("other.onnx", weights=(0.5, 0.0, 0.5), batch=None)
    other = Prover(path, load_network(path), list(open_dataset("synthetic:eval:4:32", masks=False)))
    with pytest.raises(Disproved, match=r"the engine's map has .* dB to float32, its graph's 30.0 dB"):
        prove_engine(save_engine(), other, Proof(30.0, 0.1, 4))
    prove_engine(save_engine(), other, Proof(0.0, 0.9, 4))  # no worse than its graph
