"""The methods of calibration: each reads the threshold at which to clip a tensor from the same saved histogram."""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from sodeploy.quant.calibration.histogram import MagnitudeHistogram
from sodeploy.quant.int8 import STEPS

Method = Literal["kl", "mse", "percentile", "max"]
METHODS: tuple[Method, ...] = get_args(Method)
DEFAULT: Method = "kl"

LEVELS = STEPS + 1  # magnitudes that int8 can represent, with zero
PERCENTILE = 99.99
_LEAST_DB = 20.0  # kl leaves 21 dB or more of every tensor that is int8 in engines of CSNet and U2-Netp
_GAIN_DB = 6.0


def threshold(histogram: MagnitudeHistogram, method: Method, levels: int = LEVELS) -> float:
    """The magnitude at which to clip, in (0, maximum]; 0.0 for a tensor of zeros.

    Args:
        levels: the number of magnitudes that int8 can represent; more than `LEVELS` for a range that is shifted
            (quant/planning/ranges.py).
    """
    return chosen(histogram, method, levels)[0]


def chosen(histogram: MagnitudeHistogram, method: Method, levels: int = LEVELS) -> tuple[float, Method]:
    """The result of `threshold`, and the method that it is from.

    That is `method`, but mse where kl leaves less than 20 dB of signal to noise and mse leaves 6 dB more. KL counts how
    many values are clipped, not how far they lie outside. Where many values are one number, such as a flat background
    behind a normalization, or a ReLU's zeros after a constant was added, it clips much of the rest.
    """
    if histogram.maximum == 0:
        return 0.0, method
    clip = _METHODS[method](histogram, levels)
    if method == "kl" and (decibels := expected_decibels(histogram, clip, levels)) < _LEAST_DB:
        best = _mse(histogram, levels)
        if expected_decibels(histogram, best, levels) > decibels + _GAIN_DB:
            return best, "mse"
    return clip, method


