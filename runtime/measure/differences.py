"""The difference between two models on the same images, with its confidence interval."""

from dataclasses import dataclass

import numpy as np

from sodeploy.runtime.measure.metrics import METRICS, Scores

# On fewer images there is no interval. The 95 % percentile bootstrap of a mean is too narrow on few images: for normal
# values it covers P(|t(n-1)| < 1.96 sqrt((n-1)/n)), which is .87 for 6 images, .90 for 10 and .93 for 20.
FEWEST_IMAGES = 20

_CHUNK = 256  # bootstrap resamples at a time: bounds memory at 2 KiB per image


@dataclass(frozen=True)
class Delta:
    """A difference of one metric and its 95 % confidence interval.

    Attributes:
        value: other - baseline.
        low: lower end of the interval; -inf on fewer than `FEWEST_IMAGES` images.
        high: upper end; inf on fewer images.
    """

    value: float
    low: float
    high: float


def bootstrap_deltas(baseline: Scores, other: Scores, resamples: int = 5000, seed: int = 0) -> dict[str, Delta]:
    """How `other` differs from `baseline` on the same images, metric by metric.

    The interval is the paired percentile bootstrap over images (Efron and Tibshirani, 1993, ch. 13): both models are
    scored on the same resampled images, so that a hard image, which is hard for both, cancels. A maximum of a mean
    curve is taken anew for each resample. There is no interval on fewer than `FEWEST_IMAGES` images.

    Returns:
        By the keys of the metrics of `baseline`: other - baseline, with the 2.5 % and 97.5 % quantiles; equal for equal
        arguments.

    Raises:
        ValueError: the two were not scored on the same number of images, or on none.
    """
    images = len(baseline)
    if len(other) != images or not images:
        raise ValueError(f"a paired comparison needs the same images: {images} against {len(other)}")
    before, after = baseline.summary(), other.summary()
    if images < FEWEST_IMAGES:
        return {key: Delta(after[key] - before[key], -np.inf, np.inf) for key in before}
    drawn = _resampled_differences(baseline, other, resamples, seed)
    deltas = {}
    for key in before:
        low, high = np.quantile(drawn[key], [0.025, 0.975])
        deltas[key] = Delta(after[key] - before[key], float(low), float(high))
    return deltas


def _resampled_differences(baseline: Scores, other: Scores, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """(resamples,) differences of each metric."""
    images = len(baseline)
    # The mean of a metric that is a mean is linear in the images: one product serves all such metrics.
    chosen = [METRICS[key] for key in baseline.keys]
    linear = [metric for metric in chosen if metric.summary == "mean"]
    peaks = [metric for metric in chosen if metric.summary == "max"]
    differences = (
        np.zeros((images, 0))
        if not linear
        else np.stack(
            [(other[each.per_image] - baseline[each.per_image]).reshape(images, -1).mean(axis=1) for each in linear],
            axis=1,
        )
    )
    drawn: dict[str, list[np.ndarray]] = {key: [] for key in baseline.keys}
    random = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        count = min(_CHUNK, resamples - start)
        choice = random.integers(images, size=(count, images))
        weights = np.stack([np.bincount(row, minlength=images) for row in choice]) / images  # (count, N)
        for metric, column in zip(linear, (weights @ differences).T, strict=True):
            drawn[metric.key].append(column)
        for metric in peaks:
            after, before = (metric.over(weights @ scores[metric.per_image]) for scores in (other, baseline))
            drawn[metric.key].append(after - before)
    return {key: np.concatenate(parts) for key, parts in drawn.items()}
