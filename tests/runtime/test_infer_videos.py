"""Videos and webcams through `infer`."""

import contextlib
import gc
import logging
import os
import resource
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from test_engine_session import imitation, save_engine  # noqa: F401  (fixtures)
from video_content import av, content, save_clip, square

from sodeploy.errors import UserError
from sodeploy.runtime.gpu.engine_session import open_engine
from sodeploy.runtime.infer import infer
from sodeploy.runtime.media import opening
from sodeploy.runtime.media.conversion import MotionOptions
from sodeploy.runtime.media.frame import Frame
from sodeploy.runtime.media.items import Item
from sodeploy.runtime.media.mapping import HostMapper
from sodeploy.runtime.media.pictures import make_picture, parse_look
from sodeploy.runtime.processing import predict
from sodeploy.runtime.session import open_session
from sodeploy.runtime.video import live, webcam
from sodeploy.runtime.video.conversion import convert
from sodeploy.runtime.video.writer import VideoWriter

SaveModel = Callable[..., Path]


def kept(style: str, threshold: float | None = None) -> Any:
    return parse_look(style, threshold, estimated=False)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b).mean())


def expected(source: Path, model: Path, look: Any) -> list[np.ndarray]:
    """The pictures of a video's frames by the path of images, RGB."""
    made = []
    with open_session(model) as session:
        for image in content(source).images:
            picture = make_picture(Frame(image), predict(image, session.contract, session.infer), look)
            made.append(np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else picture[..., :3])
    return made


@pytest.mark.parametrize("style", ["map", "rgba", "green", "white", "blur", "overlay", "color:#FF8800"])
def test_every_type(save_model: SaveModel, tmp_path: Path, style: str) -> None:
    model = save_model(weights=(1.0, 0.0, 0.0))
    source = save_clip(tmp_path / "in" / "a.mp4")
    outcome = infer(model, source, tmp_path / "out", style=kept(style))
    assert (outcome.written, outcome.failed) == (1, {})
    (target,) = (tmp_path / "out").iterdir()
    assert target.name == ("a.webm" if style == "rgba" else "a.mp4")
    made = content(target)
    assert made.codec == ("vp9" if style == "rgba" else "h264")
    assert made.sound == ("opus" if style == "rgba" else "aac")
    assert len(made.images) == 12
    for picture, by_image in zip(made.images, expected(source, model, kept(style)), strict=True):
        assert distance(picture, by_image) < 9  # both codecs lose something, chroma has half the size


@pytest.mark.parametrize("style", ["map", "overlay"])
def test_on_cuda(
    device: Any,
    save_engine: Callable[..., Path],  # noqa: F811
    save_model: SaveModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    style: str,
) -> None:
    monkeypatch.setattr(opening, "open_on_device", lambda path, gpu: open_engine(path, device, gpu))
    source = save_clip(tmp_path / "a.mp4")
    outcome = infer(save_engine(), source, tmp_path / "out", device="cuda", style=kept(style))
    assert (outcome.written, outcome.failed) == (1, {})
    for picture, by_image in zip(
        content(tmp_path / "out" / "a.mp4").images, expected(source, save_model(), kept(style)), strict=True
    ):
        assert distance(picture, by_image) < 6


@pytest.mark.parametrize(("style", "format"), [("map", "mp4"), ("map", "mkv"), ("rgba", "webm"), ("rgba", "mov")])
def test_the_same_video_again(save_model: SaveModel, tmp_path: Path, style: str, format: Any) -> None:
    """Frames, times and sound are equal. The bytes are not always: x264 writes one frame in another way now and then,
    and it decodes to the same pixels."""
    save_clip(tmp_path / "a.mp4")
    for folder in ("one", "two"):
        infer(
            save_model(), tmp_path / "a.mp4", tmp_path / folder, style=kept(style), motion=MotionOptions(format=format)
        )
    one, two = (content(tmp_path / folder / f"a.{format}") for folder in ("one", "two"))
    np.testing.assert_array_equal(one.images, two.images)
    assert one._replace(images=[]) == two._replace(images=[])


def test_the_threshold(save_model: SaveModel, tmp_path: Path) -> None:
    save_clip(tmp_path / "a.mp4")
    infer(save_model(weights=(1.0, 0.0, 0.0)), tmp_path / "a.mp4", tmp_path / "out.mp4", style=kept("map", 0.5))
    map_ = content(tmp_path / "out.mp4").images[3][..., 0]
    assert np.mean((map_ > 8) & (map_ < 247)) < 0.03  # but for the ringing of the codec


def test_a_folder_of_videos_and_images(save_model: SaveModel, tmp_path: Path) -> None:
    root = tmp_path / "in"
    save_clip(root / "a.mp4", 4)
    save_clip(root / "below" / "b.mkv", 4)
    (root / "below" / "broken.mov").write_text("no video")
    cv2.imwrite(str(root / "photo.png"), square(0))
    outcome = infer(save_model(), root, tmp_path / "out")
    assert outcome.written == 3
    assert [path.name for path in outcome.failed] == ["broken.mov"]
    below = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert below == {"a.mp4", "below/b.mp4", "photo.png"}
    again = infer(save_model(), root, tmp_path / "out")
    assert (again.written, again.skipped) == (0, 3)


