"""A GPU through cuda-bindings, NVIDIA's own Python binding: wheels, no compiler."""

import ctypes
import weakref
from typing import Any

import numpy as np

from sodeploy.errors import UserError
from sodeploy.runtime.gpu.device import Device, require_index


class BindingsMemory:
    """See `sodeploy.runtime.gpu.buffers.DeviceMemory`."""

    def __init__(self, device: "BindingsDevice", address: int) -> None:
        self.address = address
        self._free = weakref.finalize(self, device.free, address)

    def free(self) -> None:
        self._free()
        self.address = 0


class BindingsStream:
    """See `sodeploy.runtime.gpu.device.Stream`."""

    def __init__(self, handle: int) -> None:
        self.handle = handle


class BindingsEvent:
    """See `sodeploy.runtime.gpu.device.Event`."""

    def __init__(self, device: "BindingsDevice", handle: Any) -> None:
        self._device, self.handle = device, handle

    def record(self, stream: BindingsStream) -> None:
        self._device.call("cuEventRecord", self.handle, stream.handle)

    def time_till(self, later: "BindingsEvent") -> float:
        return float(self._device.call("cuEventElapsedTime", self.handle, later.handle))


class BindingsDevice(Device):
    """See `Device`."""

    def __init__(self, index: int) -> None:
        self._driver = _load_bindings()
        self.name = f"GPU {index}"  # for errors, until it is known
        require_index(index, self.call("cuDeviceGetCount"))
        self._device = self.call("cuDeviceGet", index)
        attribute = self._driver.CUdevice_attribute
        major = self.call("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, self._device)
        minor = self.call("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, self._device)
        name = self.call("cuDeviceGetName", 256, self._device).split(b"\0")[0].decode()
        super().__init__(index, name, f"sm{major}{minor}")
        self._context = self.call("cuDevicePrimaryCtxRetain", self._device)
        self._modules: list[Any] = []
        self._events: list[Any] = []
        self._streams: list[int] = []
        self._waits: dict[int, BindingsEvent] = {}  # an event for each stream
        self._pinned: list[weakref.finalize[Any, Any]] = []

    def call(self, name: str, *arguments: Any) -> Any:
        """The result of a function of the driver API, None if it has none.

        Raises:
            MemoryError: CUDA_ERROR_OUT_OF_MEMORY.
            DeviceLost: the context has ended.
            DeviceError: the call failed.
        """
        status, *values = getattr(self._driver, name)(*arguments)
        if status == self._driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise MemoryError(name)
        if status != self._driver.CUresult.CUDA_SUCCESS:
            _, text = self._driver.cuGetErrorString(status)
            self._failed(f"{name} failed: {text.decode()}")
        return values[0] if values else None

    def memory(self) -> tuple[int, int]:
        _, free, total = self._driver.cuMemGetInfo()
        return int(free), int(total)

    def allocate(self, size: int) -> BindingsMemory:
        try:
            return BindingsMemory(self, int(self.call("cuMemAlloc", size)))
        except MemoryError:
            self._no_room(size)

    def free(self, address: int) -> None:
        """Free device memory; a lost or closed device has freed it already."""
        if not self._closed:
            with self.current():
                self._driver.cuMemFree(address)

    def pinned(self, size: int) -> np.ndarray:
        try:
            address = int(self.call("cuMemHostAlloc", size, 0))
        except MemoryError:
            self._no_pinned_memory(size)
        block = (ctypes.c_uint8 * size).from_address(address)
        self._pinned.append(weakref.finalize(block, self._free_pinned, address))
        return np.ctypeslib.as_array(block)

    def event(self) -> BindingsEvent:
        return self._new_event(0)

    def upload(self, address: int, data: np.ndarray, stream: BindingsStream) -> None:
        self.call("cuMemcpyHtoDAsync", address, data.ctypes.data, data.nbytes, stream.handle)

    def download(self, data: np.ndarray, address: int, stream: BindingsStream) -> None:
        self.call("cuMemcpyDtoHAsync", data.ctypes.data, address, data.nbytes, stream.handle)

    def copy(self, target: int, source: int, size: int, stream: BindingsStream) -> None:
        self.call("cuMemcpyDtoDAsync", target, source, size, stream.handle)

    def clear(self, address: int, size: int, stream: BindingsStream) -> None:
        self.call("cuMemsetD8Async", address, 0, size, stream.handle)

    def load(self, code: bytes, names: list[str]) -> dict[str, Any]:
        module = self.call("cuModuleLoadData", code + b"\0")  # PTX is text and ends with 0
        self._modules.append(module)
        return {name: self.call("cuModuleGetFunction", module, name.encode()) for name in names}

    def launch_function(
        self,
        function: Any,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: tuple[np.generic, ...],
        stream: BindingsStream,
    ) -> None:
        values = [np.array(argument) for argument in arguments]  # the driver copies them before it returns
        places = np.array([value.ctypes.data for value in values], np.uint64)
        self.call("cuLaunchKernel", function, *grid, *block, 0, stream.handle, places.ctypes.data, 0)

    def wait(self, stream: BindingsStream) -> None:
        flags = self._driver.CUevent_flags
        if stream.handle not in self._waits:
            self._waits[stream.handle] = self._new_event(
                flags.CU_EVENT_BLOCKING_SYNC.value | flags.CU_EVENT_DISABLE_TIMING.value
            )
        event = self._waits[stream.handle]
        event.record(stream)
        self.call("cuEventSynchronize", event.handle)

    def _push(self) -> None:
        self.call("cuCtxPushCurrent", self._context)

    def _pop(self) -> None:
        self.call("cuCtxPopCurrent")

    def _new_stream(self) -> BindingsStream:
        flags = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        stream = BindingsStream(int(self.call("cuStreamCreate", flags)))
        self._streams.append(stream.handle)
        return stream

    def _new_event(self, flags: int) -> BindingsEvent:
        event = BindingsEvent(self, self.call("cuEventCreate", flags))
        self._events.append(event.handle)
        return event

    def _free_pinned(self, address: int) -> None:
        if not self._closed:
            with self.current():
                self._driver.cuMemFreeHost(address)

    def _release(self) -> None:
        with self.current():
            for free in self._pinned:
                free()
            for event in self._events:
                self._driver.cuEventDestroy(event)
            for stream in self._streams:
                self._driver.cuStreamDestroy(stream)
            for module in self._modules:
                self._driver.cuModuleUnload(module)
        self._driver.cuDevicePrimaryCtxRelease(self._device)


def _load_bindings() -> Any:
    from cuda.bindings import driver

    status = driver.cuInit(0)[0]
    if status != driver.CUresult.CUDA_SUCCESS:
        raise UserError(f"cuda-bindings do not fit this NVIDIA driver ({status}); update the driver")
    return driver
