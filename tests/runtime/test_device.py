"""The GPU through pycuda. Where there is no GPU, the same tests run in a second process on an imitated driver."""

import ctypes
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from emulated_device import imitated_driver, peek, poke

from sodeploy.errors import UserError
from sodeploy.runtime.errors import DeviceError, DeviceLost, OutOfDeviceMemory, OutOfPinnedMemory
from sodeploy.runtime.gpu import device as device_module
from sodeploy.runtime.gpu.bindings_device import BindingsDevice
from sodeploy.runtime.gpu.buffers import Buffer
from sodeploy.runtime.gpu.device import Device, open_device
from sodeploy.runtime.gpu.driver import driver_problem

needs_gpu = pytest.mark.skipif(driver_problem() is not None, reason=f"no GPU: {driver_problem()}")
IMITATED = "IMITATED_CUDA_KERNELS" in os.environ


@pytest.fixture
def gpu() -> Iterator[Device]:
    with open_device() as device:
        yield device


@needs_gpu
def test_memory_keeps_what_is_copied_and_cleared(gpu: Device) -> None:
    with gpu.current():
        stream, memory = gpu.stream(), gpu.allocate(1000)
        assert memory.address % 256 == 0
        poke(gpu, memory.address, np.arange(1000, dtype=np.uint8), stream)
        gpu.clear(memory.address + 10, 20, stream)
        expected = np.arange(1000, dtype=np.uint8)
        expected[10:30] = 0
        np.testing.assert_array_equal(peek(gpu, memory.address, (1000,), np.uint8, stream), expected)
        memory.free()
        memory.free()  # the second time nothing happens
        assert memory.address == 0


@needs_gpu
def test_more_memory_than_there_is_says_so_and_the_device_works_on(gpu: Device) -> None:
    with gpu.current():
        _, total = gpu.memory()
        with pytest.raises(OutOfDeviceMemory, match=r"no room for \d+ MiB more .* choose a smaller batch"):
            gpu.allocate(total + 2**20)
        buffer = Buffer(gpu)
        buffer.reserve(100)
        with pytest.raises(OutOfDeviceMemory):
            buffer.reserve(total + 2**20)
        buffer.reserve(100)
        assert buffer.address
        buffer.free()


@needs_gpu
def test_threads_share_the_device(gpu: Device) -> None:
    results: dict[int, bool] = {}

    def round_trip(number: int) -> bool:
        stream, memory = gpu.stream(), gpu.allocate(4096)
        poke(gpu, memory.address, np.full(4096, number, np.uint8), stream)
        back = peek(gpu, memory.address, (4096,), np.uint8, stream)
        memory.free()
        return bool((back == number).all())

    def work(number: int) -> None:
        with gpu.current():
            results[number] = round_trip(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(4), True)


@needs_gpu
def test_streams_are_handed_out_again(gpu: Device) -> None:
    with gpu.current():
        stream = gpu.stream()
        assert gpu.stream().handle != stream.handle
        gpu.keep(stream)
        assert gpu.stream() is stream


@needs_gpu
def test_events_measure_milliseconds(gpu: Device) -> None:
    with gpu.current():
        stream, before, after = gpu.stream(), gpu.event(), gpu.event()
        before.record(stream)
        after.record(stream)
        gpu.wait(stream)
        assert 0 <= before.time_till(after) < 1000


@needs_gpu
def test_a_recorded_graph_does_its_work_at_every_launch(gpu: Device) -> None:
    pytest.importorskip("cuda.bindings", reason="needs cuda-bindings")
    with gpu.current():
        stream, memory = gpu.stream(), gpu.allocate(16)
        graph = gpu.record(lambda: gpu.clear(memory.address, 16, stream), stream)
        for _ in range(2):
            poke(gpu, memory.address, np.ones(16, np.uint8), stream)
            assert peek(gpu, memory.address, (16,), np.uint8, stream).all()  # recording ran nothing
            graph.launch(stream)
            assert not peek(gpu, memory.address, (16,), np.uint8, stream).any()
        graph.free()
        memory.free()


