"""Small videos with sound for the tests, and what is in a video, by PyAV."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'sodeploy[video]'")

SOUND_RATE = 48000


def picture(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A yellow square on blue that moves two pixels to the right with every frame."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 2] = 90
    left = 2 * number % (width - 16)
    image[8:24, left : left + 16] = (220, 200, 40)
    return image


def save_clip(
    path: Path,
    count: int = 12,
    *,
    rate: int = 25,
    codec: str = "libx264",
    sound: str | None = "aac",
    times_ms: Sequence[int] | None = None,
    image: Callable[[int], np.ndarray] = picture,
    pixels: str = "yuv420p",
    **fields: Any,
) -> Path:
    """Save a clip; its sound is a tone of 440 Hz that lasts as long as the frames at a constant rate.

    Args:
        times_ms: of the frames, in milliseconds; `rate` tells them by default.
        fields: of the video's codec context.
    """
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=rate, options={"crf": "12"})
        video.height, video.width = image(0).shape[:2]
        video.pix_fmt = pixels
        clock = Fraction(1, 1000) if times_ms else Fraction(1, rate)
        video.codec_context.time_base = clock
        for name, value in fields.items():
            setattr(video.codec_context, name, value)
        tone = container.add_stream(sound, rate=SOUND_RATE) if sound else None
        if tone is not None:
            tone.layout = "mono"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(image(number), format="rgb24")
            frame.pts, frame.time_base = times_ms[number] if times_ms else number, clock
            container.mux(video.encode(frame))
            if tone is not None:
                samples = np.arange(number * SOUND_RATE // rate, (number + 1) * SOUND_RATE // rate)
                wave = (8000 * np.sin(2 * np.pi * 440 * samples / SOUND_RATE)).astype(np.int16)
                piece = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
                piece.sample_rate, piece.time_base, piece.pts = SOUND_RATE, Fraction(1, SOUND_RATE), int(samples[0])
                container.mux(tone.encode(piece))
        container.mux(video.encode(None))
        if tone is not None:
            container.mux(tone.encode(None))
    return path


class Content(NamedTuple):
    """What is in a video file.

    Attributes:
        codec, pixels: FFmpeg's names.
        images: (H, W, 3) uint8 RGB each, by FFmpeg's own conversion.
        times: of the frames, in seconds.
        sound: FFmpeg's name of the codec of the sound; None without sound.
        sound_from, sound_till: seconds.
        color: matrix, range, primaries and transfer function, ITU-T H.273.
        aspect: of a pixel.
    """

    codec: str
    pixels: str
    images: list[np.ndarray]
    times: list[float]
    sound: str | None
    sound_from: float
    sound_till: float
    color: tuple[int, int, int, int]
    aspect: Fraction | None


def content(path: Path) -> Content:
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        images, times = [], []
        for frame in container.decode(video):
            images.append(frame.to_ndarray(format="rgb24"))
            times.append(float(frame.pts * frame.time_base))
        context = video.codec_context
        color = (int(frame.colorspace), int(frame.color_range), int(frame.color_primaries), int(frame.color_trc))
        codec, pixels, aspect = context.codec.canonical_name, context.pix_fmt, context.sample_aspect_ratio
    sound, sound_from, sound_till = None, float("nan"), float("nan")
    with av.open(str(path)) as container:
        if container.streams.audio:
            stream = container.streams.audio[0]
            sound = stream.codec_context.codec.canonical_name
            frames = [frame for frame in container.decode(stream) if frame.pts is not None]
            sound_from = float(frames[0].pts * frames[0].time_base)
            sound_till = float(frames[-1].pts * frames[-1].time_base + Fraction(frames[-1].samples, SOUND_RATE))
    return Content(codec, pixels, images, times, sound, sound_from, sound_till, color, aspect)
