"""Histograms and the clips read from them, against plain definitions."""

import warnings

import numpy as np
import pytest

from sodeploy.quant.calibration.histogram import BINS, LOWER_EDGES, MagnitudeHistogram
from sodeploy.quant.calibration.methods import (
    METHODS,
    chosen,
    expected_decibels,
    expected_error,
    kl_threshold,
    threshold,
)
from sodeploy.quant.int8 import fp16_scale


def histogram_of(values: np.ndarray) -> MagnitudeHistogram:
    histogram = MagnitudeHistogram()
    histogram.add(values.astype(np.float32))
    return histogram


def plain_kl(counts: np.ndarray, levels: int) -> tuple[int, np.ndarray]:
    """The definition, a prefix at a time: the best length, and the divergence of each."""
    counts = counts.astype(float).copy()
    counts[0] = 0
    divergences = np.full(len(counts) + 1, np.inf)
    for size in range(levels, len(counts) + 1):
        p = counts[:size].copy()
        level = np.arange(size) * levels // size
        merged, filled = np.bincount(level, p, levels), np.bincount(level, p > 0, levels)
        q = np.where(p > 0, (merged / np.maximum(filled, 1))[level], 0)
        p[-1] += counts[size:].sum()
        seen = p > 0
        if not q.any() or np.any(q[seen] == 0):
            continue
        p, q = p[seen] / p.sum(), q[seen] / q.sum()
        divergences[size] = np.sum(p * np.log(p / q))
    return int(np.argmin(divergences)), divergences


@pytest.mark.parametrize("seed", range(8))
def test_kl_is_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(200 * np.exp(-np.linspace(0, rng.uniform(2, 12), 512))).astype(float)
    counts[rng.random(512) < 0.2] = 0
    best, divergences = plain_kl(counts, 64)
    found = kl_threshold(counts, 64)
    assert divergences[found] == pytest.approx(divergences[best], abs=1e-12)


def test_kl_ignores_the_zeros_of_a_relu() -> None:
    values = np.random.default_rng(0).standard_normal(200_000)
    with_zeros = threshold(histogram_of(values.clip(0)), "kl")
    without = threshold(histogram_of(values[values > 0]), "kl")
    assert with_zeros == without > 3  # counting them clips at half of that


def test_outliers_are_clipped_by_every_method_but_max() -> None:
    values = np.append(np.random.default_rng(0).standard_normal(1_000_000), 20.0)
    clips = {method: threshold(histogram_of(values), method) for method in METHODS}
    assert clips["max"] == 20
    assert all(clips[method] < 10 for method in ("kl", "mse", "percentile"))


def test_mse_is_near_the_best_clip_there_is() -> None:
    values = np.random.default_rng(0).laplace(size=100_000).astype(np.float32)

    def error(clip: float) -> float:
        step = clip / 127
        return float(np.mean((np.clip(np.rint(values / step), -127, 127) * step - values) ** 2))

    best = min(error(clip) for clip in np.linspace(2, np.abs(values).max(), 200))
    assert error(threshold(histogram_of(values), "mse")) < 1.02 * best


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_has_no_range(method: str) -> None:
    assert threshold(histogram_of(np.zeros(10)), method) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("values", [[3.0], [1e-38, 1e-39], [1e30, -1e30], [0.0, 5e-324, 7.0]])
def test_odd_tensors_have_a_range_within_their_values(method: str, values: list[float]) -> None:
    histogram = histogram_of(np.array(values))
    assert 0 < threshold(histogram, method) <= histogram.maximum  # type: ignore[arg-type]


def test_histograms_add_up_to_that_of_all_values() -> None:
    values = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    whole, parts = histogram_of(values), histogram_of(values[:300]) + histogram_of(values[300:])
    assert np.array_equal(whole.counts, parts.counts)
    assert (whole.low, whole.high) == (parts.low, parts.high) == (values.min(), values.max())
    assert (whole.maximum, whole.signed) == (np.abs(values).max(), True)


