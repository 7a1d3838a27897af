"""One NVIDIA GPU: memory, streams, events, our kernels, CUDA graphs.

Two Python bindings of CUDA's driver carry it (`BINDINGS`). Both work on the device's primary context, the one that
TensorRT, onnxruntime and torch use too; a context of our own would not see their memory. Every thread that touches the
device does so within `with device.current():`.
"""

import abc
import contextlib
import importlib
import importlib.util
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Literal, NoReturn, Protocol, get_args

import numpy as np

from sodeploy.errors import UserError
from sodeploy.runtime.errors import DeviceError, DeviceLost, OutOfDeviceMemory, OutOfPinnedMemory
from sodeploy.runtime.gpu.buffers import DeviceMemory
from sodeploy.runtime.gpu.driver import driver_problem, lost_context
from sodeploy.runtime.gpu.kernels import MODULES, kernel_names, machine_code

BindingName = Literal["pycuda", "cuda-bindings"]
# Where the class of each is, and the module that must be installed; the first that is installed is the default.
BINDINGS: dict[BindingName, tuple[str, str]] = {
    "pycuda": ("sodeploy.runtime.gpu.pycuda_device.PycudaDevice", "pycuda"),
    "cuda-bindings": ("sodeploy.runtime.gpu.bindings_device.BindingsDevice", "cuda.bindings"),
}
_INSTALL = (
    "pip install 'sodeploy[cuda]' (wheels), or pip install pycuda (compiled on installation: CUDA's nvcc must be on "
    "PATH, for example PATH=/usr/local/cuda/bin:$PATH)"
)


class Stream(Protocol):
    """An order of work on the device.

    Attributes:
        handle: CUDA's, for other libraries.
    """

    @property
    def handle(self) -> int: ...


class Event(Protocol):
    """A point in a stream's work that keeps its time."""

    def record(self, stream: Any) -> Any: ...

    def time_till(self, later: Any) -> float:
        """Milliseconds to a later event; both must have been reached."""


class Graph:
    """Work recorded once and launched as one; it reads and writes the addresses it was recorded with."""

    def __init__(self, device: "Device", driver: Any, executable: Any) -> None:
        self._device, self._driver, self._executable = device, driver, executable

    def launch(self, stream: Stream) -> None:
        """
        Raises:
            DeviceLost: the context has ended.
            DeviceError: the GPU refuses.
        """
        try:
            _check_call(self._driver, self._driver.cuGraphLaunch(self._executable, stream.handle))
        except DeviceError:
            self._device.require_alive()
            raise

    def free(self) -> None:
        if self._executable is not None:
            self._driver.cuGraphExecDestroy(self._executable)
        self._executable = None


