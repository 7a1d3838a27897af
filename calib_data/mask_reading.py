"""Ground-truth masks and saliency maps from files, as people store them.

A mask is read in two steps. `_plane` finds the channel that holds it: the grey values, the alpha channel, or the
colours of a palette. `RULES` then say which of its values are the object; the first rule that fits is taken. A file
that no rule fits is refused, because a guess would make every score wrong without a word.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from sodeploy.calib_data.headers import PALETTE, PNG_SIGNATURE, Header, png_chunks
from sodeploy.calib_data.images import bytes_of, check_header, decode
from sodeploy.errors import UserError

FOREGROUND = 128  # PySODMetrics counts a pixel as object where the 8-bit mask is above this

_LABELS = 20  # classes of PASCAL VOC; 255 marks there the pixels that nobody judged
_MOST_LABELS = 10  # different values in one mask beyond which they are no labels but shades
_MOST_COLOURS = 32  # likewise for colours
_VOID = (224, 224, 192)  # the colour of VOC's label 255
_DEPTHS = (10, 12, 14, 16)  # bits that cameras and label tools put into 16


class _Unclear(Exception):
    """Why a file cannot be understood as a mask, and what helps."""


class MaskReading(NamedTuple):
    """One mask, and how its file was understood.

    Attributes:
        mask: (H, W) uint8, 0 background, 255 object, in between where the annotation is soft.
        rule: which values of the file are the object; "" for an ordinary 8-bit mask.
    """

    mask: np.ndarray
    rule: str


@dataclass(frozen=True)
class _Rule:
    """One way to store a mask.

    Attributes:
        fits: takes the levels, the different values of the plane in ascending order, and how often each occurs.
        read: the plane as (H, W) uint8.
        says: what a note tells the user; {levels} and {high} stand for the values found; "" for nothing to tell.
    """

    fits: Callable[[np.ndarray, np.ndarray], bool]
    read: Callable[[np.ndarray], np.ndarray]
    says: str


def _full(largest: int) -> int:
    """The full scale of a plane of more than 8 bits: of the fewest bits that hold its largest value."""
    return next(2**bits - 1 for bits in _DEPTHS if largest < 2**bits)


def _scaled(plane: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.convertScaleAbs(plane, alpha=255 / _full(plane.max())))


def _where(condition: np.ndarray) -> np.ndarray:
    return condition.astype(np.uint8) * np.uint8(255)


def _are_voc_labels(levels: np.ndarray, counts: np.ndarray) -> bool:
    """Labels of VOC: the small values cover more than 255 does, which is the thin void around the objects."""
    labels = (levels > 0) & (levels <= _LABELS)
    known = labels | (levels == 0) | (levels == 255)
    return bool(known.all() and labels.any() and levels[-1] == 255 and counts[labels].sum() > counts[-1])


RULES = (
    _Rule(
        lambda levels, counts: levels[-1] == 0,
        lambda plane: plane.astype(np.uint8),
        "",
    ),
    _Rule(
        lambda levels, counts: len(levels) <= 2 and levels[0] in (0, levels[-1]) and levels[-1] <= FOREGROUND,
        lambda plane: _where(plane > 0),
        "value {high} is the object",
    ),
    _Rule(
        lambda levels, counts: levels[0] == 0 and levels[-1] <= _LABELS and len(levels) <= _MOST_LABELS,
        lambda plane: _where(plane > 0),
        "the values are labels, and all but 0 are the object",
    ),
    _Rule(
        _are_voc_labels,
        lambda plane: _where((plane > 0) & (plane <= _LABELS)),
        f"the values are labels of PASCAL VOC: 1 to {_LABELS} are the object, 255 (not judged) is background",
    ),
    _Rule(
        lambda levels, counts: FOREGROUND < levels[-1] <= 255,
        lambda plane: plane.astype(np.uint8, copy=False),
        "",
    ),
    _Rule(
        lambda levels, counts: levels[-1] > 255 and len(levels) <= 2 and levels[0] in (0, levels[-1]),
        lambda plane: _where(plane > 0),
        "",
    ),
    _Rule(
        lambda levels, counts: levels[-1] > 255 and 2 * levels[-1] > _full(levels[-1]),
        _scaled,
        "",
    ),
)


def read_mask(path: str | Path) -> np.ndarray:
    """Read a ground-truth mask: 0 background, 255 object, in between where the annotation is soft.

    Returns:
        (H, W) uint8.

    Raises:
        UserError: the file is missing or broken, or its values can be understood in more than one way.
    """
    return understand_mask(path).mask


def understand_mask(path: str | Path) -> MaskReading:
    """Read a ground-truth mask, and say how its file was understood.

    Raises:
        UserError: as `read_mask`.
    """
    data = bytes_of(path)
    try:
        plane, says = _plane(data, check_header(data, path), path)
        levels, counts = _levels(plane)
        rule = next((rule for rule in RULES if rule.fits(levels, counts)), None)
        if rule is None:
            raise _Unclear(
                f"its {len(levels)} values go from {levels[0]} to {levels[-1]}: none is above half of the scale, where "
                "the object of a soft mask begins, and they are no labels with background 0; store the object as 255"
            )
    except _Unclear as reason:
        raise UserError(f"mask {path} cannot be understood: {reason}") from None
    told = rule.says.format(high=levels[-1])
    return MaskReading(rule.read(plane), ", ".join(filter(None, (says, told))))


def read_map(path: str | Path) -> np.ndarray:
    """Read a saliency map: grey values, or the alpha channel of a cut-out. Its scale does not matter to the metrics.

    Returns:
        (H, W) uint8.

    Raises:
        UserError: the file is missing or broken, or is a picture in colour.
    """
    data = bytes_of(path)
    try:
        plane, _ = _plane(data, check_header(data, path), path)
    except _Unclear as reason:
        raise UserError(f"map {path} cannot be understood: {reason}") from None
    return _scaled(plane) if plane.max() > 255 else plane.astype(np.uint8, copy=False)


def _levels(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values, ascending, and how often each occurs."""
    counted = np.zeros(np.iinfo(plane.dtype).max + 1, np.int64)
    for rows in _in_strips(plane):
        counted += np.bincount(rows.ravel(), minlength=len(counted))
    (levels,) = np.nonzero(counted)
    return levels, counted[levels]


