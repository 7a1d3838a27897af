"""Whether the calibration images were enough: how far ranges moved when the images were doubled.

Calibration counts the values of a fixed half of the images, chosen by their content, a second time. A range read from
half of the images differs from that of all by about as much as that of all differs from what ever more images would
give: both have the standard error sigma / sqrt(n), of n / 2 images against n, and of n images against infinitely many.
"""

from dataclasses import dataclass

import numpy as np

from quant.calibrate import Statistics, is_in_half
from quant.histogram import MagnitudeHistogram
from quant.plan import Plan
from quant.thresholds import threshold

_ENOUGH = 0.12  # a range off by this adds 1 dB of rounding noise to its tensors, or clips as little more


@dataclass(frozen=True)
class Drift:
    """How far the ranges of half of the images are from those of all, relative to the latter.

    Attributes:
        ninth: nine of ten ranges moved less.
        tensor: the first of the range that moved most.
        images: how many there are in all; `half` of them make the half.
    """

    largest: float
    ninth: float
    median: float
    tensor: str
    images: int
    half: int

    @property
    def enough(self) -> bool:
        return self.ninth <= _ENOUGH

    def __str__(self) -> str:
        verdict = "that is enough" if self.enough else "more images would make them steadier"
        return (
            f"from {self.half} to all {self.images} images ranges moved by {self.median:.1%} (median), nine of ten by "
            f"under {self.ninth:.1%}, {self.tensor} most, by {self.largest:.1%}: {verdict}"
        )


def drift(plan: Plan, statistics: Statistics) -> Drift | None:
    """The drift of a plan's ranges, which are of these statistics; None where too few images are in one half to say.

    The same images give the same answer in whatever order, process or machine they were counted.
    """
    half = sum(map(is_in_half, statistics.images))
    images = len(statistics.images)
    if plan.calibration is None or plan.calibration.method == "calib.cache" or not images / 4 <= half <= images * 3 / 4:
        return None
    moved = {}
    for shared in plan.ranges:
        histogram = MagnitudeHistogram()
        for tensor in shared.tensors:
            if tensor in statistics.half:
                histogram = histogram + statistics.half[tensor]
        if shared.amax > 0:
            moved[shared.tensors[0]] = abs(threshold(histogram, plan.calibration.method) / shared.amax - 1)
    if not moved:
        return None
    worst = max(moved, key=lambda tensor: moved[tensor])
    median, ninth = np.quantile(list(moved.values()), (0.5, 0.9))
    return Drift(moved[worst], float(ninth), float(median), worst, images, half)
