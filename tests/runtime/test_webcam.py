"""A camera that is no device, and the window."""

import os
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from sodeploy.errors import UserError
from sodeploy.runtime.video import webcam
from sodeploy.runtime.video.webcam import Newest, OpenCvCapture, open_webcam
from sodeploy.runtime.video.window import Window, ppm


class FakeCapture:
    """Gives `count` pictures, each all of its number."""

    def __init__(self, count: int, seconds: float = 0.0) -> None:
        self.count, self.seconds, self.given, self.closed = count, seconds, 0, False

    def read(self) -> np.ndarray | None:
        time.sleep(self.seconds)
        if self.given == self.count:
            return None
        self.given += 1
        return np.full((4, 6, 3), self.given - 1, np.uint8)

    def close(self) -> None:
        self.closed = True


def test_there_is_no_such_webcam() -> None:
    with pytest.raises(UserError, match="webcam 93 cannot be opened: there is none of that number"):
        open_webcam(93)


def test_a_file_in_the_place_of_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colors = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    for number, color in enumerate(colors):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((24, 32, 3), color[::-1], np.uint8))
    opened = cv2.VideoCapture(str(tmp_path / "%d.png"), cv2.CAP_IMAGES)
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: opened)
    capture = OpenCvCapture(0)
    assert [tuple(capture.read()[3, 3]) for _ in colors] == colors
    assert capture.read() is None
    capture.close()
    assert not opened.isOpened()


def test_a_slow_reader_gets_the_newest() -> None:
    capture = FakeCapture(40, seconds=0.005)
    numbers = []
    with Newest(capture) as newest:
        for picture in newest.pictures():
            numbers.append(int(picture[0, 0, 0]))
            time.sleep(0.04)
    assert capture.closed
    assert numbers == sorted(set(numbers))
    assert len(numbers) < 20
    assert numbers[-1] >= 30


def test_leaving_early_ends_the_thread() -> None:
    before = threading.active_count()
    capture = FakeCapture(10**6, seconds=0.001)
    with Newest(capture) as newest:
        next(newest.pictures())
    assert capture.closed
    assert threading.active_count() == before


def test_a_camera_that_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webcam, "_PATIENCE_S", 0.05)
    with (
        Newest(FakeCapture(1, seconds=0.5)) as newest,
        pytest.raises(UserError, match="has given no picture for 0 seconds"),
    ):
        next(newest.pictures())


def test_an_error_of_the_camera_is_raised() -> None:
    class Broken(FakeCapture):
        def read(self) -> np.ndarray | None:
            raise UserError("the cable is out")

    with Newest(Broken(1)) as newest, pytest.raises(UserError, match="the cable is out"):
        next(newest.pictures())


@pytest.mark.skipif("DISPLAY" in os.environ, reason="there is a display")
def test_without_a_display_a_window_is_an_error_that_says_so() -> None:
    pytest.importorskip("tkinter", reason="this Python has no tkinter")
    with pytest.raises(UserError, match=r"there is no display for a window \(.*\); run this on a desktop"):
        Window("test")


@pytest.mark.skipif("DISPLAY" not in os.environ, reason="there is no display")
def test_a_window() -> None:
    with Window("test") as window:
        for shape in ((40, 60), (40, 60, 3), (40, 60, 4)):
            assert window.show(np.full(shape, 128, np.uint8))
        window._root.event_generate("<Escape>", when="tail")
        window._root.focus_force()
        assert not window.show(np.zeros((40, 60), np.uint8)) or not window.show(np.zeros((40, 60), np.uint8))


def pixels(data: bytes) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def test_pictures_for_the_window() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(pixels(ppm(image)), image)
    assert np.array_equal(pixels(ppm(image[..., 0])), np.repeat(image[..., :1], 3, axis=2))
    clear = pixels(ppm(np.dstack([image, np.zeros((20, 30), np.uint8)])))
    assert {tuple(pixel) for pixel in clear.reshape(-1, 3)} == {(120, 120, 120), (200, 200, 200)}
    assert np.array_equal(pixels(ppm(np.dstack([image, np.full((20, 30), 255, np.uint8)]))), image)
    assert pixels(ppm(np.zeros((2000, 1000, 3), np.uint8))).shape == (720, 360, 3)
