"""The pipeline on emulated kernels and an imitation of TensorRT; that it keeps a GPU busy only a GPU can show."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_engine_session import imitation, save_engine  # noqa: F401  (fixtures)

from sodeploy.errors import UserError
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.errors import DeviceError, DeviceLost, OutOfDeviceMemory
from sodeploy.runtime.gpu import pipeline
from sodeploy.runtime.gpu.engine_session import EngineSession, open_engine
from sodeploy.runtime.gpu.pipeline import pictures
from sodeploy.runtime.gpu.timeline import Timeline
from sodeploy.runtime.processing import postprocess, preprocess

SIZES = [(40, 60), (16, 24), (33, 17), (48, 48), (5, 90)]


@pytest.fixture
def session(device: Any, save_engine: Callable[..., Path]) -> Iterator[EngineSession]:  # noqa: F811
    with open_engine(save_engine(), device) as opened:
        yield opened


def image(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (*SIZES[number % len(SIZES)], 3), dtype=np.uint8)


def expected(number: int, contract: Contract) -> np.ndarray:
    """The saliency map by the CPU path."""
    tensor = preprocess(image(number), contract)
    saliency = np.clip(np.einsum("chw,c->hw", tensor, np.float32([0.3, 0.4, 0.3])), 0, 1)
    return postprocess(saliency, contract, SIZES[number % len(SIZES)])


@pytest.mark.parametrize("count", [0, 1, 4, 23])
@pytest.mark.parametrize("lanes", [1, 3])
def test_every_image_gets_its_own_map_in_order(session: EngineSession, count: int, lanes: int) -> None:
    made = list(pictures(session, range(count), image, lanes=lanes, readers=2))
    assert [number for number, _ in made] == list(range(count))
    for number, picture in made:
        assert isinstance(picture, np.ndarray)
        assert np.abs(picture.astype(int) - expected(number, session.contract)).max() <= 1


def test_an_engine_of_fixed_batch(device: Any, save_engine: Callable[..., Path]) -> None:  # noqa: F811
    with open_engine(save_engine(least=4, most=4), device) as session:
        made = list(pictures(session, range(6), image, readers=1))
        assert np.abs(made[5][1].astype(int) - expected(5, session.contract)).max() <= 1  # type: ignore[union-attr]


def test_an_unreadable_image_is_an_error_of_its_own(session: EngineSession) -> None:
    def read(number: int) -> np.ndarray:
        if number == 2:
            raise UserError("two.jpg is cut short")
        return image(number)

    made = [picture for _, picture in pictures(session, range(6), read, batch=4, readers=2)]
    assert str(made[2]) == "two.jpg is cut short"
    assert sum(isinstance(picture, np.ndarray) for picture in made) == 5


def test_a_defect_in_reading_is_not_swallowed(session: EngineSession) -> None:
    with pytest.raises(ZeroDivisionError):
        list(pictures(session, range(3), lambda number: 1 / 0))  # type: ignore[arg-type, return-value]


def test_a_batch_the_gpu_fails_at_is_reported_and_the_others_arrive(
    device: Any,
    save_engine: Callable[..., Path],  # noqa: F811
) -> None:
    with open_engine(save_engine(fails_at=2), device) as session:
        made = [picture for _, picture in pictures(session, range(11), image, batch=4, lanes=1)]
    assert [isinstance(picture, np.ndarray) for picture in made] == [True] * 4 + [False] * 4 + [True] * 3
    assert "illegal memory access" in str(made[4])


def test_a_lost_gpu_ends_the_run(device: Any, save_engine: Callable[..., Path]) -> None:  # noqa: F811
    """Nothing that comes later could succeed, so no image is given up one by one."""
    if not hasattr(device, "lost"):
        pytest.skip("only the emulated device can be lost and found again")
    with open_engine(save_engine(breaks_on=4), device) as session:
        made = pictures(session, iter(range(10_000)), image, batch=4, lanes=2)
        with pytest.raises(DeviceLost, match="is lost to this process"):
            list(made)
        device.lost = ""


def test_a_short_batch_behind_whole_ones_runs_as_whole(session: EngineSession, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, enqueue = [], EngineSession.enqueue

    def noting(self: EngineSession, source: int, target: int, shape: tuple[int, int, int, int]) -> None:
        shapes.append(shape[0])
        enqueue(self, source, target, shape)

    monkeypatch.setattr(EngineSession, "enqueue", noting)
    made = [picture for _, picture in pictures(session, range(9), image, batch=4, lanes=1)]
    assert np.abs(made[8].astype(int) - expected(8, session.contract)).max() <= 1  # type: ignore[union-attr]
    assert shapes == [4, 4, 4]
    list(pictures(session, range(3), image, batch=4, lanes=1))
    assert shapes[3:] == [3]


def test_an_error_that_shows_only_when_the_stream_is_waited_for(
    session: EngineSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier launch broke, CUDA tells at the next synchronisation: that batch is lost, the others arrive."""
    wait, waited = type(session.device).wait, []

    def fail_once(self: Any, stream: Any) -> None:
        wait(self, stream)
        waited.append(stream)
        if len(waited) == 2:
            raise DeviceError("the GPU failed: an illegal instruction was encountered")

    monkeypatch.setattr(type(session.device), "wait", fail_once)
    made = [picture for _, picture in pictures(session, range(12), image, batch=4, lanes=1)]
    assert [isinstance(picture, np.ndarray) for picture in made] == [True] * 4 + [False] * 4 + [True] * 4
    assert np.abs(made[11].astype(int) - expected(11, session.contract)).max() <= 1  # type: ignore[union-attr]
    assert "illegal instruction" in str(made[4])


