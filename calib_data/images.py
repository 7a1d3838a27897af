"""Images and masks from files, whatever variety of file they are."""

from pathlib import Path

import cv2
import numpy as np

from sodeploy.errors import UserError

SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))

# What went wrong is said by our own errors, with the file's name, which OpenCV's log does not know.
_set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # moved after OpenCV 4.10
_set_log_level(0)


def read_image(path: str | Path) -> np.ndarray:
    """Read a photograph the way a viewer shows it.

    Grey and palette files become RGB, 16 bits become 8, an EXIF orientation is applied, and alpha is dropped, as the
    networks' own training code does.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        UserError: the file is missing, empty, broken, or no image.
    """
    return decode_image(_bytes_of(path), path)


def decode_image(data: bytes, name: str | Path) -> np.ndarray:
    """The image in an encoded file's bytes, as `read_image` gives it; `name` stands in the error."""
    image = _decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, name)
    if image.dtype == np.uint16:
        image = _to_8_bits(image)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_mask(path: str | Path) -> np.ndarray:
    """Read a ground-truth mask: 0 background, 255 object, in between where the annotation is soft.

    Masks stored as RGB are read as grey. Which full scale a file means is told by its brightest value: 1 is a mask of
    {0, 1}, up to 255 one of 8 bits, more one of 16 bits.

    Returns:
        (H, W) uint8.

    Raises:
        UserError: the file is missing, empty, broken, or no image.
    """
    mask = _decode(_bytes_of(path), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH, path)
    brightest = mask.max()
    if brightest == 1:
        return mask.astype(np.uint8) * np.uint8(255)
    if brightest > 255:
        return _to_8_bits(mask)
    return mask.astype(np.uint8, copy=False)


def _to_8_bits(image: np.ndarray) -> np.ndarray:
    return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257, rounded


def _bytes_of(path: str | Path) -> bytes:
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; correct the path or remove it from the data set") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); mend it or remove it from the data set") from None
    if not data:
        raise UserError(f"{path} is an empty file; replace it or remove it from the data set")
    return data


def _decode(data: bytes, flags: int, name: str | Path) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # for example more pixels than OpenCV's limit
        image = None
    if image is None or image.dtype not in (np.uint8, np.uint16) or _is_cut_short(data):
        raise UserError(f"{name} is broken or not an 8 or 16 bit image that OpenCV reads; replace or remove it")
    return image


def _is_cut_short(data: bytes) -> bool:
    """Whether a JPEG's end is missing, which OpenCV before 4.11 lets pass and fills with grey."""
    if not data.startswith(b"\xff\xd8"):
        return False
    position = 2
    while (marker := data[position : position + 2]) != b"\xff\xda":  # segments up to the scan; thumbnails lie in them
        if marker == b"\xff\xff":  # padding
            position += 1
        elif len(marker) < 2:
            return True
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return data.find(b"\xff\xd9", position) < 0