@needs_gpu
def test_a_graph_that_cannot_be_recorded_is_one_line_and_the_stream_works_on(gpu: Device) -> None:
    pytest.importorskip("cuda.bindings", reason="needs cuda-bindings")
    with gpu.current():
        stream = gpu.stream()
        with pytest.raises(DeviceError, match="not permitted on an event last recorded in a capturing stream"):
            gpu.record(lambda: gpu.wait(stream), stream)
        memory = gpu.allocate(16)
        gpu.clear(memory.address, 16, stream)
        assert not peek(gpu, memory.address, (16,), np.uint8, stream).any()
        memory.free()


@needs_gpu
def test_closing_leaves_no_context_behind() -> None:
    driver, place = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
    with open_device() as device, device.current():
        memory = device.allocate(16)
        poke(device, memory.address, np.ones(16, np.uint8), device.stream())
        memory.free()
    device.close()  # the second time nothing happens
    assert driver.cuCtxGetCurrent(ctypes.byref(place)) == 0
    assert place.value is None


@needs_gpu
@pytest.mark.skipif(not IMITATED, reason="a real GPU has more page-locked memory than a test should take")
def test_page_locked_memory_that_cannot_be_had_is_no_full_gpu(gpu: Device) -> None:
    with gpu.current(), pytest.raises(OutOfPinnedMemory, match=r"the host has no 64 MiB of page-locked memory"):
        gpu.pinned(2**26)


@needs_gpu
@pytest.mark.skipif(not IMITATED, reason="a fault ends the process's GPU")
@pytest.mark.skipif("IMITATED_CUDA_FAULT" not in os.environ, reason="runs in a process of its own")
def test_a_fault_of_a_kernel_ends_the_device(gpu: Device) -> None:
    with gpu.current():
        stream, memory = gpu.stream(), gpu.allocate(4096)
        graph = gpu.record(lambda: gpu.clear(memory.address, 16, stream), stream)
        arguments = (np.uint64(memory.address), np.int32(8), np.int32(0), np.uint64(memory.address))
        gpu.launch("output_range_f32", (1, 1, 1), (256, 1, 1), arguments, stream)  # an error shows at the wait
        for _ in range(2):
            with pytest.raises(DeviceLost, match=r"is lost to this process \(CUDA_ERROR_ILLEGAL_ADDRESS\)"):
                gpu.wait(stream)
        with pytest.raises(DeviceLost):  # else a run whose batches are graphs would go on for ever
            graph.launch(stream)


class DriverCalls:
    """Replaces cuda.bindings.driver and notes the calls; `fails` names the call that does not succeed."""

    class CUresult:
        CUDA_SUCCESS = 0

    class CUstreamCaptureMode:
        CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1

    def __init__(self, fails: str = "") -> None:
        self.called: list[str] = []
        self._fails = fails

    def __getattr__(self, name: str) -> Callable[..., tuple[object, ...]]:
        def call(*_: object) -> tuple[object, ...]:
            self.called.append(name)
            return (1 if name == self._fails else 0, b"CUDA_ERROR" if name == "cuGetErrorName" else "result")

        return call


@pytest.mark.parametrize("fails", ["", "cuStreamEndCapture", "cuGraphInstantiate"])
def test_recording_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    calls, device, stream = DriverCalls(fails), object.__new__(BindingsDevice), SimpleNamespace(handle=7)
    package = SimpleNamespace(driver=calls)
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace(bindings=package))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)  # type: ignore[arg-type]
    if fails:
        with pytest.raises(DeviceError, match="CUDA_ERROR"):
            device.record(lambda: calls.called.append("work"), stream)
    else:
        graph = device.record(lambda: calls.called.append("work"), stream)
        graph.launch(stream)
        graph.free()
        assert calls.called[-2:] == ["cuGraphLaunch", "cuGraphExecDestroy"]
    assert calls.called[:3] == ["cuStreamBeginCapture", "work", "cuStreamEndCapture"]
    assert ("cuGraphDestroy" in calls.called) == (fails != "cuStreamEndCapture")


