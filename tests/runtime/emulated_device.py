"""Our CUDA kernels on the CPU: the .cu files compiled by g++, behind the interface of `runtime.gpu.device.Device`.

Proves arithmetic, indices and bounds, and that the host code passes what the kernels expect; says nothing about races,
timing or a real GPU. Copies are bounds-checked here; what the kernels touch is checked where this runs under
AddressSanitizer.
"""

import contextlib
import ctypes
import importlib.util
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from research_data import ResearchFile

COMPILE = ["g++", "-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC"]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
_HERE = Path(__file__).resolve().parent


def compile_kernels(library: Path, *flags: str) -> Path:
    """Build the kernels as the shared library `library`."""
    sources = ["-include", _HERE / "cuda_on_cpu.h", "-I", _HERE.parents[1] / "runtime/kernels"]
    command = [*COMPILE, *WARNINGS, *flags, *sources, "-x", "c++", _HERE / "kernels_on_cpu.cpp", "-o", library]
    subprocess.run(list(map(str, command)), check=True)
    return library


class EmulatedMemory:
    """Host memory standing in for device memory: uninitialised as there, 16-byte aligned, and no longer than asked."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._block = np.full(size + 15, 0xCB, np.uint8)
        self.address = -(-self._block.ctypes.data // 16) * 16

    def array(self) -> np.ndarray:
        """All of it, (size,) uint8."""
        offset = self.address - self._block.ctypes.data
        return self._block[offset : offset + self.size]

    def free(self) -> None:
        self.address = 0


class EmulatedStream:
    handle = 1


class EmulatedEvent:
    def record(self, stream: Any) -> None:
        self._time = time.perf_counter()

    def time_till(self, later: "EmulatedEvent") -> float:
        return (later._time - self._time) * 1e3


class EmulatedGraph:
    """Does again at each launch what it was recorded from."""

    def __init__(self, enqueue: Callable[[], None]) -> None:
        self._enqueue = enqueue

    def launch(self, stream: Any) -> None:
        self._enqueue()

    def free(self) -> None:
        pass


class EmulatedDevice:
    """Everything has happened when a call returns; streams are ignored."""

    index = 0

    def __init__(self, library: Path) -> None:
        self._kernels = ctypes.CDLL(str(library))
        self._allocated: list[EmulatedMemory] = []

    def allocate(self, size: int) -> EmulatedMemory:
        memory = EmulatedMemory(size)
        self._allocated.append(memory)
        return memory

    def pinned(self, size: int) -> np.ndarray:
        return np.empty(size, np.uint8)

    def upload(self, address: int, data: np.ndarray, stream: Any) -> None:
        self._view(address, data.nbytes)[:] = data.view(np.uint8).reshape(-1)

    def download(self, data: np.ndarray, address: int, stream: Any) -> None:
        data.view(np.uint8).reshape(-1)[:] = self._view(address, data.nbytes)

    def clear(self, address: int, size: int, stream: Any) -> None:
        self._view(address, size)[:] = 0

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: tuple[np.generic, ...],
        stream: Any,
    ) -> None:
        assert max(grid[1:]) <= 65535
        assert np.prod(block) <= 1024
        values = [np.array(value) for value in arguments]
        pointers = (ctypes.c_void_p * len(values))(*[value.ctypes.data for value in values])
        getattr(self._kernels, f"cpuk_{kernel}")((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), pointers)

    name = "emulated GPU"

    def stream(self) -> "EmulatedStream":
        return EmulatedStream()

    def keep(self, stream: "EmulatedStream") -> None:
        pass

    def event(self) -> "EmulatedEvent":
        return EmulatedEvent()

    def wait(self, stream: Any) -> None:
        pass

    def current(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def record(self, enqueue: Callable[[], None], stream: Any) -> "EmulatedGraph":
        return EmulatedGraph(enqueue)

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of 1 GiB."""
        return 2**30 - sum(memory.size for memory in self._allocated if memory.address != 0), 2**30

    def live(self) -> int:
        """How many pieces of memory have not been freed."""
        return sum(memory.address != 0 for memory in self._allocated)

    def _view(self, address: int, size: int) -> np.ndarray:
        inside = [m for m in self._allocated if m.address <= address and address + size <= m.address + m.size]
        assert inside, f"{size} bytes at {address:#x} are outside of what is allocated"
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def peek(device: Any, address: int, shape: tuple[int, ...], dtype: type, stream: Any) -> np.ndarray:
    """An array in device memory, once everything on `stream` has run."""
    data = np.empty(shape, dtype)
    device.download(data, address, stream)
    device.wait(stream)
    return data


def poke(device: Any, address: int, data: np.ndarray, stream: Any) -> None:
    """Put an array into device memory."""
    device.upload(address, np.ascontiguousarray(data), stream)
    device.wait(stream)


def imitated_driver(folder: Path, research_file: ResearchFile) -> dict[str, str]:
    """An environment in which real pycuda finds an imitated driver (fakecuda) and kernels compiled by g++.

    The imitation keeps device memory in host memory, checks bounds and counts allocations that are not freed. It says
    nothing about speed, races or a real GPU.
    """
    for missing, found in {
        "g++ is not installed": shutil.which("g++"),
        "pycuda is not installed: pip install pycuda, beside CUDA's headers and a libcuda to link with, such as the "
        "toolkit's (LIBRARY_PATH=/usr/local/cuda/lib64/stubs)": importlib.util.find_spec("pycuda"),
        "CUDA's headers are not in /usr/local/cuda": Path("/usr/local/cuda/include/cuda.h").is_file(),
    }.items():
        if not found:
            pytest.skip(missing)
    subprocess.run(
        ["sh", research_file("tools/fakecuda") / "build.sh", folder / "driver"], check=True, capture_output=True
    )
    return os.environ | {
        "LD_LIBRARY_PATH": f"{folder / 'driver'}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "FAKECUDA_KERNELS": str(compile_kernels(folder / "kernels.so")),
        "FAKECUDA_REPORT": "1",
        "XDG_CACHE_HOME": str(folder),
        "OMP_NUM_THREADS": "1",
    }
