"""HEIC and HEIF, the photographs of telephones, by pillow-heif (libheif): OpenCV does not read them."""

import io
import re

import numpy as np

from sodeploy.artifacts import one_line
from sodeploy.calib_data.images import require_pixels
from sodeploy.errors import UserError
from sodeploy.runtime.media.frame import Frame, usable_profile
from sodeploy.stages import install_command

_BEGIN = re.compile(rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)


def is_heif(data: bytes) -> bool:
    """Whether the bytes are of a HEIC or HEIF file."""
    return _BEGIN.match(data) is not None


def decode_heif(data: bytes, name: object, most_pixels: int) -> Frame:
    """The main picture of a HEIC or HEIF file, turned as the file says.

    Raises:
        UserError: pillow-heif is missing, or the file is broken or too large; `name` is named.
    """
    try:
        import pillow_heif
    except ImportError:
        raise UserError(f"{name} is a HEIC picture: {install_command('pillow_heif')}; or save it as JPEG") from None
    try:
        picture = pillow_heif.open_heif(io.BytesIO(data))
        width, height = picture.size
        require_pixels(width, height, name, most_pixels)
        pixels = np.ascontiguousarray(np.asarray(picture))
    except (ValueError, RuntimeError, SyntaxError, EOFError) as error:
        raise UserError(f"{name} is broken ({one_line(error)}); replace or remove it") from None
    if pixels.ndim == 2:
        pixels = np.dstack([pixels] * 3)
    alpha = np.ascontiguousarray(pixels[..., 3]) if pixels.shape[2] == 4 else None
    return Frame(
        np.ascontiguousarray(pixels[..., :3]),
        None if alpha is None or alpha.min() == 255 else alpha,
        usable_profile(picture.info.get("icc_profile")),
    )
