"""Sessions whose input and output stay on the GPU, whatever engine is behind them."""

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from sodeploy.artifacts import require_file
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.gpu.device import Device, open_device
from sodeploy.runtime.gpu.engine_session import open_engine
from sodeploy.runtime.gpu.graphs import Graphs
from sodeploy.runtime.session import OnnxRuntimeSession


class DeviceSession(Protocol):
    """A network that reads and writes device memory, on one stream."""

    @property
    def contract(self) -> Contract: ...

    @property
    def device(self) -> Device: ...

    @property
    def precision(self) -> str:
        """fp32, fp16 or int8."""

    @property
    def metadata(self) -> dict[str, str]:
        """Further metadata of the model, for example its calibration images."""

    @property
    def smallest_batch(self) -> int:
        """Images to one run, at least."""

    @property
    def largest_batch(self) -> int | None:
        """Images to one run, at most; None: any number."""

    @property
    def input_dtype(self) -> type[np.generic]:
        """np.float32 or np.float16, as `output_dtype`."""

    @property
    def output_dtype(self) -> type[np.generic]: ...

    @property
    def graphs(self) -> Graphs:
        """Of the session's stream, for work that contains `enqueue`."""

    def enqueue(self, input_address: int, output_address: int, shape: tuple[int, int, int, int]) -> None:
        """Put one run on the stream: the input (N, 3, h, w) at one address to the output (N, 1, h, w) at the other."""

    def fork(self, stream: Any = None) -> "DeviceSession":
        """The same network on another stream, for another thread."""

    def close(self) -> None: ...

    def __enter__(self) -> "DeviceSession": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_on_device(path: str | Path, device: Device | None = None, gpu: int = 0) -> DeviceSession:
    """Open an engine, or an ONNX model with onnxruntime's CUDA provider.

    Args:
        device: a GPU that stays the caller's; by default a new one, which the session closes with itself.
        gpu: index of the new one, among the GPUs that are visible.

    Raises:
        UserError: there is no usable GPU, or the model is unfit; nothing ever runs on the CPU instead.
    """
    path = require_file(path, "give the path of a model")
    if path.suffix == ".engine":
        return open_engine(path, device, gpu)
    with contextlib.ExitStack() as opened:
        used = device or opened.enter_context(open_device(gpu))
        session = OnnxDeviceSession(path, used, owns_device=device is None)
        opened.pop_all()
        return session


class OnnxDeviceSession:
    """An ONNX model in onnxruntime on the GPU; each stream has a copy of the weights."""

    def __init__(self, path: Path, device: Device, stream: Any = None, owns_device: bool = False) -> None:
        """
        Args:
            stream: a new one by default.
            owns_device: close the device with this session.

        Raises:
            UserError: as `sodeploy.runtime.session.open_session` on cuda.
        """
        self._path, self.device, self._owns_stream, self._owns_device = path, device, stream is None, owns_device
        with device.current():
            self._stream = device.stream() if stream is None else stream
            self._session = OnnxRuntimeSession(path, "cuda", stream=self._stream.handle, gpu=device.index)
        self.contract = self._session.contract
        self.precision, self.metadata = self._session.precision, self._session.metadata
        self.input_dtype, self.output_dtype = self._session.input_dtype, self._session.output_dtype
        self.smallest_batch, self.largest_batch = self.contract.batch or 1, self.contract.batch
        self.graphs = Graphs(device, self._stream, str(path), recordable=False)  # onnxruntime takes memory in a run

    def enqueue(self, input_address: int, output_address: int, shape: tuple[int, int, int, int]) -> None:
        self._session.enqueue(input_address, output_address, shape)

    def fork(self, stream: Any = None) -> "OnnxDeviceSession":
        return OnnxDeviceSession(self._path, self.device, stream)

    def close(self) -> None:
        self._session.close()
        if self._owns_stream:
            self.device.keep(self._stream)
            self._owns_stream = False
        if self._owns_device:
            self.device.close()

    def __enter__(self) -> "OnnxDeviceSession":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
