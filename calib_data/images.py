"""Images: decoding photographs of every kind that people have, and writing pictures."""

import re
from pathlib import Path

import cv2
import numpy as np

from sodeploy import artifacts
from sodeploy.calib_data.headers import Header, read_header
from sodeploy.errors import UserError
from sodeploy.file_kinds import kind_of

SUFFIXES = frozenset(
    f".{ending}"
    for ending in (
        *("avif", "bmp", "dib", "gif", "jfif", "jp2", "jpe", "jpeg", "jpg", "pbm", "pgm", "png", "pnm", "ppm"),
        *("tif", "tiff", "webp"),
    )
)
MOST_PIXELS = 178_956_970  # an image beyond is refused before it is decoded: half a gigabyte as 8-bit RGB
_AVIF_TURN = re.compile(rb"\0\0\0\x09(irot|imir)(.)", re.DOTALL)  # quarters to the left; the axis that is flipped

# Our own errors say what went wrong and name the file, which OpenCV's log does not know.
_set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # moved after OpenCV 4.10
_set_log_level(0)


class TooManyPixels(UserError):
    """An image is larger than the caller wants to decode.

    Attributes:
        width, height: pixels, as its header declares them.
    """

    def __init__(self, message: str, width: int, height: int) -> None:
        super().__init__(message)
        self.width, self.height = width, height


def read_image(path: str | Path, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Read a photograph the way a viewer shows it.

    Grey, palette and CMYK files become RGB, 16 bits become 8, an EXIF orientation is applied, and alpha is dropped, as
    the networks' own training code does.

    Args:
        most_pixels: the largest width x height that is decoded; the file's header tells it.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        UserError: the file is missing, empty, broken, too large, an animation, or no image.
    """
    return decode_image(bytes_of(path), path, most_pixels)


def decode_image(data: bytes, name: str | Path, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Decode the bytes of an encoded image, as `read_image` does; `name` stands in the error."""
    header = check_header(data, name, most_pixels)
    if header.kind == "JPEG":
        return decode(data, cv2.IMREAD_COLOR_RGB, name)
    # Not in all formats: OpenCV 4.14 leaves TIFF of 16 bits and AVIF with alpha in BGR.
    image = decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, name)
    if header.associated or (header.associated is False and image.dtype == np.uint8):  # OpenCV multiplies these
        image = _divided(image, decode(data, cv2.IMREAD_UNCHANGED, name)[..., 3])
    if image.dtype == np.uint16:
        image = cv2.convertScaleAbs(image, alpha=1 / 257)  # 65535 = 255 * 257, rounded
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image))


def check_header(data: bytes, name: str | Path, most_pixels: int = MOST_PIXELS) -> Header:
    """The header of an encoded image that may be decoded.

    Raises:
        UserError: no image, too large, an animation, or a document of several pages.
    """
    try:
        header = read_header(data)
    except ValueError as error:
        kind = kind_of(data)
        reason = f"it is {kind.name}" if kind is not None and kind.family != "image" else error
        remedy = kind.remedy if kind is not None and kind.remedy else "replace or remove it"
        raise UserError(f"{name} is broken or no image ({reason}); {remedy}") from None
    require_pixels(header.width, header.height, name, most_pixels)
    if header.densest and header.pixels > header.densest * len(data):
        raise UserError(
            f"{name} is broken: it declares {header.width} x {header.height} pixels, more than {len(data)} bytes can "
            "hold; replace or remove it"
        )
    if header.animated:
        raise UserError(f"{name} is an animated {header.kind}; save the picture that counts as a file of its own")
    if header.paged:
        raise UserError(f"{name} is a {header.kind} of several pages; save the page that counts as a file of its own")
    return header


def require_pixels(width: int, height: int, name: object, most_pixels: int) -> None:
    """Refuse an image of more than `most_pixels` pixels; `name` stands in the error.

    Raises:
        TooManyPixels: that is so.
    """
    if width * height > most_pixels:
        raise TooManyPixels(
            f"{name} is {width} x {height} pixels, {megapixels(width * height)} megapixels; the limit is "
            f"{megapixels(most_pixels)}: make it smaller or remove it, or, in infer, raise --max-megapixels",
            width,
            height,
        )


def megapixels(pixels: int) -> str:
    """A number of pixels in millions, as an error tells it."""
    return f"{pixels / 1e6:.0f}" if pixels >= 1e7 else f"{pixels / 1e6:.2g}"


def bytes_of(path: str | Path) -> bytes:
    """The content of a file that is not empty.

    Raises:
        UserError: missing, empty, a folder, a pipe, a device, or not readable.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():  # to read it may wait, or go on, for ever
        raise UserError(f"{path} is a pipe or a device, not a file; remove it, or pipe one image into infer -")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; correct the path or remove it from the data set") from None
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or "not enough memory"
        raise UserError(f"{path} cannot be read ({reason}); mend it or remove it from the data set") from None
    if not data:
        raise UserError(f"{path} is an empty file; replace it or remove it from the data set")
    return data


def decode(data: bytes, flags: int, name: str | Path) -> np.ndarray:
    """Decode the bytes of an encoded image with OpenCV's `flags`; uint8 or uint16.

    Raises:
        UserError: OpenCV cannot, or there is too little memory.
    """
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except (cv2.error, MemoryError) as error:
        if isinstance(error, MemoryError) or error.code == cv2.Error.StsNoMem:
            raise UserError(f"{name} needs more memory than there is; make it smaller or remove it") from None
        image = None
    if image is not None and image.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{name} has values of {image.dtype}; save it with 8 or 16 bits per channel, or remove it")
    if image is None or _is_cut_short(data):
        raise UserError(f"{name} is broken or not an 8 or 16 bit image that OpenCV reads; replace or remove it")
    return _upright_avif(image, data) if data[4:11] == b"ftypavi" else image


def write_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture in the format that the name ends with; the file is whole or absent.

    Args:
        picture: (H, W), (H, W, 3) RGB or (H, W, 4) RGBA, uint8.

    Raises:
        OSError: for example no space is left; names `path`.
    """
    path = Path(path)
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA if picture.shape[2] == 4 else cv2.COLOR_RGB2BGR)
    encoded, data = cv2.imencode(path.suffix, picture)  # imwrite says True when the last flush fails
    if not encoded:
        raise UserError(f"{path}: OpenCV cannot encode a picture of {picture.shape} as {path.suffix}")
    artifacts.write_bytes(path, data.tobytes())


def _divided(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colors that were multiplied by alpha, as they were; black where nothing of them is left."""
    full = np.iinfo(image.dtype).max
    factor = full / np.maximum(alpha, 1).astype(np.float32)
    return np.asarray(np.rint(image * factor[..., None]).clip(0, full).astype(image.dtype))


def _upright_avif(image: np.ndarray, data: bytes) -> np.ndarray:
    """Turn an AVIF as its properties say (ISO/IEC 23008-12, irot and imir); OpenCV leaves it as it is stored."""
    for kind, value in _AVIF_TURN.findall(data[:65536]):
        image = np.rot90(image, value[0] & 3) if kind == b"irot" else np.flip(image, value[0] & 1)
    return np.ascontiguousarray(image)


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
