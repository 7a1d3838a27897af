"""What is in a video file, by PyAV; tests that import this are skipped where PyAV is not installed."""

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

av = pytest.importorskip("av", exc_type=ImportError, reason="PyAV is not installed: pip install 'sodeploy[video]'")

from clips import SOUND_RATE, save_clip, square  # noqa: E402, F401  (of benchmarks/)


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
