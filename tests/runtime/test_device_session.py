"""ONNX models on device memory. onnxruntime's CPU provider stands in for the CUDA one, host memory for the GPU's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_device import EmulatedDevice, EmulatedMemory
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

from sodeploy.errors import UserError
from sodeploy.runtime import session as session_module
from sodeploy.runtime.composition import compose
from sodeploy.runtime.gpu import session as device_session
from sodeploy.runtime.gpu.driver import driver_problem
from sodeploy.runtime.gpu.pipeline import pictures
from sodeploy.runtime.gpu.session import OnnxDeviceSession, open_on_device
from sodeploy.runtime.processing import postprocess, preprocess
from sodeploy.runtime.session import OnnxRuntimeSession, open_session

SaveModel = Callable[..., Path]


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def session(path: Path, provider: str, stream: int, gpu: int) -> OnnxRuntimeSession:
        assert (provider, gpu) == ("cuda", 0)
        return OnnxRuntimeSession(path, "cpu")

    monkeypatch.setattr(device_session, "OnnxRuntimeSession", session)


@pytest.fixture
def emulation(device: Any, on_cpu: None) -> EmulatedDevice:
    if not isinstance(device, EmulatedDevice):
        pytest.skip("onnxruntime's CPU provider needs host memory")
    return device


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_run_reads_and_writes_at_addresses(save_model: SaveModel, dtype: type) -> None:
    path = save_model(batch=None, dtype=dtype)
    images = np.random.default_rng(0).random((3, 3, 16, 24)).astype(dtype)
    source, target = EmulatedMemory(images.nbytes), EmulatedMemory(images.nbytes // 3)
    source.array()[:] = images.view(np.uint8).reshape(-1)
    with OnnxRuntimeSession(path) as session:
        assert (session.input_dtype, session.output_dtype) == (dtype, dtype)
        session.enqueue(source.address, target.address, (3, 3, 16, 24))
        made = target.array().view(dtype).reshape(3, 1, 16, 24)
        np.testing.assert_array_equal(made.astype(np.float32), session.infer(images))
    with pytest.raises(ValueError, match="is closed"):
        session.enqueue(source.address, target.address, (3, 3, 16, 24))


@pytest.mark.parametrize("batch", [None, 1, 4])
@pytest.mark.parametrize("style", ["map", "green"])
def test_an_onnx_model_in_the_pipeline(
    emulation: EmulatedDevice, save_model: SaveModel, batch: int | None, style: Any
) -> None:
    path = save_model(batch=batch)
    photos = [np.random.default_rng(n).integers(0, 256, (20 + n, 30, 3), dtype=np.uint8) for n in range(7)]
    with open_on_device(path, emulation) as session, open_session(path) as reference:  # type: ignore[arg-type]
        assert isinstance(session, OnnxDeviceSession)
        assert (session.smallest_batch, session.largest_batch) == (batch or 1, batch)
        made = list(pictures(session, range(7), photos.__getitem__, batch=3, style=style))
        for number, picture in made:
            output = reference.infer(preprocess(photos[number], reference.contract)[None])[0, 0]
            saliency = postprocess(output, reference.contract, photos[number].shape[:2])
            wanted = compose(photos[number], saliency, style)
            assert np.abs(picture.astype(int) - wanted).max() <= 1
    assert len(made) == 7


class Failing:
    """An onnxruntime session that fails at batches of more than two images, as the CUDA provider does."""

    def __init__(self, session: Any, error: Exception) -> None:
        self._session, self._error = session, error

    def io_binding(self) -> Any:
        binding = self._session.io_binding()
        bind, self.images = binding.bind_input, 0

        def note(name: str, device: str, index: int, dtype: Any, shape: tuple[int, ...], address: int) -> None:
            self.images = shape[0]
            bind(name, device, index, dtype, shape, address)

        binding.bind_input = note
        return binding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        if self.images > 2:
            raise self._error
        self._session.run_with_iobinding(binding, options)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeException("BFCArena::AllocateRawInternal Failed to allocate memory for a buffer of size 99"), None),
        (RuntimeException("CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED"), "does not run (CUDNN failure 5000"),
        (RuntimeError("Error in execution: CUDA error 900"), "does not run (Error in execution"),  # seen on an H200
    ],
)
def test_onnxruntimes_failures_cost_a_batch_at_most(
    emulation: EmulatedDevice,
    save_model: SaveModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    told: str | None,
) -> None:
    load = session_module._load
    monkeypatch.setattr(session_module, "_load", lambda *arguments: Failing(load(*arguments), error))
    photo = np.full((20, 30, 3), 99, np.uint8)
    with open_on_device(save_model(batch=None), emulation) as session:  # type: ignore[arg-type]
        made = [picture for _, picture in pictures(session, range(6), lambda _: photo, batch=4, lanes=1)]
    arrived = [isinstance(picture, np.ndarray) for picture in made]
    if told is None:
        assert all(arrived)
        assert "no room for this batch" in capsys.readouterr().err
    else:
        assert arrived == [False] * 4 + [True] * 2
        assert told in str(made[0])


@pytest.mark.skipif(driver_problem() is None, reason="there is a GPU")
def test_without_a_gpu_it_is_an_error(save_model: SaveModel) -> None:
    with pytest.raises(UserError, match="a GPU is needed, but no NVIDIA driver is installed"):
        open_on_device(save_model())
