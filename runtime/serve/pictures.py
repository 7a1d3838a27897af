"""The work on one picture that the network does not do; it runs in threads beside the event loop."""

import re
from typing import NamedTuple

import numpy as np

from sodeploy.calib_data.headers import read_header
from sodeploy.calib_data.images import TooManyPixels
from sodeploy.errors import UserError
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.media.frame import Frame
from sodeploy.runtime.media.heif import is_heif
from sodeploy.runtime.media.pictures import make_picture
from sodeploy.runtime.media.reading import decode_frame
from sodeploy.runtime.media.still import encode_still
from sodeploy.runtime.processing import postprocess, preprocess
from sodeploy.runtime.serve.parameters import Wanted
from sodeploy.runtime.serve.refusals import Refusal

_NAME = "the picture"  # in messages: the name of the sender's file is never repeated
MEDIA_TYPES = {".png": "image/png", ".webp": "image/webp", ".jpg": "image/jpeg"}


class Prepared(NamedTuple):
    """A picture that is ready for the network: its pixels, and the network's input (3, h, w) float32."""

    frame: Frame
    tensor: np.ndarray


def declared_pixels(data: bytes, most_pixels: int) -> int:
    """The pixels that a picture will take, by its header; nothing is decoded.

    Raises:
        Refusal: they are too many.
    """
    try:
        header = read_header(data)
    except ValueError:  # HEIC tells its size only to its own decoder; anything else fails there
        return most_pixels if is_heif(data) else 0
    if header.pixels > most_pixels:
        raise _too_large(header.width, header.height, most_pixels)
    return header.pixels


def prepare(data: bytes, contract: Contract, most_pixels: int, wanted: Wanted) -> Prepared:
    """Decode a picture, and make the network's input of it.

    Raises:
        Refusal: it is no picture, broken, or too large.
    """
    try:
        frame = decode_frame(data, _NAME, most_pixels, whole=wanted.look.whole_frame)
    except TooManyPixels as error:
        raise _too_large(error.width, error.height, most_pixels) from None
    except UserError as error:
        raise Refusal("bad_picture", str(error)) from None
    return Prepared(frame, preprocess(frame.image, contract))


def finish(frame: Frame, output: np.ndarray, contract: Contract, wanted: Wanted) -> bytes:
    """The bytes of the picture that the request wants, of the network's output (h, w).

    Raises:
        Refusal: the network's output is not finite, or the format cannot hold the picture.
    """
    try:
        saliency = postprocess(output, contract, frame.size)
    except UserError as error:
        raise Refusal("model_failed", str(error)) from None
    picture = make_picture(frame, saliency, wanted.look)
    try:
        return encode_still(picture, wanted.suffix, frame.profile if wanted.look.channels > 1 else None)
    except UserError as error:
        raise Refusal("bad_parameter", re.sub(r"--(\w+) ", r"\1=", str(error))) from None


def _too_large(width: int, height: int, most_pixels: int) -> Refusal:
    return Refusal(
        "too_many_pixels",
        f"the picture is {width} x {height} pixels, {width * height / 1e6:.0f} megapixels; the limit is "
        f"{most_pixels / 1e6:g}: make it smaller",
    )
