"""Between the Y'CbCr of videos and RGB: which matrix, which range.

ITU-R BT.601 for standard definition, BT.709 for high definition, BT.2020 for ultra high definition; a file says which.
"""

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import av

_LEAST_HD_HEIGHT = 720  # a video that does not tell its matrix has BT.709 from here on, as players take it


class Matrix(IntEnum):
    """`matrix_coefficients` of ITU-T H.273."""

    BT709 = 1
    UNSPECIFIED = 2
    BT601_625 = 5
    BT601_525 = 6
    SMPTE240 = 7
    BT2020 = 9


class Range(IntEnum):
    """The range of 8-bit luma: 16 to 235, or 0 to 255. The values are FFmpeg's."""

    UNSPECIFIED = 0
    LIMITED = 1
    FULL = 2


_UNSPECIFIED = 2  # primaries and transfer function, ITU-T H.273
_HIGH_DYNAMIC_RANGE = (16, 18)  # transfer functions PQ and HLG, ITU-T H.273


class Color(NamedTuple):
    """The meaning of the numbers of a video, by ITU-T H.273.

    Attributes:
        matrix: `matrix_coefficients`, never UNSPECIFIED.
        range: of the luma, never UNSPECIFIED.
        primaries: `colour_primaries`.
        transfer: `transfer_characteristics`.
    """

    matrix: Matrix
    range: Range
    primaries: int = _UNSPECIFIED
    transfer: int = _UNSPECIFIED

    @property
    def is_high_dynamic_range(self) -> bool:
        return self.transfer in _HIGH_DYNAMIC_RANGE

    @classmethod
    def of(cls, frame: "av.VideoFrame") -> "Color":
        """The color of a frame. Its height decides a matrix that it does not tell; a range is then LIMITED."""
        try:
            matrix = Matrix(frame.colorspace)
        except ValueError:  # RGB, or a matrix that nobody uses
            matrix = Matrix.UNSPECIFIED
        if matrix == Matrix.UNSPECIFIED:
            high = min(frame.width, frame.height) >= _LEAST_HD_HEIGHT
            matrix = Matrix.BT709 if high else Matrix.BT601_525
        full = frame.color_range == Range.FULL or frame.format.name.startswith("yuvj")
        return cls(matrix, Range.FULL if full else Range.LIMITED, int(frame.color_primaries), int(frame.color_trc))


class Converter:
    """Converts the frames of one video, one at a time: FFmpeg prepares itself once for all of them."""

    def __init__(self) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        self._reformatter = VideoReformatter()
        # Without the two flags the faster code of FFmpeg is off by up to two grey levels.
        self._rule = int(Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT)

    def to_rgb(self, frame: "av.VideoFrame", color: Color) -> np.ndarray:
        """(H, W, 3) uint8 RGB of a frame of any pixel format, in the meaning of `color`."""
        if not frame.format.is_rgb:
            frame.colorspace, frame.color_range = color.matrix, color.range
        converted = self._reformatter.reformat(
            frame, format="rgb24", interpolation=self._rule, dst_color_range=Range.FULL, threads=1
        )
        return converted.to_ndarray()

    def from_rgb(self, picture: np.ndarray, pixel_format: str, color: Color) -> "av.VideoFrame":
        """A frame of a Y'CbCr format, for an encoder, in the meaning of `color`.

        Args:
            picture: uint8, (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA with straight alpha.
        """
        import av

        layout = "gray" if picture.ndim == 2 else "rgba" if picture.shape[2] == 4 else "rgb24"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=layout)
        frame.color_range = Range.FULL
        converted = self._reformatter.reformat(
            frame,
            format=pixel_format,
            interpolation=self._rule,
            dst_colorspace=int(color.matrix),
            dst_color_range=int(color.range),
            threads=1,
        )
        converted.colorspace, converted.color_range = color.matrix, color.range
        converted.color_primaries, converted.color_trc = color.primaries, color.transfer
        return converted
