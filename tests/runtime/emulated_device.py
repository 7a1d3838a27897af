"""Our CUDA kernels on the CPU: the .cu files compiled by g++, behind the interface of `runtime.gpu.device.Device`.

Proves arithmetic, indices and bounds, and that the host code passes what the kernels expect; says nothing about races,
timing or a real GPU. Copies are bounds-checked here; what the kernels touch is checked where this runs under
AddressSanitizer.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imitated_cuda.build import build_driver, cuda_headers

from sodeploy.runtime.errors import DeviceLost
from sodeploy.runtime.gpu.driver import driver_problem
from sodeploy.runtime.session import OnnxRuntimeSession

COMPILE = ["g++", "-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC"]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
_HERE = Path(__file__).resolve().parent


def compile_kernels(library: Path, *flags: str) -> Path:
    """Build the kernels as the shared library `library`."""
    sources = ["-include", _HERE / "cuda_on_cpu.h", "-I", _HERE.parents[1] / "runtime/kernels", "-I", _HERE]
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
    """What is enqueued happens at once, unless the stream is being captured."""

    def __init__(self) -> None:
        self.handle = id(self)
        self.recorded: list[Callable[[], None]] | None = None

    def do(self, work: Callable[[], None]) -> None:
        if self.recorded is None:
            work()
        else:
            self.recorded.append(work)


class EmulatedEvent:
    def record(self, stream: EmulatedStream) -> None:
        stream.do(self._note)

    def _note(self) -> None:
        self._time = time.perf_counter()

    def time_till(self, later: "EmulatedEvent") -> float:
        return (later._time - self._time) * 1e3


class EmulatedGraph:
    """Does at each launch the work that was recorded, with the addresses and sizes it had then."""

    def __init__(self, work: list[Callable[[], None]]) -> None:
        self._work = work

    def launch(self, stream: EmulatedStream) -> None:
        for work in self._work:
            stream.do(work)

    def free(self) -> None:
        self._work = [lambda: pytest.fail("a graph was launched that is freed")]


class EmulatedDevice:
    """Streams do their work at once; a graph replays what was recorded; `lost` makes every call fail as CUDA does.

    Attributes:
        lost: the error that has ended the context.
        streams: by handle.
    """

    name, index = "emulated GPU", 0
    capability = "sm89"

    def __init__(self, library: Path) -> None:
        self._kernels = ctypes.CDLL(str(library))
        self._allocated: list[EmulatedMemory] = []
        self.streams: dict[int, EmulatedStream] = {}
        self.lost = ""

    def allocate(self, size: int) -> EmulatedMemory:
        self.require_alive()
        memory = EmulatedMemory(size)
        self._allocated.append(memory)
        return memory

    def pinned(self, size: int) -> np.ndarray:
        return np.empty(size, np.uint8)

    def upload(self, address: int, data: np.ndarray, stream: Any) -> None:
        target = self._view(address, data.nbytes)
        self._do(stream, lambda: np.copyto(target, data.view(np.uint8).reshape(-1)))

    def download(self, data: np.ndarray, address: int, stream: Any) -> None:
        source = self._view(address, data.nbytes)
        self._do(stream, lambda: np.copyto(data.view(np.uint8).reshape(-1), source))

    def clear(self, address: int, size: int, stream: Any) -> None:
        target = self._view(address, size)
        self._do(stream, lambda: target.fill(0))

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

        def run() -> None:
            pointers = (ctypes.c_void_p * len(values))(*[value.ctypes.data for value in values])
            getattr(self._kernels, f"cpuk_{kernel}")((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), pointers)

        self._do(stream, run)

    def stream(self) -> EmulatedStream:
        stream = EmulatedStream()
        self.streams[stream.handle] = stream
        return stream

    def keep(self, stream: EmulatedStream) -> None:
        pass

    def event(self) -> EmulatedEvent:
        return EmulatedEvent()

    def wait(self, stream: Any) -> None:
        self.require_alive()

    def current(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def record(self, enqueue: Callable[[], None], stream: EmulatedStream) -> EmulatedGraph:
        stream.recorded = work = []
        try:
            enqueue()
        finally:
            stream.recorded = None
        return EmulatedGraph(work)

    def require_alive(self) -> None:
        if self.lost:
            raise DeviceLost(f"{self.name} is lost to this process ({self.lost}); see nvidia-smi")

    def close(self) -> None:
        pass

    def __enter__(self) -> "EmulatedDevice":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of 1 GiB."""
        return 2**30 - sum(memory.size for memory in self._allocated if memory.address != 0), 2**30

    def live(self) -> int:
        """How many pieces of memory have not been freed."""
        return sum(memory.address != 0 for memory in self._allocated)

    def _do(self, stream: Any, work: Callable[[], None]) -> None:
        self.require_alive()
        stream.do(work)

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


class InOrder(OnnxRuntimeSession):
    """onnxruntime's CPU provider knows no streams: it waits for the work before its own."""

    def __init__(self, path: Path, provider: str, stream: int, gpu: int) -> None:
        super().__init__(path, "cpu")
        self._stream = stream

    def enqueue(self, *arguments: Any) -> None:
        if driver_problem() is None:
            assert ctypes.CDLL("libcuda.so.1").cuStreamSynchronize(ctypes.c_void_p(self._stream)) == 0
        super().enqueue(*arguments)


def imitated_driver(folder: Path, binding: str) -> dict[str, str]:
    """An environment in which a real binding finds an imitated driver (imitated_cuda) and kernels compiled by g++.

    The imitation keeps device memory in host memory, runs work when it is waited for, checks bounds and counts what is
    left open. It says nothing about speed, races or a real GPU.
    """
    headers = cuda_headers()
    for missing, found in {
        "g++ is not installed": shutil.which("g++"),
        "pycuda is not installed: pip install pycuda, beside CUDA's headers and a libcuda to link with, such as the "
        "toolkit's (LIBRARY_PATH=/usr/local/cuda/lib64/stubs)": binding != "pycuda" or find_spec("pycuda"),
        "cuda-bindings is not installed: pip install cuda-bindings": find_spec("cuda") and find_spec("cuda.bindings"),
        "CUDA's headers are neither in /usr/local/cuda nor in the wheel nvidia-cuda-runtime": headers,
    }.items():
        if not found:
            pytest.skip(missing)
    assert headers is not None
    return os.environ | {
        "LD_LIBRARY_PATH": f"{build_driver(folder / 'driver', headers)}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "IMITATED_CUDA_KERNELS": str(compile_kernels(folder / "kernels.so")),
        "IMITATED_CUDA_REPORT": "1",
        "TEST_BINDING": binding,
        "XDG_CACHE_HOME": str(folder),
        "OMP_NUM_THREADS": "1",
    }
