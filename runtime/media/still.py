"""Writing one picture: its format, its color profile, and standard output."""

import sys
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np

from sodeploy.artifacts import write_bytes
from sodeploy.errors import UserError
from sodeploy.runtime.media.items import STREAM

Format = Literal["png", "webp", "jpg"]
FORMATS: dict[str, str] = {name: f".{name}" for name in get_args(Format)}
SUFFIXES = frozenset((*FORMATS.values(), ".jpeg"))
_QUALITY = 95  # of lossy pictures, of 100
_LOSSLESS_WEBP = 101


def still_suffix(format: str, channels: int) -> str:
    """The suffix of a picture's file.

    Raises:
        UserError: there is no such format, or it cannot hold a picture of that many channels.
    """
    if format not in FORMATS:
        raise UserError(f"--format {format}: there is no such format; choose among {', '.join(FORMATS)}")
    require_channels(FORMATS[format], channels)
    return FORMATS[format]


def require_channels(suffix: str, channels: int) -> None:
    """Refuse a format that cannot hold a picture.

    Raises:
        UserError: it has an alpha channel, and JPEG has none.
    """
    if suffix in (".jpg", ".jpeg") and channels == 4:
        raise UserError("JPEG has no transparency; choose --format png or webp, or --type white")


def encode_still(picture: np.ndarray, suffix: str, profile: bytes | None = None) -> bytes:
    """The bytes of a picture's file.

    PNG is lossless, JPEG has quality 95, WebP too but for grey pictures, which are maps and stay exact.

    Args:
        picture: (H, W), (H, W, 3) RGB or (H, W, 4) RGBA, uint8.
        suffix: one of `SUFFIXES`.
        profile: ICC profile of its colors.

    Raises:
        UserError: the format cannot hold it.
    """
    channels = picture.shape[2] if picture.ndim == 3 else 1
    require_channels(suffix, channels)
    if channels > 1:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA if channels == 4 else cv2.COLOR_RGB2BGR)
    settings = {
        ".webp": [cv2.IMWRITE_WEBP_QUALITY, _LOSSLESS_WEBP if channels == 1 else _QUALITY],
        ".png": [],
    }.get(suffix, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    try:
        if profile:
            blocks = [np.frombuffer(profile, np.uint8)]
            encoded, data = cv2.imencodeWithMetadata(suffix, picture, [cv2.IMAGE_METADATA_ICCP], blocks, settings)
        else:
            encoded, data = cv2.imencode(suffix, picture, settings)
    except cv2.error:
        encoded = False
    if not encoded:
        height, width = picture.shape[:2]
        raise UserError(f"a picture of {width} x {height} does not fit into {suffix[1:]}; choose --format png")
    return bytes(data.tobytes())


def write_still(target: Path, picture: np.ndarray, suffix: str, profile: bytes | None = None) -> None:
    """Write a picture to a file, whole or absent, or to standard output where `target` is "-".

    Raises:
        UserError: see `encode_still`.
        OSError: for example no space is left.
    """
    data = encode_still(picture, suffix, profile)
    if str(target) == STREAM:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        write_bytes(target, data)
