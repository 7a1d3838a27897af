"""Whether the calibration images were enough: how far ranges move when the number of images doubles.

Calibration counts the values of a fixed half of the images, chosen by content, a second time. The range of the half
differs from the range of all n images about as much as the latter differs from the range of infinitely many images:
both differences have the standard error sigma / sqrt(n).
"""

from dataclasses import dataclass

import numpy as np

from sodeploy.quant.calibration.methods import LEVELS, expected_error, threshold
from sodeploy.quant.calibration.statistics import Statistics, is_in_half
from sodeploy.quant.planning.plan import Plan
from sodeploy.quant.planning.ranges import magnitudes, summed

_ENOUGH = 1.0  # dB


@dataclass(frozen=True)
class Drift:
    """The difference between the ranges of half of the images and the ranges of all.

    Attributes:
        largest: the largest relative change of a range; `tensor` is the first tensor of that range.
        median: the median relative change over all ranges.
        noise: quantization noise that the ranges of the half add on all images, in dB over the noise of the ranges of
            all; nine of ten ranges add less.
        images: the number of all images; `half` of them make the half.
    """

    largest: float
    tensor: str
    median: float
    noise: float
    images: int
    half: int

    @property
    def enough(self) -> bool:
        return self.noise <= _ENOUGH

    def __str__(self) -> str:
        verdict = "these images are enough" if self.enough else "more images would make ranges steadier"
        noise = max(self.noise, 0.1)
        return (
            f"from {self.half} to all {self.images} images ranges moved by {self.median:.1%} (median; {self.tensor} "
            f"most, by {self.largest:.1%}), nine of ten by under {noise:.1f} dB of quantization noise: {verdict}"
        )


def drift(plan: Plan, statistics: Statistics) -> Drift | None:
    """The drift of a plan's ranges.

    Args:
        statistics: the counts that the ranges were read from.

    Returns:
        None where the plan's ranges come from no counts, or one half has too few images to tell. The result depends
        neither on the order of the images nor on the processes that counted them.
    """
    half = sum(map(is_in_half, statistics.images))
    images = len(statistics.images)
    if plan.calibration is None or plan.calibration.method == "calib.cache" or not images / 4 <= half <= images * 3 / 4:
        return None
    moved, noise = {}, []
    for shared in plan.ranges:
        in_half, in_all = (summed(counted, shared.tensors) for counted in (statistics.half, statistics.histograms))
        levels = LEVELS if shared.shift is None else magnitudes(in_all)
        clip = threshold(in_half, plan.calibration.method, levels)
        if shared.amax > 0 and clip > 0:
            moved[shared.tensors[0]] = abs(clip / shared.reach - 1)
            noise.append(expected_error(in_all, clip, levels) / expected_error(in_all, shared.reach, levels))
    if not moved:
        return None
    worst = max(moved, key=lambda tensor: moved[tensor])
    return Drift(
        largest=moved[worst],
        tensor=worst,
        median=float(np.median(list(moved.values()))),
        noise=float(10 * np.log10(np.quantile(noise, 0.9))),
        images=images,
        half=half,
    )