@pytest.mark.parametrize("size", [0, 1, 4098, 20_007])
@pytest.mark.parametrize("largest", [0.0, 1e-42, 2.0, float(np.finfo(np.float32).max)])
def test_a_bin_holds_the_values_from_its_edge_to_the_next(size: int, largest: float) -> None:
    rng = np.random.default_rng(size)
    magnitudes = (rng.random(size) * np.float32(largest).view(np.uint32)).astype(np.uint32).view(np.float32)
    values = magnitudes * rng.choice(np.float32([-1, 1]), size)
    histogram = histogram_of(values)
    expected = np.bincount(np.searchsorted(LOWER_EDGES, magnitudes, side="right") - 1, minlength=BINS)
    assert np.array_equal(histogram.counts, expected)
    assert (histogram.low, histogram.high) == (min(0.0, *values, 0.0), max(0.0, *values, 0.0))


def test_linear_bins_keep_every_count() -> None:
    values = np.random.default_rng(2).exponential(size=50_000).astype(np.float32)
    linear = histogram_of(values).linear(2048)
    exact, _ = np.histogram(values, 2048, (0, values.max()))
    assert linear.sum() == pytest.approx(len(values))
    assert np.abs(np.cumsum(linear) - np.cumsum(exact)).max() < 0.002 * len(values)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_not_counted(bad: float) -> None:
    histogram = histogram_of(np.ones(3))
    with pytest.raises(ValueError, match="1 of 2 values are NaN or infinite"):
        histogram.add(np.array([1.0, bad], np.float32))
    assert histogram.counts.sum() == 3


def test_share_above() -> None:
    assert histogram_of(np.array([1.0, 2.0, 4.0, 8.0])).share_above(3.0) == 0.5


@pytest.mark.parametrize("clip", [0.5, 2.0, 4.5])
def test_expected_error_is_that_of_rounding_and_clipping(clip: float) -> None:
    values = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    step = clip / 127
    rounded = np.clip(np.rint(values / step), -127, 127) * step
    assert expected_error(histogram_of(values), clip) == pytest.approx(np.square(rounded - values).sum(), rel=0.03)


def test_more_levels_clip_less() -> None:
    histogram = histogram_of(np.random.default_rng(0).exponential(size=200_000))
    assert threshold(histogram, "mse", levels=255) > 1.05 * threshold(histogram, "mse")


def test_kl_that_clips_most_of_the_signal_gives_way_to_mse() -> None:
    """A ReLU's zeros after a constant was added: half of the values are one number."""
    values = 0.5 + np.maximum(np.random.default_rng(0).standard_normal(100_000), 0)
    histogram = histogram_of(values)
    clip, method = chosen(histogram, "kl")
    assert (clip, method) == (threshold(histogram, "mse"), "mse")
    assert expected_decibels(histogram, clip) > 30


@pytest.mark.parametrize(("end", "used"), [(12, "kl"), (15, "mse")])
def test_kl_may_clip_a_tail_while_20_db_are_left(end: int, used: str) -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.exponential(0.5, 100_000), rng.uniform(4, end, 20)])
    histogram = histogram_of(values)
    clip, method = chosen(histogram, "kl")
    assert method == used
    assert (clip < threshold(histogram, "mse")) == (used == "kl")


def test_a_flat_background_behind_a_normalization_clips_nothing_of_the_rest() -> None:
    """Most values are one number; kl would clip half a percent, which holds nearly all of the energy."""
    rng = np.random.default_rng(0)
    values = np.concatenate([np.full(90_000, 0.3), rng.normal(0.3, 0.2, 9_500), rng.uniform(5, 30, 500)])
    histogram = histogram_of(values)
    clip, method = chosen(histogram, "kl")
    assert method == "mse"
    assert expected_decibels(histogram, clip) > 25


@pytest.mark.parametrize("clip", [0.5, 2.0, 4.5])
def test_expected_decibels_is_signal_to_noise(clip: float) -> None:
    values = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    rounded = np.clip(np.rint(values / clip * 127), -127, 127) * clip / 127
    wanted = 10 * np.log10(np.square(values).sum() / np.square(rounded - values).sum())
    assert expected_decibels(histogram_of(values), clip) == pytest.approx(wanted, abs=0.2)


def test_zeros_have_no_noise() -> None:
    assert expected_decibels(histogram_of(np.zeros(4)), 1.0) == np.inf


def test_a_scale_beyond_fp16_is_its_largest_number_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fp16_scale(np.float32([1e9, 65504])).tolist() == [65504, 65504]
