"""Ranges of activations from one pass over the calibration images."""

import numpy as np

_MANTISSA_BITS = 9  # kept of float32's 23: a bin is 2**-9 of its own value wide
_SHIFT = 23 - _MANTISSA_BITS
BINS = 0x7F800000 >> _SHIFT  # every finite magnitude
LOWER_EDGES = (np.arange(BINS, dtype=np.uint32) << _SHIFT).view(np.float32)


class MagnitudeHistogram:
    """How often each magnitude |x| occurs in one tensor, over any number of images.

    A bin is a float32 bit pattern with the low bits dropped, so no range is needed beforehand and two histograms of
    other images, processes or machines merge by adding their counts, in any order.

    Attributes:
        counts: (BINS,) int64.
        low, high: the least and the largest value seen, exactly; 0 always counts as seen.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.low = self.high = 0.0

    @property
    def maximum(self) -> float:
        """The largest magnitude seen."""
        return max(self.high, -self.low)

    @property
    def signed(self) -> bool:
        """Whether a value below zero was seen."""
        return self.low < 0

    def add(self, values: np.ndarray) -> None:
        """Count the elements of `values`, float32 of any shape.

        Raises:
            ValueError: a value is NaN or infinite; nothing is counted.
        """
        pattern = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint32)
        bins = (pattern & 0x7FFFFFFF) >> _SHIFT
        counts = np.bincount(bins)  # up to the largest value
        if len(counts) > BINS:
            raise ValueError(f"{counts[BINS:].sum()} of {values.size} values are NaN or infinite")
        self.counts[: len(counts)] += counts
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))

    def __iadd__(self, other: "MagnitudeHistogram") -> "MagnitudeHistogram":
        self.counts += other.counts
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)
        return self

    def __add__(self, other: "MagnitudeHistogram") -> "MagnitudeHistogram":
        """The histogram of both sets of values: of more images, or of two tensors that must share a scale."""
        both = MagnitudeHistogram()
        both += self
        both += other
        return both

    def linear(self, bins: int = 2048) -> np.ndarray:
        """The counts again, `(bins,) float64`, in equal bins over [0, maximum]; zeros where nothing was seen.

        A count is spread evenly over the (much narrower) bin of the bit pattern it stands in.
        """
        (occupied,) = np.nonzero(self.counts)
        if not len(occupied) or occupied[-1] == 0:
            return np.zeros(bins)
        top = occupied[-1] + 1
        edges = np.append(LOWER_EDGES[:top], np.float32(self.maximum)).astype(np.float64)
        cumulative = np.append(0, np.cumsum(self.counts[:top]))
        return np.diff(np.interp(np.linspace(0, self.maximum, bins + 1), edges, cumulative))

    def share_above(self, threshold: float) -> float:
        """The share of the values whose magnitude lies beyond `threshold`: what clipping there would change."""
        total = self.counts.sum()
        return float(self.counts[np.searchsorted(LOWER_EDGES, threshold, side="right") :].sum() / max(total, 1))
