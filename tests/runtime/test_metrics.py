"""Scores equal PySODMetrics' published values; the bootstrap equals a plain one."""

import json
import os

import cv2
import numpy as np
import pytest
from golden_values import METRICS

from sodeploy.errors import UserError
from sodeploy.runtime.measure import metrics
from sodeploy.runtime.measure.differences import FEWEST_IMAGES, bootstrap_deltas

sod = pytest.importorskip("py_sod_metrics")

PUBLISHED = {
    "mae": "MAE",
    "s": "Smeasure",
    "w_f": "wFmeasure",
    "adp_f": "adpFm",
    "mean_f": "meanFm",
    "max_f": "maxFm",
    "adp_e": "adpEm",
    "mean_e": "meanEm",
    "max_e": "maxEm",
}


def pair(seed: int, noise: float = 40.0, size: tuple[int, int] = (40, 60)) -> tuple[np.ndarray, np.ndarray]:
    """A blurred, noisy disc and its mask."""
    random = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    cv2.circle(mask, (int(random.integers(15, 45)), int(random.integers(12, 28))), 9, 255, -1)
    saliency = cv2.GaussianBlur(mask, (0, 0), 2).astype(float) + random.normal(0, noise, size)
    return saliency.clip(0, 255).astype(np.uint8), mask


def scores(seeds: range, noise: float = 40.0) -> metrics.Scores:
    return metrics.join([metrics.score(*pair(seed, noise)) for seed in seeds])


def test_equal_to_the_reference_values():
    reference = json.loads((METRICS / "expected.json").read_text())
    parts = []
    for name, expected in reference["recomputed_per_image"].items():
        maps = (cv2.imread(str(METRICS / kind / name), cv2.IMREAD_GRAYSCALE) for kind in ("preds", "masks"))
        parts.append(metrics.score(*maps))
        summary = parts[-1].summary()
        assert summary == {key: pytest.approx(expected[theirs], abs=1e-12) for key, theirs in PUBLISHED.items()}
    summary = metrics.join(parts).summary()
    for source in ("recomputed", "expected"):  # by the pinned release here, and as its authors publish them
        published = {key: reference[source][theirs] for key, theirs in PUBLISHED.items() if theirs in reference[source]}
        assert len(published) >= 8
        assert {key: summary[key] for key in published} == pytest.approx(published, abs=1e-12)


def test_a_set_scores_as_pysodmetrics_accumulating_it():
    evaluators = {"mae": sod.MAE(), "s": sod.Smeasure(), "e": sod.Emeasure(), "w": sod.WeightedFmeasure()}
    with pytest.warns(UserWarning, match="FmeasureV2"):
        evaluators["f"] = sod.Fmeasure()
    for seed in range(4):
        for evaluator in evaluators.values():
            evaluator.step(*pair(seed))
    results = {name: evaluator.get_results() for name, evaluator in evaluators.items()}
    f, e = results["f"]["fm"], results["e"]["em"]
    assert scores(range(4)).summary() == pytest.approx(
        {
            "mae": results["mae"]["mae"],
            "mean_f": f["curve"].mean(),
            "max_f": f["curve"].max(),
            "adp_f": f["adp"],
            "w_f": results["w"]["wfm"],
            "s": results["s"]["sm"],
            "mean_e": e["curve"].mean(),
            "max_e": e["curve"].max(),
            "adp_e": e["adp"],
        },
        abs=1e-12,
    )


def test_curves_run_from_threshold_255_down():
    recall = scores(range(1))[metrics.RECALL][0]
    assert (np.diff(recall) >= 0).all()
    assert recall[-1] == 1.0


def test_a_map_is_stretched_before_it_is_scored():
    saliency, mask = pair(0, noise=0)
    assert metrics.score(saliency // 2, mask).summary()["mae"] == pytest.approx(
        metrics.score(saliency, mask).summary()["mae"], abs=0.01
    )


@pytest.mark.parametrize("value", [0, 255])
def test_empty_and_full_masks_and_maps_have_scores(value):
    for saliency in (np.zeros((9, 9), np.uint8), np.full((9, 9), 255, np.uint8)):
        summary = metrics.score(saliency, np.full((9, 9), value, np.uint8)).summary()
        assert np.isfinite(list(summary.values())).all()
        assert summary["mae"] == float(saliency[0, 0] != value)


@pytest.mark.parametrize(
    "saliency", [np.zeros((4, 5), np.uint8), np.zeros((4, 4), np.float32), np.zeros((4, 4, 1), np.uint8)]
)
def test_what_cannot_be_compared_is_refused(saliency):
    with pytest.raises(ValueError, match="two uint8 maps"):
        metrics.score(saliency, np.zeros((4, 4), np.uint8))