def kl_threshold(counts: np.ndarray, levels: int = LEVELS) -> int:
    """How many bins to keep so that `levels` steps preserve the distribution best.

    Each prefix of the bins gives two distributions. P is the clipped one: the counts beyond the prefix join its last
    bin. Q is the quantized one: the prefix without the tail, merged into `levels` and spread back over the bins that
    are not empty. The prefix with the smallest KL(P || Q) wins (S. Migacz, "8-bit inference with TensorRT", GTC 2017).
    Bin 0 is left out: after a ReLU it holds exact zeros. Every scale represents them, and with them in the count
    everything else would be clipped.

    All prefixes are computed at once. Q is constant over the filled bins of a level, so sum(P log Q) needs only the
    mass and the number of filled bins per level; both come from running sums.

    Args:
        counts: (bins,) non-negative, equal bins over [0, maximum].

    Returns:
        The length of the best prefix, in [levels, bins].
    """
    p = np.asarray(counts, np.float64).copy()
    p[0] = 0.0
    bins = len(p)
    if not p.any():
        return bins
    with np.errstate(divide="ignore", invalid="ignore"):
        p_log_p = np.where(p > 0, p * np.log(p), 0.0)
    mass, filled, entropy = (np.append(0.0, np.cumsum(v)) for v in (p, p > 0, p_log_p))

    sizes = np.arange(levels, bins + 1)
    # Bin j of a prefix of length n belongs to level floor(j * levels / n); level k starts at ceil(k * n / levels).
    edges = -(-np.arange(levels + 1) * sizes[:, None] // levels)  # (prefixes, levels + 1)
    level_mass = np.diff(mass[edges])
    level_filled = np.diff(filled[edges])
    with np.errstate(divide="ignore", invalid="ignore"):
        log_q = np.where(level_mass > 0, np.log(level_mass / level_filled), 0.0)  # of a filled bin, not normalized
        last = p[sizes - 1]
        tail = mass[-1] - mass[sizes]
        clipped = last + tail
        # KL(P || Q), with P normalized by all mass and Q by the prefix's. Only the last bin of P differs from p.
        p_log = entropy[sizes] + np.where(clipped > 0, clipped * np.log(clipped), 0.0) - p_log_p[sizes - 1]
        cross = (level_mass * log_q).sum(axis=1) + tail * log_q[:, -1]
        divergence = (p_log - cross) / mass[-1] - np.log(mass[-1]) + np.log(mass[sizes])
    divergence[(tail > 0) & (last == 0)] = np.inf  # Q is 0 where P has the clipped mass: the divergence is infinite
    divergence[mass[sizes] == 0] = np.inf
    return int(sizes[np.argmin(divergence)])


def expected_error(histogram: MagnitudeHistogram, clip: float, levels: int = LEVELS, bins: int = 2048) -> float:
    """The squared error of int8 with the range [-clip, clip], summed over all values.

    The mean squared error of a value inside is step**2 / 12; of a value that rounds to zero, its own square. The error
    of a value beyond is its distance to the clip.
    """
    counts = histogram.linear(bins)
    counts[0] = 0.0  # exact zeros after a ReLU have no error
    x = (np.arange(bins) + 0.5) / bins * histogram.maximum
    step = clip / (levels - 1)
    inside = np.where(x < step / 2, x**2, step**2 / 12)
    return float(np.sum(counts * np.where(x > clip, (x - clip) ** 2, inside)))


def _kl(histogram: MagnitudeHistogram, levels: int, bins: int = 2048) -> float:
    return histogram.maximum * kl_threshold(histogram.linear(bins), levels) / bins


def expected_decibels(histogram: MagnitudeHistogram, clip: float, levels: int = LEVELS, bins: int = 2048) -> float:
    """Signal to noise of int8 with the range [-clip, clip], by `expected_error`; infinite for values that are all zero.

    The signal is the sum of the squared values.
    """
    x = (np.arange(bins) + 0.5) / bins * histogram.maximum
    signal = float(np.sum(histogram.linear(bins)[1:] * np.square(x)[1:]))
    noise = expected_error(histogram, clip, levels, bins)
    return 10 * float(np.log10(signal / noise)) if signal > 0 and noise > 0 else np.inf


def _mse(histogram: MagnitudeHistogram, levels: int, bins: int = 2048) -> float:
    """The clip with the smallest `expected_error`; all candidates at once, by running sums."""
    counts = histogram.linear(bins)
    counts[0] = 0.0
    x = (np.arange(bins) + 0.5) / bins * histogram.maximum
    number, first, second = (np.append(0.0, np.cumsum(counts * x**power)) for power in range(3))
    kept = np.arange(bins // 16, bins + 1)
    clip = kept / bins * histogram.maximum
    step = clip / (levels - 1)
    vanishing = np.minimum(np.searchsorted(x, step / 2), kept)
    rounding = step**2 / 12 * (number[kept] - number[vanishing]) + second[vanishing]
    clipping = (
        (second[-1] - second[kept]) - 2 * clip * (first[-1] - first[kept]) + clip**2 * (number[-1] - number[kept])
    )
    return float(clip[np.argmin(rounding + clipping)])


def _percentile(histogram: MagnitudeHistogram, levels: int, bins: int = 2048) -> float:
    counts = histogram.linear(bins)
    counts[0] = 0.0  # exact zeros of a ReLU tell nothing about the largest values
    cumulative = np.cumsum(counts)
    kept = int(np.searchsorted(cumulative, PERCENTILE / 100 * cumulative[-1])) + 1
    return histogram.maximum * min(kept, bins) / bins


_METHODS: dict[Method, Callable[[MagnitudeHistogram, int], float]] = {
    "kl": _kl,
    "mse": _mse,
    "percentile": _percentile,
    "max": lambda histogram, levels: histogram.maximum,
}
