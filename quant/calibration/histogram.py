"""A histogram of magnitudes that needs no range beforehand and merges by addition."""

import functools
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_MANTISSA_BITS = 9  # kept of float32's 23: a bin is 2**-9 of its own value wide
_SHIFT = 23 - _MANTISSA_BITS
BINS = 0x7F800000 >> _SHIFT  # every finite magnitude
LOWER_EDGES = (np.arange(BINS, dtype=np.uint32) << _SHIFT).view(np.float32)
_SIGN = 0x80000000
_LANES = 4
_BLOCK = 4096  # values that stay in the first-level cache between two loops


class Counted(NamedTuple):
    """The magnitudes of one array.

    Attributes:
        zeros: values in bin 0.
        first: the first bin behind bin 0 that holds a value.
        counts: `(n,) uint32`, of the bins from `first` to the last one that holds a value.
        low: the least value, or 0.
        high: the largest value, or 0.
    """

    zeros: int
    first: int
    counts: np.ndarray
    low: float
    high: float


def count(values: np.ndarray, sums: np.ndarray | None = None) -> Counted:
    """Count the elements of `values`, float32 of any shape. Other Python threads run meanwhile.

    Args:
        sums: as of `add_up`, which is then done on the way; `values` are rows.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    rows = np.ascontiguousarray(values, np.float32).reshape(1 if sums is None else len(sums), -1)
    if not hasattr(_own, "table"):  # kept for the next tensor: new memory takes longer than counting a small one
        _own.table = np.zeros((_SIGN >> _SHIFT) * _LANES, np.uint32)
    sums = np.zeros((len(rows), 0)) if sums is None else sums
    zeros, first, counts, positive, negative = _read()(rows, _own.table, sums)
    if broken := int(counts[max(BINS - first, 0) :].sum()):
        raise ValueError(f"{broken} of {values.size} values are NaN or infinite")
    low, high = np.array([negative, positive], np.uint32).view(np.float32).tolist()
    return Counted(zeros, first, counts, 0.0 - low, high)


def add_up(rows: np.ndarray, sums: np.ndarray) -> None:
    """Add the values of each row to sums that take turns: value i to sum i modulo n. Other threads run meanwhile.

    Args:
        rows: `(rows, values) float32`.
        sums: `(rows, n) float64`.
    """
    _read()(np.ascontiguousarray(rows), np.zeros(0, np.uint32), sums)


_own = threading.local()  # of a thread
_Read = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[int, int, np.ndarray, int, int]]


@functools.cache
def _read() -> _Read:
    """The loop over values, compiled: numpy needs several passes over memory and 20 times as long."""
    import numba

    @numba.njit(nogil=True, cache=True)
    def read(rows: np.ndarray, table: np.ndarray, sums: np.ndarray) -> tuple[int, int, np.ndarray, np.int32, np.int32]:
        """Count the values of one tensor and add them up, as `count` and `add_up` do.

        Args:
            table: zeros, and zeros again afterwards; empty if nothing is to be counted. Equal values follow each other
                often, and adding to one number waits for the addition before: so a bin has `_LANES` numbers beside
                each other, which take turns.
            sums: without columns if nothing is to be added up.

        Returns:
            As in `Counted`: zeros, first, counts. The largest positive pattern, and the largest magnitude among
            negatives.
        """
        most, least = np.int32(0), np.int32(0)
        before_first = np.uint32(_SIGN >> _SHIFT)
        lanes = max(sums.shape[1], 1)
        block = max(_BLOCK // lanes, 1) * lanes
        places = np.zeros(block, np.uint32)
        for row in range(len(rows)):
            for start in range(0, rows.shape[1], block):
                values = rows[row, start : start + block]
                if sums.shape[1]:
                    for begin in range(0, len(values), lanes):
                        some = values[begin : begin + lanes]
                        for lane in range(len(some)):
                            sums[row, lane] += some[lane]
                if not len(table):
                    continue
                integers, bits = values.view(np.int32), values.view(np.uint32)
                for index in range(len(bits)):  # in a loop of its own, which becomes vector instructions
                    integer = integers[index]
                    ordered = np.int32(integer ^ ((integer >> np.int32(31)) & np.int32(_SIGN - 1)))  # as the values are
                    if ordered > most:
                        most = ordered
                    if ordered < least:
                        least = ordered
                    number = np.uint32((bits[index] & np.uint32(_SIGN - 1)) >> np.uint32(_SHIFT))
                    places[index] = number * np.uint32(_LANES)
                    before = np.uint32(number - np.uint32(1))  # of bin 0: the largest number
                    if before < before_first:
                        before_first = before
                fours = len(bits) // _LANES * _LANES
                for index in range(0, fours, _LANES):
                    table[places[index]] += np.uint32(1)
                    table[places[index + 1] + np.uint32(1)] += np.uint32(1)
                    table[places[index + 2] + np.uint32(2)] += np.uint32(1)
                    table[places[index + 3] + np.uint32(3)] += np.uint32(1)
                for index in range(fours, len(bits)):
                    table[places[index]] += np.uint32(1)
        negative = np.int32(-1) - least if least < 0 else np.int32(0)
        first = np.int64(before_first) + 1
        counts = np.zeros(max((max(most, negative) >> _SHIFT) + 1 - first, 0), np.uint32)
        used = table[first * _LANES : (first + len(counts)) * _LANES]
        for index in range(len(counts)):
            for lane in range(_LANES):
                counts[index] += used[index * _LANES + lane]
        zeros = table[:_LANES].sum()
        used[:] = table[:_LANES] = 0
        return zeros, first, counts, most, negative

    compiled: _Read = read
    return compiled


class MagnitudeHistogram:
    """How often each magnitude |x| occurs in one tensor, over any number of images.

    A bin is a float32 bit pattern without its low bits. So no range is needed beforehand, and the histograms of several
    processes or machines merge by adding their counts, in any order.

    Attributes:
        counts: (BINS,) int64.
        low, high: the smallest and the largest value, exactly; low is at most 0 and high at least 0.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.low = self.high = 0.0

    @property
    def maximum(self) -> float:
        """The largest magnitude."""
        return max(self.high, -self.low)

    @property
    def signed(self) -> bool:
        """Whether a value was below zero."""
        return self.low < 0

    def add(self, values: np.ndarray) -> None:
        """Count the elements of `values`, float32 of any shape.

        Raises:
            ValueError: a value is NaN or infinite; nothing is counted.
        """
        self.include(count(values))

    def include(self, counted: Counted) -> None:
        """Add what `count` found in an array."""
        self.counts[0] += counted.zeros
        self.counts[counted.first : counted.first + len(counted.counts)] += counted.counts
        self.low = min(self.low, counted.low)
        self.high = max(self.high, counted.high)

    def __iadd__(self, other: "MagnitudeHistogram") -> "MagnitudeHistogram":
        self.counts += other.counts
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)
        return self

    def __add__(self, other: "MagnitudeHistogram") -> "MagnitudeHistogram":
        """The histogram of the values of both: two sets of images, or two tensors that share a scale."""
        both = MagnitudeHistogram()
        both += self
        both += other
        return both

    def linear(self, bins: int = 2048) -> np.ndarray:
        """The counts in equal bins over [0, maximum], `(bins,) float64`.

        The counts of a bit pattern's bin, which is much narrower, are spread evenly over it.
        """
        (occupied,) = np.nonzero(self.counts)
        if not len(occupied) or occupied[-1] == 0:
            return np.zeros(bins)
        top = occupied[-1] + 1
        edges = np.append(LOWER_EDGES[:top], np.float32(self.maximum)).astype(np.float64)
        cumulative = np.append(0, np.cumsum(self.counts[:top]))
        return np.diff(np.interp(np.linspace(0, self.maximum, bins + 1), edges, cumulative))

    def share_above(self, threshold: float) -> float:
        """The share of values with a magnitude beyond `threshold`, in [0, 1]; clipping there changes them."""
        total = self.counts.sum()
        return float(self.counts[np.searchsorted(LOWER_EDGES, threshold, side="right") :].sum() / max(total, 1))