class Device(abc.ABC):
    """A GPU with its primary context retained until `close`; a context manager that closes it.

    Attributes:
        index: among the GPUs that CUDA_VISIBLE_DEVICES leaves visible.
        name: the product's, for example "NVIDIA H200".
        capability: compute capability, for example "sm90".
    """

    def __init__(self, index: int, name: str, capability: str) -> None:
        self.index, self.name, self.capability = index, name, capability
        self._kernels: dict[str, Any] = {}
        self._loading = threading.Lock()
        self._idle_streams: list[Any] = []
        self._closed = False

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the device current in this thread; may be nested."""
        self._push()
        try:
            yield
        finally:
            self._pop()

    @abc.abstractmethod
    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the GPU's memory, whoever holds the rest."""

    @abc.abstractmethod
    def allocate(self, size: int) -> DeviceMemory:
        """`size` bytes of device memory, aligned to 256.

        Raises:
            OutOfDeviceMemory: they cannot be had.
        """

    @abc.abstractmethod
    def pinned(self, size: int) -> np.ndarray:
        """(size,) uint8 of page-locked host memory, from and to which copies run beside other work.

        Raises:
            OutOfPinnedMemory: they cannot be had.
        """

    def stream(self) -> Any:
        """A stream that does not wait for the default stream; give it to `keep` when it is no longer needed.

        pycuda destroys a stream when its last reference goes, which may be in a thread where the device is not current,
        and then it leaks. So streams stay with the device and are handed out again.
        """
        return self._idle_streams.pop() if self._idle_streams else self._new_stream()

    def keep(self, stream: Any) -> None:
        """Take back an idle stream."""
        self._idle_streams.append(stream)

    @abc.abstractmethod
    def event(self) -> Event:
        """An event: `record(stream)`, then after a wait for the stream `time_till(later)` in ms."""

    @abc.abstractmethod
    def upload(self, address: int, data: np.ndarray, stream: Any) -> None:
        """Enqueue a copy to the device; `data` must stay as it is until it has run."""

    @abc.abstractmethod
    def download(self, data: np.ndarray, address: int, stream: Any) -> None:
        """Enqueue a copy from the device into `data`."""

    @abc.abstractmethod
    def copy(self, target: int, source: int, size: int, stream: Any) -> None:
        """Enqueue a copy of `size` bytes within the device."""

    @abc.abstractmethod
    def clear(self, address: int, size: int, stream: Any) -> None:
        """Enqueue the zeroing of `size` bytes."""

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: tuple[np.generic, ...],
        stream: Any,
    ) -> None:
        """Enqueue a kernel of kernels/*.cu by its name; addresses are np.uint64, numbers of their C type.

        Raises:
            UserError: the kernels cannot be compiled for this GPU.
        """
        with self._loading:
            if kernel not in self._kernels:
                for module in MODULES:
                    self._kernels |= self.load(machine_code(module, self.capability), kernel_names(module))
        self.launch_function(self._kernels[kernel], grid, block, arguments, stream)

    @abc.abstractmethod
    def load(self, code: bytes, names: list[str]) -> dict[str, Any]:
        """Functions of a module, a cubin or PTX, by name; they live as long as the device."""

    @abc.abstractmethod
    def launch_function(
        self,
        function: Any,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: tuple[np.generic, ...],
        stream: Any,
    ) -> None:
        """As `launch`, with a function that `load` returned."""

    @abc.abstractmethod
    def wait(self, stream: Any) -> None:
        """Block until everything enqueued on `stream` has run; the thread sleeps meanwhile.

        Raises:
            DeviceLost: the context has ended.
            DeviceError: some of it failed.
        """

    def record(self, enqueue: Callable[[], None], stream: Any) -> Graph:
        """Capture the work that `enqueue` puts on `stream` as a CUDA graph; nothing runs yet.

        Raises:
            UserError: cuda-bindings is not installed; pycuda cannot capture.
            DeviceError: something in it cannot be recorded.
        """
        try:
            from cuda.bindings import driver
        except ImportError:
            raise UserError("CUDA graphs need cuda-bindings: pip install 'sodeploy[cuda]'") from None

        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _check_call(driver, driver.cuStreamBeginCapture(stream.handle, mode))
        try:
            enqueue()
        except BaseException:
            ended = driver.cuStreamEndCapture(stream.handle)  # a stream left capturing could not be used any more
            if ended[0] == driver.CUresult.CUDA_SUCCESS:
                driver.cuGraphDestroy(ended[1])
            raise
        graph = _check_call(driver, driver.cuStreamEndCapture(stream.handle))
        try:
            return Graph(self, driver, _check_call(driver, driver.cuGraphInstantiate(graph, 0)))
        finally:
            driver.cuGraphDestroy(graph)

    def require_alive(self) -> None:
        """
        Raises:
            DeviceLost: the context, which must be current, has ended.
        """
        if reason := lost_context():
            raise DeviceLost(
                f"{self.name} is lost to this process ({reason}); see nvidia-smi and the kernel log (dmesg), then "
                "start again"
            )

    def close(self) -> None:
        """Let the primary context go; memory, streams and kernels of this object must not be used any more."""
        if not self._closed:
            try:
                self._release()
            finally:
                self._closed = True

    def __enter__(self) -> "Device":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abc.abstractmethod
    def _push(self) -> None: ...

    @abc.abstractmethod
    def _pop(self) -> None: ...

    @abc.abstractmethod
    def _new_stream(self) -> Any: ...

    @abc.abstractmethod
    def _release(self) -> None:
        """Free streams, events and kernels, and release the primary context."""

    def _failed(self, reason: object) -> NoReturn:
        """Raise for a call that failed, or that reports the failure of earlier work."""
        self.require_alive()
        raise DeviceError(f"{self.name} failed: {reason}; see nvidia-smi and the kernel log (dmesg)")

    def _no_room(self, size: int) -> NoReturn:
        free, total = self.memory()
        raise OutOfDeviceMemory(
            f"{self.name} has no room for {size / 2**20:.0f} MiB more ({free / 2**20:.0f} of {total / 2**20:.0f} MiB "
            "free); choose a smaller batch, or end other processes on it"
        )

    def _no_pinned_memory(self, size: int) -> NoReturn:
        raise OutOfPinnedMemory(
            f"the host has no {size / 2**20:.0f} MiB of page-locked memory for copies to {self.name}; free memory, "
            "raise the limit (ulimit -l), or choose a smaller batch"
        )


def open_device(index: int = 0, binding: BindingName | None = None) -> Device:
    """A GPU, through a binding of CUDA's driver.

    Args:
        index: among the GPUs that CUDA_VISIBLE_DEVICES leaves visible.
        binding: the first of `BINDINGS` that is installed by default.

    Raises:
        UserError: no driver, one too old for the binding, no binding, or no such GPU.
    """
    if problem := driver_problem():
        raise UserError(f"a GPU is needed, but {problem}")
    if binding is not None and binding not in BINDINGS:
        raise UserError(
            f"there is no binding {binding!r} of CUDA's driver; choose {' or '.join(get_args(BindingName))}"
        )
    installed = installed_bindings()
    name = binding or next(iter(installed), None)
    if name not in installed:
        raise UserError(f"the GPU is used through {binding or 'pycuda or cuda-bindings'}, which is missing: {_INSTALL}")
    package, kind = BINDINGS[name][0].rsplit(".", 1)
    opened: Device = getattr(importlib.import_module(package), kind)(index)
    return opened


def installed_bindings() -> list[BindingName]:
    """The bindings of CUDA's driver that are installed; the first is the default."""
    return [name for name, (_, module) in BINDINGS.items() if _installed(module)]


def require_index(index: int, count: int) -> None:
    """
    Raises:
        UserError: there is no GPU `index` among `count`.
    """
    if not 0 <= index < count:
        raise UserError(f"GPU {index} does not exist, there are {count}; see nvidia-smi and CUDA_VISIBLE_DEVICES")


def _check_call(driver: Any, result: tuple[Any, ...]) -> Any:
    """The result of a call of cuda.bindings.driver, if it succeeded.

    Raises:
        DeviceError: it did not.
    """
    status, *values = result
    if status != driver.CUresult.CUDA_SUCCESS:
        _, name = driver.cuGetErrorName(status)
        raise DeviceError(f"the GPU refuses a CUDA graph ({name.decode()})")
    return values[0] if values else None


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # its parent package is missing, or was set to None
        return False
