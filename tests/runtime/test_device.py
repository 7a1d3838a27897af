"""The GPU through pycuda. Where there is no GPU, the same tests run in a second process on an imitated driver."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from emulated_device import imitated_driver, peek, poke
from research_data import ResearchFile

from sodeploy.errors import UserError
from sodeploy.runtime.errors import DeviceError, OutOfDeviceMemory
from sodeploy.runtime.gpu import device as device_module
from sodeploy.runtime.gpu.buffers import Buffer
from sodeploy.runtime.gpu.device import Device
from sodeploy.runtime.gpu.driver import driver_problem

needs_gpu = pytest.mark.skipif(driver_problem() is not None, reason=f"no GPU: {driver_problem()}")
IMITATED = "FAKECUDA_KERNELS" in os.environ


@pytest.fixture
def gpu() -> Iterator[Device]:
    device = Device()
    yield device
    device.close()


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
@pytest.mark.skipif(IMITATED, reason="the imitated driver cannot record graphs")
def test_a_recorded_graph_does_its_work_at_every_launch(gpu: Device) -> None:
    with gpu.current():
        stream, memory = gpu.stream(), gpu.allocate(16)
        graph = gpu.record(lambda: gpu.clear(memory.address, 16, stream), stream)
        for _ in range(2):
            poke(gpu, memory.address, np.ones(16, np.uint8), stream)
            graph.launch(stream)
            assert not peek(gpu, memory.address, (16,), np.uint8, stream).any()
        graph.free()
        memory.free()


@needs_gpu
@pytest.mark.skipif(not IMITATED, reason="a real driver records graphs")
def test_a_graph_that_cannot_be_recorded_is_one_line(gpu: Device) -> None:
    pytest.importorskip("cuda.bindings", reason="needs cuda-bindings")
    with gpu.current(), pytest.raises(DeviceError, match="CUDA_ERROR_NOT_SUPPORTED"):
        gpu.record(lambda: None, gpu.stream())


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
    calls, device, stream = DriverCalls(fails), object.__new__(Device), SimpleNamespace(handle=7)
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
    calls, device = DriverCalls(), object.__new__(Device)
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace(bindings=None))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=calls))  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="does not run"):
        device.record(lambda: refuse("the engine does not run"), SimpleNamespace(handle=7))
    assert calls.called == ["cuStreamBeginCapture", "cuStreamEndCapture"]


def refuse(reason: str) -> None:
    raise DeviceError(reason)


@needs_gpu
def test_a_gpu_that_does_not_exist() -> None:
    with pytest.raises(UserError, match="GPU 99 does not exist, there are"):
        Device(99)


@pytest.mark.skipif(driver_problem() is None, reason="there is a GPU")
def test_without_a_driver_one_line_says_so() -> None:
    with pytest.raises(UserError, match="a GPU is needed, but no NVIDIA driver is installed"):
        Device()


def test_without_pycuda_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "driver_problem", lambda: None)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(UserError, match=r"pycuda, which is not installed: pip install 'sodeploy\[tensorrt\]'"):
        Device()


@pytest.mark.parametrize("version", [(14, 0, 0), (99, 1, 0)])
def test_a_driver_older_than_pycuda_is_refused(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]) -> None:
    class OldDriver:
        get_version = staticmethod(lambda: version)
        get_driver_version = staticmethod(lambda: 13000)

    package = type(sys)("pycuda")
    package.driver = OldDriver  # type: ignore[attr-defined]
    monkeypatch.setattr(device_module, "driver_problem", lambda: None)
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", OldDriver)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"built for CUDA {version[0]}, this NVIDIA driver supports CUDA 13"):
        Device()


@pytest.mark.skipif(driver_problem() is None, reason="there is a driver: the tests above have run on it")
def test_all_of_it_on_an_imitated_driver(tmp_path: Path, research_file: ResearchFile, repository: Path) -> None:
    environment = imitated_driver(tmp_path, research_file)
    names = ("device", "cuda_processing", "engine_session", "pipeline", "infer", "bench_gpu")
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in names]
    command = [sys.executable, "-m", "pytest", "-x", "-o", "addopts=", "-p", "no:cacheprovider", "-k", "not emulated"]
    done = subprocess.run([*command, *files], cwd=repository, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"fakecuda: 0 allocations live .* [1-9]\d* launches", done.stderr), done.stderr[-300:]
