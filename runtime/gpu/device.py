"""One NVIDIA GPU through pycuda: memory, streams, events, our kernels, CUDA graphs.

pycuda works on the device's primary context, the one that TensorRT, onnxruntime and torch use too; a context of our
own would not see their memory. Every thread that touches the device does so within `with device.current():`.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sodeploy.errors import UserError
from sodeploy.runtime.errors import DeviceError, OutOfDeviceMemory
from sodeploy.runtime.gpu.driver import driver_problem
from sodeploy.runtime.gpu.kernels import MODULES, cubin, kernel_names

_INSTALL = (
    "pip install 'sodeploy[tensorrt]' (pycuda is compiled on installation: CUDA's nvcc must be on PATH, for example "
    "PATH=/usr/local/cuda/bin:$PATH)"
)


class Memory:
    """A piece of device memory, freed by `free` or with the object."""

    def __init__(self, allocation: Any) -> None:
        self._allocation = allocation
        self.address = int(allocation)

    def free(self) -> None:
        if self._allocation is not None:
            self._allocation.free()
        self._allocation, self.address = None, 0


class Graph:
    """Work recorded once and launched as one; it reads and writes the addresses it was recorded with."""

    def __init__(self, driver: Any, executable: Any) -> None:
        self._driver, self._executable = driver, executable

    def launch(self, stream: Any) -> None:
        _check(self._driver, self._driver.cuGraphLaunch(self._executable, stream.handle))

    def free(self) -> None:
        if self._executable is not None:
            self._driver.cuGraphExecDestroy(self._executable)
        self._executable = None


class Device:
    """A GPU with its primary context retained until `close`.

    Attributes:
        index: among the visible GPUs.
        name: the product's, for example "NVIDIA H200".
        capability: compute capability, for example "sm90".
    """

    def __init__(self, index: int = 0) -> None:
        """
        Args:
            index: among the GPUs that CUDA_VISIBLE_DEVICES leaves visible.

        Raises:
            UserError: no driver, one too old for the installed pycuda, no pycuda, or no such GPU.
        """
        self._cuda = _load_pycuda()
        count = self._cuda.Device.count()
        if not 0 <= index < count:
            raise UserError(f"GPU {index} does not exist, there are {count}; see nvidia-smi and CUDA_VISIBLE_DEVICES")
        device = self._cuda.Device(index)
        self.index = index
        self.name: str = device.name()
        self.capability = "sm{}{}".format(*device.compute_capability())
        self._context = device.retain_primary_context()
        self._modules: list[Any] = []
        self._kernels: dict[str, Any] = {}
        self._loading = threading.Lock()
        self._idle_streams: list[Any] = []

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the device current in this thread; may be nested."""
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the GPU's memory, whoever holds the rest."""
        free, total = self._cuda.mem_get_info()
        return int(free), int(total)

    def allocate(self, size: int) -> Memory:
        """`size` bytes of device memory, aligned to 256.

        Raises:
            OutOfDeviceMemory: they cannot be had.
        """
        return Memory(self._call(size, self._cuda.mem_alloc, size))

    def pinned(self, size: int) -> np.ndarray:
        """(size,) uint8 of page-locked host memory, from and to which copies run beside other work.

        Raises:
            OutOfDeviceMemory: they cannot be had.
        """
        array: np.ndarray = self._call(size, self._cuda.pagelocked_empty, size, np.uint8)
        return array

    def stream(self) -> Any:
        """A stream that does not wait for the default stream; give it to `keep` when it is no longer needed.

        pycuda destroys a stream when its last reference goes, which may be in a thread where the device is not current,
        and then it leaks. So streams stay with the device and are handed out again.
        """
        return self._idle_streams.pop() if self._idle_streams else self._cuda.Stream(1)  # CU_STREAM_NON_BLOCKING

    def keep(self, stream: Any) -> None:
        """Take back an idle stream."""
        self._idle_streams.append(stream)

    def event(self) -> Any:
        """An event that keeps the time: `record(stream)`, then after synchronising `time_till(later)` in ms."""
        return self._cuda.Event()

    def upload(self, address: int, data: np.ndarray, stream: Any) -> None:
        """Enqueue a copy to the device; `data` must stay as it is until it has run."""
        self._call(0, self._cuda.memcpy_htod_async, address, data, stream)

    def download(self, data: np.ndarray, address: int, stream: Any) -> None:
        """Enqueue a copy from the device into `data`."""
        self._call(0, self._cuda.memcpy_dtoh_async, data, address, stream)

    def copy(self, target: int, source: int, size: int, stream: Any) -> None:
        """Enqueue a copy of `size` bytes within the device."""
        self._call(0, self._cuda.memcpy_dtod_async, target, source, size, stream)

    def clear(self, address: int, size: int, stream: Any) -> None:
        """Enqueue the zeroing of `size` bytes."""
        self._call(0, self._cuda.memset_d8_async, address, 0, size, stream)

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
                self._load_kernels()
        function = self._kernels[kernel]
        self._call(0, lambda: function(*arguments, grid=grid, block=block, stream=stream))

    def wait(self, stream: Any) -> None:
        """Block until everything enqueued on `stream` has run.

        Raises:
            DeviceError: some of it failed.
        """
        self._call(0, stream.synchronize)

    def record(self, enqueue: Callable[[], None], stream: Any) -> Graph:
        """Capture the work that `enqueue` puts on `stream` as a CUDA graph; nothing runs yet.

        Raises:
            UserError: cuda-bindings is not installed.
            DeviceError: something in it cannot be recorded.
        """
        try:
            from cuda.bindings import driver
        except ImportError:
            raise UserError("CUDA graphs need cuda-bindings: pip install 'sodeploy[tensorrt]'") from None

        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _check(driver, driver.cuStreamBeginCapture(stream.handle, mode))
        try:
            enqueue()
        finally:  # a stream left capturing could not be used any more
            ended = driver.cuStreamEndCapture(stream.handle)
        graph = _check(driver, ended)
        try:
            return Graph(driver, _check(driver, driver.cuGraphInstantiate(graph, 0)))
        finally:
            driver.cuGraphDestroy(graph)

    def close(self) -> None:
        """Let the primary context go; memory, streams and kernels of this object must not be used any more."""
        with self.current():
            self._idle_streams.clear()
            self._kernels.clear()
            self._modules.clear()
        self._context.detach()

    def _call(self, size: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the driver, which may also report what went wrong with earlier work; `size` bytes are asked for."""
        try:
            return function(*arguments)
        except self._cuda.MemoryError:
            free, total = self.memory()
            raise OutOfDeviceMemory(
                f"{self.name} has no room for {size / 2**20:.0f} MiB more ({free / 2**20:.0f} of "
                f"{total / 2**20:.0f} MiB free); choose a smaller batch, or end other processes on it"
            ) from None
        except self._cuda.Error as error:
            raise DeviceError(f"{self.name} failed: {error}; see nvidia-smi and the kernel log (dmesg)") from None

    def _load_kernels(self) -> None:
        for name in MODULES:
            module = self._cuda.module_from_buffer(cubin(name, self.capability))
            self._modules.append(module)
            self._kernels |= {kernel: module.get_function(kernel) for kernel in kernel_names(name)}


def _load_pycuda() -> Any:
    problem = driver_problem()
    if problem:
        raise UserError(f"a GPU is needed, but {problem}")
    try:
        import pycuda.driver as cuda
    except ImportError as error:
        if "pycuda" in str(error):
            raise UserError(f"the GPU is used through pycuda, which is not installed: {_INSTALL}") from None
        raise UserError(
            f"pycuda does not fit this driver ({error}); update the driver, or install it anew: {_INSTALL}"
        ) from None
    built = cuda.get_version()[0]
    driver = cuda.get_driver_version() // 1000
    if driver < built:
        raise UserError(
            f"pycuda was built for CUDA {built}, this NVIDIA driver supports CUDA {driver}; update the driver, or "
            f"install pycuda anew with a CUDA {driver} toolkit"
        )
    cuda.init()
    return cuda


def _check(driver: Any, result: tuple[Any, ...]) -> Any:
    """The results of a call of cuda.bindings.driver, if it succeeded."""
    status, *values = result
    if status != driver.CUresult.CUDA_SUCCESS:
        _, name = driver.cuGetErrorName(status)
        raise DeviceError(f"the GPU refuses a CUDA graph ({name.decode()})")
    return values[0] if values else None
