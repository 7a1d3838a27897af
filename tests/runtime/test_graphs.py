"""CUDA graphs: what is recorded and when, of an engine's runs and of a lane's whole batches."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_engine_session import batch, expected, imitation, save_engine  # noqa: F401  (fixtures)

from sodeploy.runtime.composition import Style
from sodeploy.runtime.errors import DeviceError
from sodeploy.runtime.gpu import graphs as graphs_module
from sodeploy.runtime.gpu.engine_session import EngineSession, open_engine
from sodeploy.runtime.gpu.graphs import Graphs
from sodeploy.runtime.gpu.pipeline import Lane, pictures

# ruff: noqa: F811 (fixtures)
SaveEngine = Callable[..., Path]
SAME, OTHER, LARGE = (40, 60), (33, 17), (140, 200)


@pytest.fixture
def session(device: Any, save_engine: SaveEngine) -> Iterator[EngineSession]:
    with open_engine(save_engine(), device) as opened:
        yield opened


def test_a_run_is_recorded_once_it_has_run(
    device: Any, save_engine: SaveEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, recorded = type(device).record, []

    def noting(self: Any, enqueue: Callable[[], None], stream: Any) -> Any:
        recorded.append(enqueue)
        return record(self, enqueue, stream)

    monkeypatch.setattr(type(device), "record", noting)
    with open_engine(save_engine(), device) as session:
        for number in range(5):  # the first run is a plain one: TensorRT finishes its preparations in it
            np.testing.assert_allclose(session.infer(batch(2, number)), expected(batch(2, number)), atol=1e-6)
        assert len(recorded) == 1
        for _ in range(2):  # the last image runs as a whole batch, so that the graph stays
            np.testing.assert_allclose(session.infer(batch(9)), expected(batch(9)), atol=1e-6)
        assert len(recorded) == 2


def test_an_engine_that_cannot_be_recorded_runs_without(
    device: Any, save_engine: SaveEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise DeviceError("the GPU refuses a CUDA graph (CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)")

    monkeypatch.setattr(type(device), "record", refuse)
    with open_engine(save_engine(), device) as session:
        for _ in range(7):
            np.testing.assert_allclose(session.infer(batch(2)), expected(batch(2)), atol=1e-6)
    assert capsys.readouterr().err.count("runs without CUDA graphs") == 1


def test_one_failed_capture_does_not_end_graphs(
    device: Any, save_engine: SaveEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record, attempts = type(device).record, []

    def fail_once(self: Any, enqueue: Callable[[], None], stream: Any) -> Any:
        attempts.append(enqueue)
        if len(attempts) == 1:
            raise DeviceError("the GPU refuses a CUDA graph (CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)")
        return record(self, enqueue, stream)

    monkeypatch.setattr(type(device), "record", fail_once)
    with open_engine(save_engine(), device) as session:
        for _ in range(5):
            np.testing.assert_allclose(session.infer(batch(2)), expected(batch(2)), atol=1e-6)
    assert len(attempts) == 2
    assert not capsys.readouterr().err


class Recorder:
    """A device whose graphs are counted; what a graph was recorded from runs at each launch."""

    def __init__(self) -> None:
        self.recorded, self.open = 0, 0

    def record(self, enqueue: Callable[[], None], stream: Any) -> "Recorder.Graph":
        self.recorded, self.open = self.recorded + 1, self.open + 1
        return Recorder.Graph(self)

    def wait(self, stream: Any) -> None:
        pass

    class Graph:
        def __init__(self, recorder: "Recorder") -> None:
            self._recorder, self.freed = recorder, False

        def launch(self, stream: Any) -> None:
            assert not self.freed

        def free(self) -> None:
            assert not self.freed
            self.freed = True
            self._recorder.open -= 1


def test_the_number_of_graphs_is_bounded_and_the_one_unused_for_longest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs_module, "_MOST_GRAPHS", 2)
    monkeypatch.setattr(graphs_module, "_OLD", 4)
    device, eager = Recorder(), []
    graphs = Graphs(device, None, "tiny")  # type: ignore[arg-type]

    def run(*keys: str) -> str:
        """The keys that did not run as a graph."""
        eager.clear()
        for key in keys:
            graphs.run(key, lambda key=key: eager.append(key))
        return "".join(eager)

    assert run(*"aabb") == "aabb"
    assert run(*"ab") == ""
    assert run(*"cccabcabcabc") == "cccccc"  # graphs that are in use stay, instead of each being freed before its use
    assert (device.recorded, device.open) == (2, 2)
    assert run(*"bbbbbcc") == "c"  # a was not used for long: it goes, at the first c
    assert run(*"abc") == "a"
    assert (len(graphs), device.recorded, device.open) == (2, 3, 2)
    graphs.clear()
    assert run(*"ccc") == "cc"  # nothing of before counts
    graphs.clear()
    assert device.open == 0


def images_of(sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    return [np.random.default_rng(n).integers(0, 256, (*size, 3), dtype=np.uint8) for n, size in enumerate(sizes)]


def made_of(session: EngineSession, sizes: list[tuple[int, int]], style: Style = "map") -> list[np.ndarray]:
    images = images_of(sizes)
    found = pictures(session, range(len(images)), images.__getitem__, batch=2, lanes=1, readers=1, style=style)
    return [picture for _, picture in found]  # type: ignore[misc]


@pytest.fixture
def launched(device: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that the host launches itself, one after another; a graph's are not among them."""
    names: list[str] = []
    launch = type(device).launch

    def noting(self: Any, kernel: str, *rest: Any) -> None:
        names.append(kernel)
        launch(self, kernel, *rest)

    monkeypatch.setattr(type(device), "launch", noting)
    return names