def test_two_that_would_become_one(save_model: SaveModel, tmp_path: Path) -> None:
    save_clip(tmp_path / "in" / "a.mp4", 3)
    save_clip(tmp_path / "in" / "a.mkv", 3)
    outcome = infer(save_model(), tmp_path / "in", tmp_path / "out")
    assert outcome.written == 1
    assert "would both become" in next(iter(outcome.failed.values()))


@pytest.mark.parametrize(
    ("output", "style", "format", "message"),
    [
        ("out.avi", "map", None, r"out.avi is no mp4, mov, mkv, webm video; give it such a suffix"),
        ("out.mov", "map", "mp4", r"out.mov is no mp4 video; give it such a suffix"),
        ("out.mp4", "rgba", None, "mp4 holds no transparency; choose one of mov, mkv, webm"),
        ("out", "rgba", "mp4", "mp4 holds no transparency; choose one of mov, mkv, webm"),
    ],
)
def test_formats_that_do_not_fit(
    save_model: SaveModel, tmp_path: Path, output: str, style: str, format: Any, message: str
) -> None:
    save_clip(tmp_path / "a.mp4", 2)
    motion = MotionOptions(format=format)
    with pytest.raises(UserError, match=message):
        infer(save_model(), tmp_path / "a.mp4", tmp_path / output, style=kept(style), motion=motion)
    assert not (tmp_path / output).exists()


