"""A GPU through pycuda."""

from collections.abc import Callable
from typing import Any

import numpy as np

from sodeploy.errors import UserError
from sodeploy.runtime.gpu.device import Device, require_index
from sodeploy.runtime.gpu.driver import pop_context

_REINSTALL = "PATH=/usr/local/cuda/bin:$PATH pip install --force-reinstall --no-cache-dir pycuda"


class PycudaMemory:
    """See `sodeploy.runtime.gpu.buffers.DeviceMemory`."""

    def __init__(self, allocation: Any) -> None:
        self._allocation = allocation
        self.address = int(allocation)

    def free(self) -> None:
        if self._allocation is not None:
            self._allocation.free()
        self._allocation, self.address = None, 0


class PycudaDevice(Device):
    """See `Device`."""

    def __init__(self, index: int) -> None:
        self._cuda = _load_pycuda()
        require_index(index, self._cuda.Device.count())
        device = self._cuda.Device(index)
        super().__init__(index, device.name(), "sm{}{}".format(*device.compute_capability()))
        self._context = device.retain_primary_context()
        self._modules: list[Any] = []
        self._waits: dict[int, Any] = {}  # an event for each stream

    def memory(self) -> tuple[int, int]:
        free, total = self._cuda.mem_get_info()
        return int(free), int(total)

    def allocate(self, size: int) -> PycudaMemory:
        try:
            return PycudaMemory(self._call(self._cuda.mem_alloc, size))
        except self._cuda.MemoryError:
            self._no_room(size)

    def pinned(self, size: int) -> np.ndarray:
        try:
            array: np.ndarray = self._call(self._cuda.pagelocked_empty, size, np.uint8)
        except self._cuda.MemoryError:
            self._no_pinned_memory(size)
        return array

    def event(self) -> Any:
        return self._cuda.Event()

    def upload(self, address: int, data: np.ndarray, stream: Any) -> None:
        self._call(self._cuda.memcpy_htod_async, address, data, stream)

    def download(self, data: np.ndarray, address: int, stream: Any) -> None:
        self._call(self._cuda.memcpy_dtoh_async, data, address, stream)

    def copy(self, target: int, source: int, size: int, stream: Any) -> None:
        self._call(self._cuda.memcpy_dtod_async, target, source, size, stream)

    def clear(self, address: int, size: int, stream: Any) -> None:
        self._call(self._cuda.memset_d8_async, address, 0, size, stream)

    def load(self, code: bytes, names: list[str]) -> dict[str, Any]:
        module = self._call(self._cuda.module_from_buffer, code)
        self._modules.append(module)
        return {name: module.get_function(name) for name in names}

    def launch_function(
        self,
        function: Any,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: tuple[np.generic, ...],
        stream: Any,
    ) -> None:
        self._call(lambda: function(*arguments, grid=grid, block=block, stream=stream))

    def wait(self, stream: Any) -> None:
        if stream.handle not in self._waits:
            flags = self._cuda.event_flags
            self._waits[stream.handle] = self._cuda.Event(flags.BLOCKING_SYNC | flags.DISABLE_TIMING)
        event = self._waits[stream.handle]
        self._call(event.record, stream)
        self._call(event.synchronize)

    def _push(self) -> None:
        self._context.push()

    def _pop(self) -> None:
        self._context.pop()

    def _new_stream(self) -> Any:
        return self._cuda.Stream(1)  # CU_STREAM_NON_BLOCKING

    def _release(self) -> None:
        self._context.push()  # from another thread than the one that retained it, pycuda would not release it
        for kept in (self._idle_streams, self._waits, self._kernels, self._modules):
            kept.clear()
        self._context.detach()
        pop_context()  # pycuda forgets it, but leaves it current

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._cuda.MemoryError:
            raise
        except self._cuda.Error as error:
            self._failed(error)


def _load_pycuda() -> Any:
    try:
        import pycuda.driver as cuda
    except ImportError as error:
        raise UserError(
            f"pycuda does not fit this driver ({error}); update the driver, or install it anew: {_REINSTALL}"
        ) from None
    built = cuda.get_version()[0]
    driver = cuda.get_driver_version() // 1000
    if driver < built:
        raise UserError(
            f"pycuda was built for CUDA {built}, this NVIDIA driver supports CUDA {driver}; update the driver, or "
            f"install pycuda anew with a CUDA {driver} toolkit: {_REINSTALL}"
        )
    cuda.init()
    return cuda