def test_batches_of_the_same_sizes_are_one_graph(session: EngineSession, launched: list[str]) -> None:
    made_of(session, [SAME] * 4)  # two batches, of which the second is recorded too
    first = [name for name in launched if not name.startswith("imitated")]
    assert len(first) == 3 * 3
    launched.clear()
    made_of(session, [SAME] * 20)
    assert [name for name in launched if not name.startswith("imitated")] == first


@pytest.mark.parametrize("style", ["map", "rgba"])
@pytest.mark.parametrize(
    "sizes",
    [
        [SAME] * 9,
        [SAME, OTHER] * 5 + [OTHER, SAME] * 3,
        [SAME] * 6 + [LARGE] * 8 + [SAME] * 8,  # buffers grow: graphs of before would write into freed memory
        [SAME, OTHER, OTHER, LARGE, SAME, SAME, OTHER, SAME, LARGE, LARGE],
    ],
)
def test_graphs_make_the_same_bytes_as_single_launches(
    session: EngineSession, monkeypatch: pytest.MonkeyPatch, sizes: list[tuple[int, int]], style: Style
) -> None:
    made = made_of(session, sizes, style)
    monkeypatch.setattr(graphs_module, "_ATTEMPTS", 0)
    for picture, eager in zip(made, made_of(session, sizes, style), strict=True):
        np.testing.assert_array_equal(picture, eager)


def test_graphs_of_buffers_that_were_taken_anew_are_freed(device: Any, session: EngineSession) -> None:
    """Even where the new memory begins at the old address: the pinned memory beside it may not."""
    with device.current():
        lane = Lane(session, "map", "lane", None)
        for _ in range(3):
            lane.run(images_of([SAME] * 2))
        assert len(lane._session.graphs) == 1
        lane._processing.release()
        lane.run(images_of([SAME] * 2))
        assert len(lane._session.graphs) == 0
        lane.close()


def test_in_a_folder_of_mixed_sizes_the_network_alone_is_a_graph(
    device: Any, session: EngineSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, runs, recorded = type(device).record, [], []
    enqueue = EngineSession.enqueue

    def noting(self: Any, work: Callable[[], None], stream: Any) -> Any:
        recorded.append(work)
        return record(self, work, stream)

    def counting(self: Any, *rest: Any) -> None:
        runs.append(rest)
        enqueue(self, *rest)

    monkeypatch.setattr(type(device), "record", noting)
    monkeypatch.setattr(EngineSession, "enqueue", counting)
    made_of(session, [(20 + n, 30) for n in range(20)][::-1])  # the largest first: no buffer grows
    assert len(recorded) == 1
    assert len(runs) == 3  # of ten batches: once, once more, and recorded


def test_a_batch_that_cannot_be_recorded_does_not_stop_the_others(
    device: Any, session: EngineSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record, attempts = type(device).record, []

    def fail_first(self: Any, work: Callable[[], None], stream: Any) -> Any:
        attempts.append(work)
        if len(attempts) in (1, 3, 4):
            raise DeviceError("the GPU refuses a CUDA graph (CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)")
        return record(self, work, stream)

    monkeypatch.setattr(type(device), "record", fail_first)
    sizes = [LARGE] * 8 + [SAME] * 10
    made = made_of(session, sizes)
    assert len(attempts) == 5  # a success counts the failures anew
    assert not capsys.readouterr().err
    monkeypatch.setattr(graphs_module, "_ATTEMPTS", 0)
    for picture, eager in zip(made, made_of(session, sizes), strict=True):
        np.testing.assert_array_equal(picture, eager)


def test_all_graphs_are_freed_with_their_lane(device: Any, session: EngineSession, monkeypatch: Any) -> None:
    record, graphs = type(device).record, []

    def noting(self: Any, work: Callable[[], None], stream: Any) -> Any:
        graphs.append(record(self, work, stream))
        free = graphs[-1].free
        graphs[-1].free = lambda: (freed.append(1), free())
        return graphs[-1]

    freed: list[int] = []
    monkeypatch.setattr(type(device), "record", noting)
    made_of(session, [SAME] * 6 + [OTHER] * 6)
    assert len(freed) == len(graphs) == 3  # of each size, and of the network alone
