"""Which source rows or columns make an output row or column of cv2.resize, and with which weights.

The CUDA kernels read these tables (`struct Tap` in kernels/image.cuh). Computed on the host, because cv2 computes
them in double precision, which most GPUs do slowly, and because both sides of an image need only a few hundred.
The formulas are those of OpenCV 4's imgproc/resize.cpp; tests/runtime/test_cuda_processing.py holds the kernels'
bytes against cv2's.
"""

import enum
import functools
import sys

import numpy as np

TAP = np.dtype([("first", "<i4"), ("last", "<i4"), ("head", "<f4"), ("tail", "<f4")])


class Rule(enum.IntEnum):
    """How the taps are summed; the values of `enum Rule` in kernels/image.cuh."""

    LINEAR = 0
    AREA = 1
    HALVE = 2


def covered(taps: np.ndarray, count: int) -> int:
    """The most source rows or columns below `count` outputs side by side, the first of which is a multiple of `count`.

    Args:
        taps: (target,) of dtype TAP.
    """
    begin = np.arange(0, len(taps), count)
    end = np.minimum(begin + count, len(taps)) - 1
    return int((taps["last"][end] - taps["first"][begin] + 1).max())


class Resize:
    """The weights by which cv2.resize resizes a (H, W, 3) uint8 image.

    INTER_LINEAR that halves both sides is INTER_AREA; INTER_AREA that enlarges a side is bilinear, with weights of its
    own.

    Attributes:
        source, target: (height, width) before and after.
        rule: how the taps are summed.
        factor: of AREA's sum: 1 / (pixels of a cell) where cells are whole pixels, which are then weighed 1 each.
        rows, columns: the taps, (target height,) and (target width,) of dtype TAP.
        tables: of the rows and of the columns, what the kernels read: the taps, and behind them AREA's bodies, float32,
            the weights of what lies between a tap's first and last.
    """

    def __init__(self, source: tuple[int, int], target: tuple[int, int], interpolation: str) -> None:
        """Args: interpolation: "linear" or "area"."""
        self.source, self.target = source, target
        scales = [_scale(*sides) for sides in zip(source, target, strict=True)]
        cells = [round(scale) for scale in scales]
        whole = all(abs(scale - cell) < sys.float_info.epsilon for scale, cell in zip(scales, cells, strict=True))
        if whole and cells == [2, 2]:
            self.rule = Rule.HALVE
        elif interpolation == "linear" or min(scales) < 1:
            self.rule = Rule.LINEAR
        else:
            self.rule = Rule.AREA
        self.factor = 1.0
        if whole and self.rule is Rule.AREA:
            self.factor = float(np.float32(1) / np.float32(cells[0] * cells[1]))
        if self.rule is Rule.LINEAR:
            taps = _enlarging_area_taps if interpolation == "area" else _fixed_point_taps
        else:
            taps = _whole_cell_taps if whole else _area_taps
        self.tables = [taps(*sides) for sides in zip(source, target, strict=True)]
        self.rows, self.columns = (
            table[: side * TAP.itemsize].view(TAP) for table, side in zip(self.tables, target, strict=True)
        )


@functools.lru_cache(maxsize=1024)
def map_taps(source: int, target: int) -> np.ndarray:
    """The taps with which cv2.INTER_LINEAR resizes one side of a float32 map, (target,) of dtype TAP.

    `last` is `first` + 1: beyond the border the neighbor within it has all the weight. A source of one pixel is both
    `first`, with all the weight, and `last`.
    """
    first, fraction = _linear_places(source, target)
    fraction = np.where(first < 0, np.float32(0), np.where(first > source - 2, np.float32(source > 1), fraction))
    return _neighbours(np.clip(first, 0, max(source - 2, 0)), fraction, source)


def _linear_places(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixel before each output, which may be -1, and how far behind it the output lies."""
    place = ((np.arange(target) + 0.5) * _scale(source, target) - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int32)
    return first, place - first.astype(np.float32)


@functools.lru_cache(maxsize=1024)
def _fixed_point_taps(source: int, target: int) -> np.ndarray:
    return _in_fixed_point(_neighbours(*_linear_places(source, target), source)).view(np.uint8)


@functools.lru_cache(maxsize=1024)
def _enlarging_area_taps(source: int, target: int) -> np.ndarray:
    places = np.arange(target)
    first = np.floor(places * _scale(source, target)).astype(np.int32)
    fraction = ((places + 1) - (first + 1) * (target / source)).astype(np.float32)
    fraction = np.where(fraction <= 0, np.float32(0), fraction - np.floor(fraction))
    return _in_fixed_point(_neighbours(first, fraction, source)).view(np.uint8)


@functools.lru_cache(maxsize=1024)
def _whole_cell_taps(source: int, target: int) -> np.ndarray:
    cell = source // target
    taps = np.ones(target, TAP)
    taps["first"] = np.arange(target) * cell
    taps["last"] = taps["first"] + cell - 1
    return _with_bodies(taps, np.ones(target))


@functools.lru_cache(maxsize=1024)
def _area_taps(source: int, target: int) -> np.ndarray:
    scale = _scale(source, target)
    begin = np.arange(target) * scale
    end = begin + scale
    cell = np.minimum(scale, source - begin)
    inner_end = np.minimum(np.floor(end).astype(np.int32), source - 1)
    inner_begin = np.minimum(np.ceil(begin).astype(np.int32), inner_end)
    begins_within = inner_begin - begin > 1e-3  # cv2 ignores a smaller piece of a pixel
    ends_within = end - inner_end > 1e-3
    taps = np.empty(target, TAP)
    taps["first"] = inner_begin - begins_within
    taps["last"] = inner_end - 1 + ends_within
    taps["tail"] = np.where(ends_within, np.minimum(np.minimum(end - inner_end, 1.0), cell) / cell, 1.0 / cell)
    taps["head"] = np.where(begins_within, (inner_begin - begin) / cell, 1.0 / cell)
    only_the_end = (taps["first"] == taps["last"]) & ~begins_within & ends_within
    taps["head"] = np.where(only_the_end, taps["tail"], taps["head"])
    return _with_bodies(taps, 1.0 / cell)


def _with_bodies(taps: np.ndarray, bodies: np.ndarray) -> np.ndarray:
    """The taps and behind them their bodies, as bytes."""
    return np.concatenate([taps.view(np.uint8), bodies.astype(np.float32).view(np.uint8)])


def _neighbours(first: np.ndarray, fraction: np.ndarray, source: int) -> np.ndarray:
    """Two neighbours, weighed 1 - fraction and fraction; beyond the border stands the border's own pixel."""
    taps = np.zeros(len(first), TAP)
    taps["first"] = np.clip(first, 0, source - 1)
    taps["last"] = np.clip(first + 1, 0, source - 1)
    taps["head"] = np.float32(1) - fraction
    taps["tail"] = fraction
    return taps


def _in_fixed_point(taps: np.ndarray) -> np.ndarray:
    """cv2's bilinear weights for uint8 have 11 bits."""
    taps = taps.copy()
    for weight in ("head", "tail"):
        taps[weight] = np.rint(taps[weight] * np.float32(2048))
    return taps


def _scale(source: int, target: int) -> float:
    return 1.0 / (target / source)  # two roundings, as cv2: it tells 3 from 3.0000000000000004
