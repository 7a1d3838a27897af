"""Buffers that grow and stay: device memory with its pinned twin, and the layout of what goes up in one copy."""

from typing import Any, Protocol

import numpy as np

from sodeploy.runtime.errors import OutOfDeviceMemory

ALIGNMENT = 16  # bytes; of everything laid out here, because the kernels read images 16 bytes a time


class DeviceMemory(Protocol):
    """A piece of GPU memory, freed by `free` or with the object."""

    @property
    def address(self) -> int:
        """0 once it is freed."""

    def free(self) -> None: ...


class ComputeDevice(Protocol):
    """The operations of a GPU that pre- and post-processing need; `sodeploy.runtime.gpu.device.Device` is one.

    Everything but `allocate` and `pinned` is enqueued on the stream and returns at once.
    """

    def allocate(self, size: int) -> DeviceMemory: ...

    def pinned(self, size: int) -> np.ndarray:
        """(size,) uint8 in page-locked host memory."""

    def upload(self, address: int, data: np.ndarray, stream: Any) -> None: ...

    def download(self, data: np.ndarray, address: int, stream: Any) -> None: ...

    def clear(self, address: int, size: int, stream: Any) -> None: ...

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: tuple[np.generic, ...],
        stream: Any,
    ) -> None: ...


class Buffer:
    """Device memory of at least the size last asked for, with pinned host memory beside it where it crosses the bus.

    Attributes:
        host: the pinned memory, uint8; empty without.
        taken: how often memory has been taken. Graphs recorded before the last time hold addresses that are no more.
    """

    def __init__(self, device: ComputeDevice, pinned: bool = False) -> None:
        self._device, self._pinned = device, pinned
        self._memory: DeviceMemory | None = None
        self._size = self.taken = 0
        self.host = np.empty(0, np.uint8)

    @property
    def address(self) -> int:
        if self._memory is None:
            raise ValueError("nothing has been reserved")
        return self._memory.address

    def reserve(self, size: int) -> None:
        """Grow to at least `size` bytes; the content may be lost. Nothing may be using the buffer.

        Raises:
            OutOfDeviceMemory: they cannot be had; the buffer is then empty.
        """
        if size <= self._size:
            return
        size, grown = (-(-wanted // 4096) * 4096 for wanted in (size, self._size * 3 // 2))
        self.free()
        try:  # by half at least: images vary in size, and memory that is taken anew stops the device
            self._take(max(size, grown))
        except OutOfDeviceMemory:
            if grown <= size:
                raise
            self._take(size)

    def _take(self, size: int) -> None:
        self.taken += 1
        self._memory = self._device.allocate(size)
        if self._pinned:
            self.host = self._device.pinned(size)
        self._size = size

    def free(self) -> None:
        """Give the memory back."""
        if self._memory is not None:
            self._memory.free()
        self._memory, self._size, self.host = None, 0, np.empty(0, np.uint8)


class Layout:
    """Pieces one after another in a block of memory: first each gets its place, later all are written at once."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces: dict[int, tuple[int, np.ndarray]] = {}

    def room(self, size: int) -> int:
        """Set `size` bytes aside; returns where they begin."""
        place = self.size
        self.size = -(-(place + size) // ALIGNMENT) * ALIGNMENT
        return place

    def add(self, array: np.ndarray) -> int:
        """A place for `array`, which must stay as it is until `write`; one array added twice stands there once."""
        if id(array) not in self._pieces:
            self._pieces[id(array)] = self.room(array.nbytes), array
        return self._pieces[id(array)][0]

    def write(self, block: np.ndarray) -> None:
        """Copy the arrays to their places in `block`, (size or more,) uint8."""
        for place, array in self._pieces.values():
            np.copyto(block[place : place + array.nbytes].view(array.dtype).reshape(array.shape), array)
