"""Engines of TensorRT 10, 11 and TensorRT-RTX as sessions.

`EngineSession.infer` takes and gives host arrays like any session. `EngineSession.enqueue` takes device addresses: with
it, pre-processing, network and post-processing follow each other on the GPU (runtime/gpu/pipeline.py). Runs that come
again are recorded as CUDA graphs (runtime/gpu/graphs.py). TensorRT-RTX records its own: only it knows when the kernels
for a shape are compiled.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sodeploy.errors import UserError
from sodeploy.runtime.contract import CALIBRATION_KEY, PRECISION_KEY, Contract
from sodeploy.runtime.errors import DeviceError, OutOfDeviceMemory
from sodeploy.runtime.gpu.buffers import Buffer
from sodeploy.runtime.gpu.device import Device, open_device
from sodeploy.runtime.gpu.engine_record import Builder, EngineRecord, check_engine
from sodeploy.runtime.gpu.graphs import Graphs
from sodeploy.runtime.gpu.rtx_runtime import RtxRuntime
from sodeploy.terminal import warn

if TYPE_CHECKING:
    import tensorrt as trt


class Shapes(NamedTuple):
    """The input shapes (N, 3, h, w) an engine takes."""

    least: tuple[int, ...]
    most: tuple[int, ...]

    def take(self, shape: Sequence[int]) -> bool:
        return len(shape) == 4 and all(
            least <= side <= most for least, side, most in zip(self.least, shape, self.most, strict=True)
        )


class Engine:
    """A deserialised engine; the sessions on it share its weights.

    Attributes:
        shapes: what its input may be.
        input_dtype, output_dtype: np.float32 or np.float16.
    """

    def __init__(self, path: str | Path, device: Device) -> None:
        """The engine at `path` on `device`, which must be current.

        Raises:
            UserError: it was built for another TensorRT or GPU, is broken, or is not what its contract says.
        """
        self.path, self.device = Path(path), device
        self.record: EngineRecord = check_engine(path)
        trt = _load(self.record.builder)
        self.logger = _logger(self.record.builder)
        try:
            self._runtime = trt.Runtime(self.logger)  # must outlive the engine
        except TypeError:  # its bindings' answer to CUDA that cannot be initialised, as with a driver older than it
            raise UserError(
                f"{path}: {self.record.builder} does not start ({self.logger.last_error()}); update the NVIDIA driver, "
                "or build the engine with an older TensorRT"
            ) from None
        self._runtime.engine_host_code_allowed = self.record.any_newer_version  # such an engine brings code along
        engine = self._runtime.deserialize_cuda_engine(self.path.read_bytes())
        if engine is None:
            raise UserError(
                f"{path} cannot be loaded ({self.logger.last_error()}); build it again: {self.record.rebuild}"
            )
        self._engine = engine
        contract = self.record.contract
        self._require_tensors(contract)
        self.input_dtype = self._dtype(contract.input_name)
        self.output_dtype = self._dtype(contract.output_name)
        least, _, most = engine.get_tensor_profile_shape(contract.input_name, 0)
        self.shapes = Shapes(tuple(least), tuple(most))
        self.rtx = (
            RtxRuntime(trt, engine, self.record.sha256, device.capability)
            if self.record.builder == "tensorrt_rtx"
            else None
        )

    def context(self) -> "trt.IExecutionContext":
        """A new execution context.

        Raises:
            OutOfDeviceMemory: the GPU has no room for its scratch memory.
        """
        context = self.rtx.context() if self.rtx else self._engine.create_execution_context()
        if context is None:
            raise OutOfDeviceMemory(
                f"{self.path}: no execution context ({self.logger.last_error()}); end other processes on the GPU, or "
                "build the engine for a smaller batch"
            )
        return context

    def _require_tensors(self, contract: Contract) -> None:
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        if sorted(names) != sorted([contract.input_name, contract.output_name]):
            raise UserError(
                f"{self.path} has the tensors {', '.join(names)}, its contract names {contract.input_name} and "
                f"{contract.output_name}; build it again: {self.record.rebuild}"
            )

    def _dtype(self, name: str) -> type[np.generic]:
        trt = _load(self.record.builder)
        dtype = self._engine.get_tensor_dtype(name)
        if dtype == trt.DataType.FLOAT:
            return np.float32
        if dtype == trt.DataType.HALF:
            return np.float16
        raise UserError(f"{self.path}: tensor {name} is {dtype}; export the model with float32 input and output")


class EngineSession:
    """An engine with an execution context and a stream of its own; for one thread at a time.

    Attributes:
        graphs: of its stream. All are of the shape that the context is set to.
    """

    def __init__(self, engine: Engine, stream: Any = None, owns_device: bool = False) -> None:
        """
        Args:
            stream: a new one by default.
            owns_device: close the engine's device with this session.

        Raises:
            OutOfDeviceMemory: there is no room for another context.
        """
        self.engine, self.device, self._owns_device = engine, engine.device, owns_device
        self.input_dtype, self.output_dtype = engine.input_dtype, engine.output_dtype
        self.smallest_batch, self.largest_batch = engine.shapes.least[0], engine.shapes.most[0]
        self.contract, self.precision = engine.record.contract, engine.record.precision
        self.metadata = {PRECISION_KEY: engine.record.precision}
        if engine.record.calibration is not None:
            self.metadata[CALIBRATION_KEY] = json.dumps(engine.record.calibration)
        self._context: trt.IExecutionContext | None = engine.context()
        self._stream, self._owns_stream = stream, stream is None
        if self._owns_stream:
            self._stream = self.device.stream()
        self._input, self._output = (Buffer(self.device, pinned=True) for _ in range(2))
        self._shape: tuple[int, ...] = ()  # that the context is set to
        self.graphs = Graphs(self.device, self._stream, str(engine.path), recordable=engine.rtx is None)

    def enqueue(self, input_address: int, output_address: int, shape: tuple[int, int, int, int]) -> None:
        """Put one run on the session's stream: the input (N, 3, h, w) at one device address to the output at another.

        Raises:
            UserError: the engine was not built for `shape`, or its output is not one map for each image.
            DeviceLost: the GPU's context has ended.
            DeviceError: TensorRT refuses.
            ValueError: the session is closed.
        """
        if self._context is None:
            raise ValueError(f"the session of {self.engine.path} is closed")
        if shape != self._shape:
            self._set_shape(shape)
        contract, context = self.contract, self._context
        done = (
            context.set_tensor_address(contract.input_name, input_address)
            and context.set_tensor_address(contract.output_name, output_address)
            and context.execute_async_v3(self._stream.handle)
        )
        if not done:
            self.device.require_alive()
            raise DeviceError(f"{self.engine.path} does not run ({self.engine.logger.last_error()})")

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """(N, 3, h, w) float32 -> (N, 1, h, w) float32, in as many runs as the engine's largest batch asks for.

        Where the GPU has no room for such a run, smaller ones are tried, and a warning says so.

        Raises:
            UserError: the engine was not built for h, w, or not even one image fits.
            ValueError: `batch` is not (N, 3, h, w), N >= 1; the session is closed.
        """
        if batch.ndim != 4 or batch.shape[1] != 3 or not len(batch):
            raise ValueError(f"expected (N, 3, h, w), got {batch.shape}")
        least, step = self.smallest_batch, self.largest_batch
        outputs: list[np.ndarray] = []
        start = 0
        with self.device.current():
            while start < len(batch):
                images = batch[start : start + step]
                try:
                    # The last images run as a whole batch too: another shape would cost the graphs.
                    count = step if outputs else len(images)
                    outputs.append(self._infer_at_once(images, max(count, least)))
                except OutOfDeviceMemory as error:
                    step = min(step, len(images)) // 2
                    if step < least:
                        raise
                    self._input.free()
                    self._output.free()
                    warn(f"{error}; going on with batches of {step}")
                    continue
                start += len(images)
        return np.concatenate(outputs)

    def fork(self, stream: Any = None) -> "EngineSession":
        """Another session on the same engine, for another thread; on a new stream by default."""
        return EngineSession(self.engine, stream)

    def close(self) -> None:
        """Free context, graphs and buffers; the session cannot be used any more."""
        with self.device.current():
            self.graphs.clear()
            self._input.free()
            self._output.free()
            if self._context is not None and self.engine.rtx:
                self.engine.rtx.save()
            self._context = None
        if self._owns_stream:
            self.device.keep(self._stream)
            self._owns_stream = False
        if self._owns_device:
            self.device.close()

    def __enter__(self) -> "EngineSession":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _infer_at_once(self, images: np.ndarray, count: int) -> np.ndarray:
        """One run of `count` images, those missing being zeros."""
        device, engine, stream = self.device, self.engine, self._stream
        shape = (count, 3, images.shape[2], images.shape[3])
        if not engine.shapes.take(shape):
            raise UserError(self._wrong_shape(shape))
        maps = (count, 1, *shape[2:])
        self._input.reserve(int(np.prod(shape)) * np.dtype(engine.input_dtype).itemsize)
        self._output.reserve(int(np.prod(maps)) * np.dtype(engine.output_dtype).itemsize)
        source, result = (
            _array(self._input.host, shape, engine.input_dtype),
            _array(self._output.host, maps, engine.output_dtype),
        )
        source[: len(images)] = images
        source[len(images) :] = 0
        device.upload(self._input.address, source, stream)
        addresses = self._input.address, self._output.address
        self.graphs.run((shape, addresses), lambda: self.enqueue(*addresses, shape))
        device.download(result, self._output.address, stream)
        device.wait(stream)
        return result[: len(images)].astype(np.float32)

    def _set_shape(self, shape: tuple[int, ...]) -> None:
        """Set the context to another shape, after which graphs of the last one would run with its layout of memory."""
        if not self.engine.shapes.take(shape):
            raise UserError(self._wrong_shape(shape))
        assert self._context is not None
        self.graphs.clear()
        self._shape = ()
        contract = self.contract
        if not self._context.set_input_shape(contract.input_name, shape):
            raise DeviceError(f"{self.engine.path} does not take its shape ({self.engine.logger.last_error()})")
        made, wanted = tuple(self._context.get_tensor_shape(contract.output_name)), (shape[0], 1, *shape[2:])
        if made != wanted:  # it would write past the memory that is there for it
            raise UserError(
                f"{self.engine.path} makes {_times(made)} of {_times(shape)}, maps are {_times(wanted)}; "
                f"build it again: {self.engine.record.rebuild}"
            )
        self._shape = shape

    def _wrong_shape(self, shape: Sequence[int]) -> str:
        least, most = self.engine.shapes
        built = _times(most) if least == most else f"{_times(least)} to {_times(most)}"
        rebuild = self.engine.record.rebuild
        return f"{self.engine.path} was built for {built}, got {_times(shape)}; build it with that --shapes: {rebuild}"


def open_engine(path: str | Path, device: Device | None = None, gpu: int = 0) -> EngineSession:
    """A session on the engine at `path`.

    Args:
        device: a GPU that stays the caller's; by default a new one, which the session closes with itself.
        gpu: index of the new one, among the GPUs that are visible.

    Raises:
        UserError: there is no usable GPU, or the engine is broken or of another TensorRT or GPU.
    """
    check_engine(path)  # before the GPU is touched: says more than a failed deserialisation
    with contextlib.ExitStack() as opened:
        used = device or opened.enter_context(open_device(gpu))
        with used.current():
            session = EngineSession(Engine(path, used), owns_device=device is None)
        opened.pop_all()
        return session


def _array(block: np.ndarray, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    return block[: int(np.prod(shape)) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _load(builder: Builder) -> Any:
    """The module of an engine's builder; that it loads, `check_engine` has made sure of."""
    if builder == "tensorrt":
        import tensorrt as trt
    else:
        import tensorrt_rtx as trt
    return trt


def _logger(builder: Builder) -> Any:
    trt = _load(builder)

    class Logger(trt.ILogger):  # type: ignore[name-defined]
        """Keeps the last error, which TensorRT logs before it returns None or False; of an old driver it warns."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.error = self.warning = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.error = " ".join(message.split())
            elif severity == trt.ILogger.WARNING:
                self.warning = " ".join(message.split())

        def last_error(self) -> str:
            return self.error or self.warning or "no reason given"

    return Logger()