def test_bootstrap_equals_a_plain_one():
    baseline, other = scores(range(24), noise=20), scores(range(24), noise=60)
    deltas = bootstrap_deltas(baseline, other, resamples=300, seed=7)

    random = np.random.default_rng(7)
    choices = [*random.integers(24, size=(256, 24)), *random.integers(24, size=(44, 24))]
    plain = {name: [] for name in metrics.default_metrics()}
    for chosen in choices:
        before, after = (part.take(chosen).summary() for part in (baseline, other))
        for name, values in plain.items():
            values.append(after[name] - before[name])
    for name, delta in deltas.items():
        assert delta.value == pytest.approx(other.summary()[name] - baseline.summary()[name], abs=1e-12)
        np.testing.assert_allclose([delta.low, delta.high], np.quantile(plain[name], [0.025, 0.975]), atol=1e-12)


def test_a_real_loss_is_outside_chance_and_no_change_is_exactly_zero():
    baseline, worse = scores(range(20), noise=20), scores(range(20), noise=80)
    deltas = bootstrap_deltas(baseline, worse, resamples=500)
    assert deltas["mae"].low > 0
    assert deltas["s"].high < 0
    same = bootstrap_deltas(baseline, baseline, resamples=100)
    assert all((delta.value, delta.low, delta.high) == (0, 0, 0) for delta in same.values())
    assert deltas == bootstrap_deltas(baseline, worse, resamples=500)


def test_few_images_have_a_difference_but_no_interval():
    few = FEWEST_IMAGES - 1
    deltas = bootstrap_deltas(scores(range(few), noise=20), scores(range(few), noise=80))
    assert deltas["mae"].value > 0
    assert {(delta.low, delta.high) for delta in deltas.values()} == {(-np.inf, np.inf)}


def test_a_mask_without_a_defined_score_is_named_and_left_out():
    corner = np.zeros((40, 60), np.uint8)
    corner[-1, -1] = 255
    odd = metrics.score(pair(0)[0], corner)
    assert np.isnan(odd.summary()["s"])
    mixed = metrics.join([scores(range(2)), odd, scores(range(2, 4))])
    names = ["a", "b", "corner", "c", "d"]
    (defined,), left_out = metrics.without_undefined([mixed], names, "discs")
    assert left_out == ["corner"]
    assert defined.summary() == scores(range(4)).summary()
    assert "1 mask is left out of all scores" in metrics.left_out_in_words(left_out)
    with pytest.raises(UserError, match="discs: no mask has a defined score, the first is corner"):
        metrics.without_undefined([odd], ["corner"], "discs")


def test_a_metric_is_one_entry(monkeypatch):
    """A new metric appears in the summary, the differences, a budget and a recipe without another line of code."""
    from sodeploy.runtime.measure.budget import Verdict, in_words, parse_budget

    peak = metrics.PerImage("peak", lambda pair: pair.saliency.max() / 255)
    recall = metrics.Metric("max_r", "max recall", metrics.RECALL, "max", lower_is_better=True)
    for metric in (metrics.Metric("peak", "peak", peak), recall):
        monkeypatch.setitem(metrics.METRICS, metric.key, metric)
    before, after = scores(range(20), noise=0), scores(range(20), noise=20)
    assert before.summary()["peak"] == pytest.approx(np.mean([pair(seed, 0)[0].max() / 255 for seed in range(20)]))
    assert before.summary()["max_r"] == 1
    verdict = Verdict(bootstrap_deltas(before, after))
    assert verdict.loss("peak") == pytest.approx(before.summary()["peak"] - after.summary()["peak"])
    assert in_words(parse_budget("max_r=0.01,peak=0.5")) == "max recall .0100, peak .5000"
    assert verdict.fits({"max_r": 0.01})


def test_unpaired_scores_are_refused():
    with pytest.raises(ValueError, match="3 against 2"):
        bootstrap_deltas(scores(range(3)), scores(range(2)))


@pytest.mark.parametrize("workers", [1, 2])
def test_other_processes_score_as_this_one_does(workers):
    pairs = [pair(seed) for seed in range(4)]
    with metrics.parallel_map(workers) as mapped:
        parts = list(mapped(metrics.score, *zip(*pairs, strict=True)))
    assert metrics.join(parts).summary() == scores(range(4)).summary()


def test_a_killed_process_is_an_error_with_a_remedy():
    with pytest.raises(UserError, match="worker process was killed"), metrics.parallel_map(2) as mapped:
        list(mapped(os._exit, [1]))
