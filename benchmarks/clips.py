"""Small videos with sound that are computed, and videos made of one photograph, by PyAV."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

SOUND_RATE = 48000


def square(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A yellow square on blue that moves two pixels to the right with every frame, (height, width, 3) uint8 RGB."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 2] = 90
    side = height // 3
    left = 2 * number % (width - side)
    image[side // 2 : side // 2 + side, left : left + side] = (220, 200, 40)
    return image


def pan(photo: np.ndarray, number: int, size: tuple[int, int], noise: float = 0.0) -> np.ndarray:
    """A window into a photograph that moves by half a pixel to the right with every frame.

    Args:
        photo: (H, W, 3) uint8 RGB, which is scaled so that the window's height is 90 % of its own.
        size: (height, width) of the window.
        noise: standard deviation of Gaussian noise, in grey levels; another one in every frame.

    Returns:
        (*size, 3) uint8 RGB.
    """
    height, width = size
    factor = height / 0.9 / photo.shape[0]
    top = (height / 0.9 - height) / 2
    left = number / 2 % max(photo.shape[1] * factor - width, 1.0)
    to_photo = np.array([[1 / factor, 0, left / factor], [0, 1 / factor, top / factor]])
    rule = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    view = cv2.warpAffine(photo, to_photo, (width, height), flags=rule, borderMode=cv2.BORDER_REFLECT_101)
    grain = np.random.default_rng(number).normal(0, noise, view.shape) if noise else 0
    return np.clip(np.rint(view + grain), 0, 255).astype(np.uint8)


def save_clip(
    path: Path,
    count: int = 12,
    *,
    rate: int = 25,
    codec: str = "libx264",
    sound: str | None = "aac",
    layout: str = "mono",
    times_ms: Sequence[int] | None = None,
    image: Callable[[int], np.ndarray] = square,
    pixels: str = "yuv420p",
    preset: str = "medium",
    **fields: Any,
) -> Path:
    """Save a clip; its sound is a tone of 440 Hz that lasts as long as the frames at a constant rate.

    Args:
        layout: FFmpeg's name of the channels of the sound, such as "stereo" or "5.1".
        image: the number of a frame to its picture, (H, W, 3) uint8 RGB.
        times_ms: the times of the frames in milliseconds; from `rate` by default.
        pixels: FFmpeg's name of the pixel format.
        preset: FFmpeg's name of the encoder's preset; the encoder must have presets.
        fields: attributes to set on the video's codec context, by name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    container: Any
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=rate, options={"crf": "12", "preset": preset})
        video.height, video.width = image(0).shape[:2]
        video.pix_fmt = pixels
        clock = Fraction(1, 1000) if times_ms else Fraction(1, rate)
        video.codec_context.time_base = clock
        for name, value in fields.items():
            setattr(video.codec_context, name, value)
        tone = container.add_stream(sound, rate=SOUND_RATE) if sound else None
        if tone is not None:
            tone.layout = layout
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(image(number), format="rgb24")
            frame.pts, frame.time_base = times_ms[number] if times_ms else number, clock
            container.mux(video.encode(frame))
            if tone is not None:
                first, end = (n * SOUND_RATE // rate for n in (number, number + 1))
                container.mux(tone.encode(_tone(first, end, tone.layout)))
        container.mux(video.encode(None))
        if tone is not None:
            container.mux(tone.encode(None))
    return path


def _tone(first: int, end: int, layout: av.AudioLayout) -> av.AudioFrame:
    wave = 8000 * np.sin(2 * np.pi * 440 * np.arange(first, end) / SOUND_RATE)
    samples = np.repeat(wave.astype(np.int16), layout.nb_channels)[None]  # one channel beside the other
    piece = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout.name)
    piece.sample_rate, piece.time_base, piece.pts = SOUND_RATE, Fraction(1, SOUND_RATE), first
    return piece