def test_an_image_that_cannot_be_processed_fails_alone(session: EngineSession, monkeypatch: pytest.MonkeyPatch) -> None:
    run = pipeline.CudaProcessing.stage

    def picky(self: Any, images: list[np.ndarray], **rest: Any) -> Any:
        if any(one.shape[:2] == SIZES[4] for one in images):
            raise UserError("an image 90 pixels wide cannot be shrunk")
        return run(self, images, **rest)

    monkeypatch.setattr(pipeline.CudaProcessing, "stage", picky)
    made = [picture for _, picture in pictures(session, range(10), image, batch=4)]
    assert [number for number, picture in enumerate(made) if isinstance(picture, UserError)] == [4, 9]


def test_a_batch_without_room_is_halved(
    session: EngineSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = pipeline.CudaProcessing.stage

    def cramped(self: Any, images: list[np.ndarray], **rest: Any) -> Any:
        if len(images) > 1:
            raise OutOfDeviceMemory("the GPU has no room for 99 MiB more")
        return run(self, images, **rest)

    monkeypatch.setattr(pipeline.CudaProcessing, "stage", cramped)
    made = [picture for _, picture in pictures(session, range(5), image, batch=4, lanes=1)]
    assert all(isinstance(picture, np.ndarray) for picture in made)
    assert "going on with a batch of 2" in capsys.readouterr().err


def test_room_for_fewer_lanes(
    device: Any,
    save_engine: Callable[..., Path],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    with open_engine(save_engine(contexts=3), device) as session:  # one is the session's own
        made = [picture for _, picture in pictures(session, range(9), image, lanes=3)]
    assert all(isinstance(picture, np.ndarray) for picture in made)
    assert "going on with 2 of 3 batches at a time" in capsys.readouterr().err
    with open_engine(save_engine(contexts=1), device) as session, pytest.raises(OutOfDeviceMemory):
        list(pictures(session, range(9), image))


def test_memory_does_not_grow_with_the_number_of_images(session: EngineSession) -> None:
    read: list[int] = []

    def noting(number: int) -> np.ndarray:
        read.append(number)
        return image(number)

    made = pictures(session, iter(range(10_000)), noting, batch=2, lanes=2, readers=2)
    for _ in range(10):
        next(made)
    made.close()
    assert len(read) < 40


def test_stopping_early_frees_everything(session: EngineSession) -> None:
    live = getattr(session.device, "live", None)
    if live is None:
        pytest.skip("only the emulated device counts its memory")
    before, threads = live(), threading.active_count()
    made = pictures(session, range(100), image)
    next(made)
    assert live() > before
    made.close()
    assert (live(), threading.active_count()) == (before, threads)


def test_lanes_serve_one_run_after_another(session: EngineSession) -> None:
    with pipeline.Pipeline(session, batch=2, lanes=2) as lanes:
        stopped = lanes.pictures(range(20), image)
        next(stopped)
        stopped.close()
        for _ in range(2):
            made = list(lanes.pictures(range(5), image))
            assert [number for number, _ in made] == list(range(5))
            assert np.abs(made[4][1].astype(int) - expected(4, session.contract)).max() <= 1  # type: ignore[union-attr]


def test_the_timeline_shows_every_stage(session: EngineSession, tmp_path: Path) -> None:
    timeline = Timeline()
    list(pictures(session, range(9), image, batch=4, timeline=timeline))
    timeline.save(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    counts = {name: sum(span["name"] == name for span in spans) for name in {span["name"] for span in spans}}
    stages = ["copy images, enqueue", "upload", "preprocess", "infer", "postprocess", "download", "wait for the GPU"]
    assert counts == {"read": 9, "copy pictures": 3} | dict.fromkeys(stages, 3)
    assert all(span["dur"] >= 0 and span["ts"] >= 0 for span in spans)
    names = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert "GPU stream 0" in names
    assert any(name.startswith("reader") for name in names)