def _in_strips(image: np.ndarray) -> Iterator[np.ndarray]:
    """Views of some rows each, of a million pixels or less: NumPy's temporary arrays are eight bytes per pixel."""
    step = max(1, (1 << 20) // image.shape[1])
    for first in range(0, len(image), step):
        yield image[first : first + step]


def _colours(image: np.ndarray) -> np.ndarray | None:
    """The different colours of an (H, W, 3) uint8 image as blue + 256 green + 65536 red, ascending; None for many."""
    found = np.empty(0, np.uint32)
    for rows in _in_strips(image):
        packed = (rows.astype(np.uint32) @ np.array([1, 256, 65536], np.uint32)).ravel()
        changes = np.flatnonzero(packed[1:] != packed[:-1])  # few where colours are flat: sorting them is quick
        found = np.unique(np.concatenate([found, packed[:1], packed[changes + 1]]))
        if len(found) > _MOST_COLOURS:
            return None
    return found


def _plane(data: bytes, header: Header, name: str | Path) -> tuple[np.ndarray, str]:
    """The channel of a file that holds a mask, (H, W) uint8 or uint16, and what a note says of it.

    Raises:
        _Unclear: no channel does, or two do and differ.
    """
    image = decode(data, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH, name)
    shown, says = (image, "") if image.ndim == 2 else _plane_of_colours(data, header, image, name)
    if not header.alpha:
        return _require(shown), says
    whole = decode(data, cv2.IMREAD_UNCHANGED, name)
    if whole.ndim != 3 or whole.shape[2] != 4:
        return _require(shown), says
    alpha = np.ascontiguousarray(whole[..., 3])
    opaque = np.iinfo(alpha.dtype).max
    if alpha.min() == opaque or (shown is not None and alpha.min() > opaque // 2):
        return _require(shown), says
    if alpha.shape != image.shape[:2] or b"eXIf" in data or b"EXIF" in data:
        raise _Unclear("its alpha channel is turned by an EXIF orientation; save it upright")
    if shown is not None and len(levels := _levels(shown)[0]) == 2 and levels[0] == 0:
        if not np.array_equal(shown > 0, alpha > opaque // 2):
            raise _Unclear("its grey values and its alpha channel are two different masks; keep one of them")
        return shown, says
    return alpha, "the alpha channel is the mask"


def _require(plane: np.ndarray | None) -> np.ndarray:
    if plane is None:
        raise _Unclear("it is a picture in colour; give a grey one, or one with the mask in its alpha channel")
    return plane


def _plane_of_colours(
    data: bytes, header: Header, image: np.ndarray, name: str | Path
) -> tuple[np.ndarray | None, str]:
    """The mask in a picture stored in three channels: its grey values, or which of a few flat colours are the object.

    None: it is a picture in colour.
    """
    indices = _palette_indices(data, header, name)
    blue, green, red = (image[..., channel] for channel in range(3))
    spread = np.maximum(np.maximum(blue, green), red) - np.minimum(np.minimum(blue, green), red)
    stray = spread.size // 1000 if indices is None else 0  # pixels that a JPEG may tint
    if np.count_nonzero(spread > np.iinfo(image.dtype).max // 16) <= stray:
        grey = decode(data, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH, name)
        if indices is not None and grey.min() == grey.max() and indices.min() != indices.max():
            return indices, "the palette's colours are all alike, so its indices are the values"
        return grey, ""
    if image.dtype != np.uint8:
        return None, ""
    colours = _colours(image)
    if colours is None:
        return None, ""
    if colours[0] == 0:
        background = (blue | green | red) == 0
        says = "black is background, every other colour is the object"
    elif indices is not None and indices.min() == 0:
        background = indices == 0
        says = "the palette's colour 0 is background, every other is the object"
    else:
        raise _Unclear(f"it has {len(colours)} colours, none of which is black; store the background as black")
    void = (red == _VOID[0]) & (green == _VOID[1]) & (blue == _VOID[2])
    if void.any():
        says += ", and VOC's void colour counts as background"
    return _where(~(background | void)), says


def _palette_indices(data: bytes, header: Header, name: str | Path) -> np.ndarray | None:
    """(H, W) uint8 palette indices of a palette PNG, None for any other file.

    OpenCV gives colours only: the same file declared as grey, and without its palette, decodes to the indices.
    """
    if header.kind != "PNG" or data[25] != PALETTE:
        return None
    bits = data[24]
    parts = [PNG_SIGNATURE]
    for kind, content in png_chunks(data):
        if kind == b"IHDR":
            content = content[:9] + b"\0" + content[10:]
        if kind in (b"IHDR", b"IDAT", b"IEND", b"eXIf"):
            crc = zlib.crc32(kind + content).to_bytes(4, "big")
            parts += [len(content).to_bytes(4, "big"), kind, content, crc]
    grey = decode(b"".join(parts), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH, name)
    return grey if bits == 8 else grey // np.uint8(255 // (2**bits - 1))
