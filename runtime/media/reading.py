"""Reading one image: its pixels, its own transparency and its color profile."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from sodeploy.calib_data.headers import Header
from sodeploy.calib_data.images import MOST_PIXELS, bytes_of, check_header, decode, decode_image
from sodeploy.errors import UserError
from sodeploy.runtime.media.frame import Frame, usable_profile
from sodeploy.runtime.media.heif import decode_heif, is_heif

_ORIENTATION = 0x0112  # the EXIF tag
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: np.swapaxes(x, 0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(np.swapaxes(x, 0, 1), 2),
    8: np.rot90,
}


def read_frame(path: str | Path, most_pixels: int = MOST_PIXELS, whole: bool = True) -> Frame:
    """Read an image file.

    Args:
        most_pixels: the largest width x height that is decoded; the file's header tells it.
        whole: read the transparency and the profile too; a saliency map needs neither.

    Raises:
        UserError: the file is missing, empty, broken, too large, an animation, or no image.
    """
    return decode_frame(bytes_of(path), path, most_pixels, whole)


def decode_frame(data: bytes, name: str | Path, most_pixels: int = MOST_PIXELS, whole: bool = True) -> Frame:
    """Decode the bytes of an encoded image, as `read_frame` does; `name` stands in the error."""
    if is_heif(data):
        return decode_heif(data, name, most_pixels)
    image = decode_image(data, name, most_pixels)
    if not whole:
        return Frame(image)
    header = check_header(data, name, most_pixels)
    exif, profile = _metadata(data, header)
    alpha = _alpha(data, name, exif) if header.alpha else None
    if alpha is not None and alpha.shape != image.shape[:2]:
        raise UserError(f"{name}: its transparency is not as large as its picture; save the image again")
    return Frame(image, alpha, profile)


def _metadata(data: bytes, header: Header) -> tuple[bytes, bytes | None]:
    """EXIF block and usable ICC profile, as far as they are there."""
    flags = cv2.IMREAD_REDUCED_COLOR_8 if header.kind == "JPEG" else cv2.IMREAD_COLOR
    _, kinds, blobs = cv2.imdecodeWithMetadata(np.frombuffer(data, np.uint8), flags=flags)
    found = {int(kind): np.asarray(blob).tobytes() for kind, blob in zip(kinds, blobs, strict=True)}
    profile = header.profile or found.get(cv2.IMAGE_METADATA_ICCP)  # OpenCV gives none of TIFF and AVIF
    return found.get(cv2.IMAGE_METADATA_EXIF, b""), usable_profile(profile)


def _alpha(data: bytes, name: str | Path, exif: bytes) -> np.ndarray | None:
    """The alpha channel, turned as the image is; None where all of it is opaque."""
    pixels = decode(data, cv2.IMREAD_UNCHANGED, name)
    if pixels.ndim != 3 or pixels.shape[2] != 4:
        return None
    alpha = pixels[..., 3]
    if alpha.dtype == np.uint16:
        alpha = cv2.convertScaleAbs(alpha, alpha=1 / 257)
    turn = _TURNS.get(_orientation(exif))
    alpha = np.ascontiguousarray(turn(alpha) if turn else alpha)
    return None if alpha.min() == 255 else alpha


def _orientation(exif: bytes) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none."""
    exif = exif.removeprefix(b"Exif\0\0")
    if exif[:2] not in (b"II", b"MM"):
        return 1
    order: Literal["little", "big"] = "little" if exif[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], order)

    first = number(4, 4)
    for entry in range(number(first, 2)):
        at = first + 2 + 12 * entry
        if number(at, 2) == _ORIENTATION:
            return number(at + 8, 2)
    return 1