def test_a_recording_that_raises_ends_the_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, device = DriverCalls(), object.__new__(BindingsDevice)
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace(bindings=None))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=calls))  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="does not run"):
        device.record(lambda: refuse("the engine does not run"), SimpleNamespace(handle=7))
    assert calls.called == ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphDestroy"]


def refuse(reason: str) -> None:
    raise DeviceError(reason)


@needs_gpu
def test_a_gpu_that_does_not_exist() -> None:
    with pytest.raises(UserError, match="GPU 99 does not exist, there are"):
        open_device(99)


@pytest.mark.skipif(driver_problem() is None, reason="there is a GPU")
def test_without_a_driver_one_line_says_so() -> None:
    with pytest.raises(UserError, match="a GPU is needed, but no NVIDIA driver is installed"):
        open_device()


@pytest.mark.skipif("TEST_BINDING" in os.environ, reason="a binding is chosen")
def test_without_a_binding_one_line_says_how_to_install_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "driver_problem", lambda: None)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(UserError, match=r"pycuda or cuda-bindings, which is missing: pip install 'sodeploy\[cuda\]'"):
        open_device()
    with pytest.raises(UserError, match="there is no binding 'cupy' of CUDA's driver; choose pycuda or cuda-bindings"):
        open_device(binding="cupy")  # type: ignore[arg-type]


@pytest.mark.skipif("TEST_BINDING" in os.environ, reason="a binding is chosen")
@pytest.mark.parametrize("version", [(14, 0, 0), (99, 1, 0)])
def test_a_driver_older_than_pycuda_is_refused(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]) -> None:
    class OldDriver:
        get_version = staticmethod(lambda: version)
        get_driver_version = staticmethod(lambda: 13000)

    package = type(sys)("pycuda")
    package.__spec__ = ModuleSpec("pycuda", None)
    package.driver = OldDriver  # type: ignore[attr-defined]
    monkeypatch.setattr(device_module, "driver_problem", lambda: None)
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", OldDriver)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"built for CUDA {version[0]}, this NVIDIA driver supports CUDA 13"):
        open_device()


@pytest.mark.skipif(driver_problem() is None, reason="there is a driver: the tests above have run on it")
@pytest.mark.parametrize("binding", list(device_module.BINDINGS))
def test_all_of_it_on_an_imitated_driver(binding: str, tmp_path: Path, repository: Path) -> None:
    environment = imitated_driver(tmp_path, binding) | {"IMITATED_CUDA_PINNED": str(2**25)}
    if binding == "cuda-bindings":  # pycuda cannot do without them
        environment["IMITATED_CUDA_NO_DEPRECATED"] = "1"
    names = ("device", "cuda_processing", "engine_session", "graphs", "pipeline", "infer", "bench_gpu")
    # The kernels are those of the emulated device: of their own tests only the way there and back is run again.
    chosen = "not emulated and not (cuda_processing and not (pictures or buffers))"
    done = run_tests(repository, environment, [f"test_{name}.py" for name in names], chosen)
    said = done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0, said
    assert re.search(r"imitated CUDA: 0 allocations, 0 graphs, .* 0 contexts open; [1-9]\d* launches", done.stderr), (
        said
    )
    fault = environment | {"IMITATED_CUDA_FAULT": "output_range_f32:1"}
    done = run_tests(repository, fault, ["test_device.py"], "test_a_fault_of_a_kernel")
    assert "1 passed" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]


def run_tests(repository: Path, environment: dict[str, str], files: list[str], chosen: str) -> Any:
    paths = [str(Path(__file__).with_name(name)) for name in files]
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "-k", chosen, *paths]
    return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