def test_the_flicker_is_told_before_and_after_smoothing(
    save_model: SaveModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    noise = np.random.default_rng(0).integers(0, 4, (12, 48, 64, 3), dtype=np.uint8)
    source = save_clip(tmp_path / "a.mp4", image=lambda n: 100 + noise[n])
    model = save_model(weights=(8.0, 0.0, 0.0), bias=-3.0)
    caplog.set_level(logging.INFO, "sodeploy")
    infer(model, source, tmp_path / "out", motion=MotionOptions("median"))
    (line,) = (record.getMessage() for record in caplog.records if "flicker" in record.getMessage())
    words = line.split()
    final, raw = float(words[words.index("flicker") + 1]), float(words[-1].rstrip(")"))
    assert "on the 100% of pixels that hardly change between frames (without smoothing 0." in line
    assert 0 < final < 0.8 * raw


class TestBroken:
    def test_a_broken_tail_is_named_and_the_rest_is_kept(self, save_model: SaveModel, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3), dtype=np.uint8)
        source = save_clip(tmp_path / "a.mkv", 60, image=lambda n: noise[n])
        source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
        outcome = infer(save_model(), source, tmp_path / "out")
        kept_frames = len(content(tmp_path / "out" / "a.mp4").images)
        assert 5 < kept_frames < 55
        assert outcome.written == 0
        reason = outcome.failed[source]
        assert reason.startswith(f"{source}: ")
        assert f"a.mp4 holds the {kept_frames} frames that could be read" in reason

    def test_a_video_without_frames_has_no_output(self, save_model: SaveModel, tmp_path: Path) -> None:
        source = save_clip(tmp_path / "a.mkv", 3)
        data = bytearray(source.read_bytes())
        cluster = data.index(b"\x1f\x43\xb6\x75")  # Matroska's name of the first packets
        source.write_bytes(data[:cluster])
        outcome = infer(save_model(), source, tmp_path / "out")
        assert outcome.written == 0
        assert "replace or remove it" in outcome.failed[source]
        assert list((tmp_path / "out").rglob("*")) == []

    def test_a_frame_that_the_network_cannot_do(self, tmp_path: Path) -> None:
        source = save_clip(tmp_path / "a.mp4")
        calls = iter(range(100))

        def fail(image: np.ndarray) -> np.ndarray:
            if next(calls) == 5:
                raise UserError("its output is NaN")
            return image[..., 0]

        with pytest.raises(UserError, match="its output is NaN"):
            converted(source, tmp_path / "out" / "a.mp4", fail)
        assert list((tmp_path / "out").iterdir()) == []

    def test_what_ffmpeg_refuses_is_named(
        self, save_model: SaveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_clip(tmp_path / "in" / "a.mp4", 2)
        save_clip(tmp_path / "in" / "b.mp4", 2, sound=None)

        def refuse(*_: object) -> None:
            raise av.error.ArgumentError(22, "Invalid argument")

        monkeypatch.setattr(VideoWriter, "write_sound", refuse)
        outcome = infer(save_model(), tmp_path / "in", tmp_path / "out")
        assert outcome.written == 0
        for path, reason in outcome.failed.items():
            assert f"{path}: FFmpeg cannot write " in reason
            assert "(Invalid argument); choose another --video-format" in reason
        assert list((tmp_path / "out").iterdir()) == []

    def test_a_full_disk_leaves_no_half_file(self, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (40, 96, 128, 3), dtype=np.uint8)
        source = save_clip(tmp_path / "a.mp4", 40, image=lambda n: noise[n])
        with at_most(50_000), pytest.raises(OSError, match="File too large") as caught:
            converted(source, tmp_path / "out" / "a.mp4", lambda image: image[..., 0])
        assert caught.value.filename == str(tmp_path / "out" / "a.mp4")
        assert list((tmp_path / "out").iterdir()) == []

    def test_a_killed_run_leaves_nothing_under_the_name(self, save_model: SaveModel, tmp_path: Path) -> None:
        source = save_clip(tmp_path / "a.mp4", 400, image=lambda n: square(n, 240, 320), preset="ultrafast")
        output = tmp_path / "out"
        command = [sys.executable, "-m", "sodeploy", "infer", source, "--model", save_model(), "--output", output]
        process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while not list(output.glob(".*.partial.mp4")) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (output / "a.mp4").exists()
        infer(save_model(), save_clip(tmp_path / "b.mp4", 2), output)
        assert [path.name for path in output.iterdir()] == ["b.mp4"]

    def test_without_pyav_it_says_how_to_install_it(
        self, save_model: SaveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = save_clip(tmp_path / "a.mp4", 2)
        monkeypatch.setitem(sys.modules, "av", None)
        outcome = infer(save_model(), source, tmp_path / "out")
        assert (
            "a.mp4 needs PyAV, which reads videos; install it: pip install 'sodeploy[video]'" in outcome.failed[source]
        )


def converted(source: Path, target: Path, network: Callable[[np.ndarray], np.ndarray]) -> list[str]:
    return convert(Item(source.name, "video", source), target, HostMapper(network), parse_look("map"), MotionOptions())


@contextlib.contextmanager
def at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_few_frames_are_in_memory_however_long_the_video_is(tmp_path: Path) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    def network(image: np.ndarray) -> np.ndarray:
        nonlocal most
        saliency = image[..., 0].copy().view(Counted)
        alive.add(saliency)
        most = max(most, len(alive))
        return saliency

    source = save_clip(tmp_path / "a.mp4", 300, preset="ultrafast")
    gc.collect()
    converted(source, tmp_path / "out.mp4", network)
    assert len(content(tmp_path / "out.mp4").images) == 300
    assert most <= 12


class Counted(np.ndarray):
    """An array that can be watched by a weak reference."""

    __hash__ = object.__hash__  # type: ignore[assignment]


class FakeCapture:
    """A camera that gives `count` pictures."""

    def __init__(self, count: int) -> None:
        self._left = count

    def read(self) -> np.ndarray | None:
        self._left -= 1
        time.sleep(0.005)
        return square(self._left) if self._left >= 0 else None

    def close(self) -> None:
        pass


class FakeWindow:
    """Keeps what is shown, and is closed by the user after `most` pictures."""

    most = 3

    def __init__(self, title: str) -> None:
        self.title, self.shown = title, list[np.ndarray]()
        FakeWindow.last = self

    def show(self, picture: np.ndarray) -> bool:
        self.shown.append(picture)
        return len(self.shown) < self.most

    def __enter__(self) -> "FakeWindow":
        return self

    def __exit__(self, *_: object) -> None:
        pass


class TestWebcam:
    @pytest.fixture(autouse=True)
    def camera(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(webcam.OPENERS, "opencv", lambda number: FakeCapture(50))

    @pytest.mark.parametrize(("style", "channels"), [("map", None), ("green", 3), ("rgba", 4)])
    def test_its_pictures_are_shown(
        self, save_model: SaveModel, monkeypatch: pytest.MonkeyPatch, style: str, channels: int | None
    ) -> None:
        monkeypatch.setattr(live, "Window", FakeWindow)
        outcome = infer(save_model(), "7", style=kept(style), motion=MotionOptions("exponential"))
        assert (outcome.written, outcome.failed) == (0, {})
        window = FakeWindow.last
        assert window.title == f"webcam 7, {style}"
        assert [picture.shape for picture in window.shown] == [(48, 64, channels)[: 2 if channels is None else 3]] * 3

    @pytest.mark.skipif("DISPLAY" in os.environ, reason="there is a display")
    def test_without_a_display_it_is_an_error_that_says_so(self, save_model: SaveModel) -> None:
        pytest.importorskip("tkinter", reason="this Python has no tkinter")
        (reason,) = infer(save_model(), "0").failed.values()
        assert "there is no display for a window" in reason

    def test_it_is_not_written(self, save_model: SaveModel, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="a webcam is shown in a window and not written; leave --output out"):
            infer(save_model(), "0", tmp_path / "out.mp4")


def test_a_webcam_that_is_not_there(save_model: SaveModel) -> None:
    (reason,) = infer(save_model(), "93").failed.values()
    assert "webcam 93 cannot be opened: there is none of that number" in reason
