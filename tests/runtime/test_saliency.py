"""The metrics of fixation prediction equal their formulas, written anew here, and the values that follow by hand.

The references work in float64, pixel by pixel and threshold by threshold, from the text of Bylinskii et al., IEEE TPAMI
2019, and share no code with what they check.
"""

import itertools
import math

import cv2
import numpy as np
import pytest

from sodeploy.errors import UserError
from sodeploy.runtime.measure import metrics, saliency
from sodeploy.runtime.measure.differences import bootstrap_deltas

sod = pytest.importorskip("py_sod_metrics")

KEYS = ("kld", "cc", "sim", "auc_judd", "auc_borji", "emd", "nss")


def pair(seed: int, size: tuple[int, int] = (12, 16)) -> tuple[np.ndarray, np.ndarray]:
    """A noisy map of a few levels, and a mask."""
    random = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    cv2.circle(mask, (7, 6), 4, 255, -1)
    noise = random.normal(0, 60, size) + cv2.GaussianBlur(mask, (0, 0), 2)
    return (noise.clip(10, 240) // 13 * 13).astype(np.uint8), mask


def scored(saliency_map: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    return metrics.score(saliency_map, mask, KEYS, curves=False).summary()


def pixels(saliency_map: np.ndarray, mask: np.ndarray) -> tuple[list[float], list[bool]]:
    """The stretched values and the fixations, as plain lists."""
    values = [float(value) for value in saliency_map.ravel()]
    low, high = min(values), max(values)
    return [(value - low) / (high - low) for value in values], [value > 128 for value in mask.ravel()]


def trapezoids(points: list[tuple[float, float]]) -> float:
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(points))


@pytest.mark.parametrize("seed", range(4))
def test_densities_are_compared_by_the_formulas(seed: int) -> None:
    saliency_map, mask = pair(seed)
    values, fixed = pixels(saliency_map, mask)
    p = [value / sum(values) for value in values]
    q = [one / sum(fixed) for one in fixed]
    found = scored(saliency_map, mask)
    eps = 2.220446049250313e-16
    assert found["kld"] == pytest.approx(sum(b * math.log(eps + b / (eps + a)) for a, b in zip(p, q, strict=True)))
    assert found["sim"] == pytest.approx(sum(min(a, b) for a, b in zip(p, q, strict=True)))
    assert found["cc"] == pytest.approx(np.corrcoef(values, q)[0, 1])
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    at_fixations = [(value - mean) / spread for value, one in zip(values, fixed, strict=True) if one]
    assert found["nss"] == pytest.approx(sum(at_fixations) / len(at_fixations))


@pytest.mark.parametrize("seed", range(4))
def test_auc_judd_goes_through_the_values_at_the_fixations(seed: int) -> None:
    saliency_map, mask = pair(seed)
    values, fixed = pixels(saliency_map, mask)
    inside = [value for value, one in zip(values, fixed, strict=True) if one]
    outside = [value for value, one in zip(values, fixed, strict=True) if not one]
    points = [(0.0, 0.0)]
    for threshold in sorted(set(inside), reverse=True):
        false = sum(value >= threshold for value in outside) / len(outside)
        points.append((false, sum(value >= threshold for value in inside) / len(inside)))
    assert scored(saliency_map, mask)["auc_judd"] == pytest.approx(trapezoids([*points, (1.0, 1.0)]), abs=1e-12)


def test_auc_borji_is_the_mean_over_random_pixels() -> None:
    """Pixels are drawn here; the two means agree within the spread of the draws."""
    saliency_map, mask = pair(1, (40, 60))
    values, fixed = pixels(saliency_map, mask)
    inside = [value for value, one in zip(values, fixed, strict=True) if one]
    random = np.random.default_rng(5)
    areas = []
    for _ in range(400):
        drawn = [values[index] for index in random.integers(len(values), size=len(inside))]
        points = [(0.0, 0.0)]
        for step in range(10, -1, -1):
            threshold = step / 10 - 1e-9
            false = sum(value >= threshold for value in drawn) / len(drawn)
            points.append((false, sum(value >= threshold for value in inside) / len(inside)))
        areas.append(trapezoids([*points, (1.0, 1.0)]))
    found = scored(saliency_map, mask)["auc_borji"]
    deviation = float(np.std(areas))
    error = deviation * math.sqrt(1 / 400 + 1 / saliency.BORJI_SPLITS)
    assert abs(found - np.mean(areas)) < 4 * error < 0.05
    assert found == scored(saliency_map, mask)["auc_borji"]


def test_emd_is_the_least_work() -> None:
    """The linear program of the transport, solved by another solver."""
    optimize = pytest.importorskip("scipy.optimize")
    saliency_map, mask = pair(3)
    values, fixed = pixels(saliency_map, mask)
    supply, demand = np.array(values) / sum(values), np.array(fixed) / sum(fixed)
    places = np.array([divmod(index, mask.shape[1]) for index in range(mask.size)], float)
    work = np.linalg.norm(places[:, None] - places[None], axis=2)
    n = mask.size
    rows = np.kron(np.eye(n), np.ones(n))
    columns = np.kron(np.ones(n), np.eye(n))
    solved = optimize.linprog(
        work.ravel(), A_eq=np.vstack([rows, columns[:-1]]), b_eq=np.concatenate([supply, demand[:-1]]), method="highs"
    )
    assert scored(saliency_map, mask)["emd"] == pytest.approx(solved.fun, rel=1e-5)


def test_emd_by_hand() -> None:
    """A point that lies 3 columns and 4 rows away, and half a mass that stays; large maps count in cells of 1/32."""
    one, other = np.zeros((8, 8)), np.zeros((8, 8))
    one[1, 1], other[5, 4] = 1, 1
    assert saliency.emd(one, other) == pytest.approx(5)
    other[1, 1] = 1
    assert saliency.emd(one, other / 2) == pytest.approx(2.5)
    wide, moved = np.zeros((64, 128)), np.zeros((64, 128))
    wide[:, :4], moved[:, 64:68] = 1 / 256, 1 / 256
    assert saliency.emd(wide, moved) == pytest.approx(16)
    assert saliency.emd(wide, wide) == 0


def test_the_right_map_is_best_and_its_opposite_worst() -> None:
    mask = pair(0)[1]
    best, worst = scored(mask, mask), scored(255 - mask, mask)
    assert best == pytest.approx({**best, "kld": 0, "cc": 1, "sim": 1, "auc_judd": 1, "emd": 0}, abs=1e-9)
    assert worst["cc"] == pytest.approx(-1)
    assert worst["sim"] == 0
    assert worst["auc_judd"] == 0.5  # 0 is the only value at fixations, so no threshold lies above it
    for key in KEYS:
        assert metrics.METRICS[key].is_better(best[key], worst[key])


@pytest.mark.parametrize("value", [0, 90, 255])
def test_a_constant_map_is_chance(value: int) -> None:
    mask = pair(0)[1]
    found = scored(np.full_like(mask, value), mask)
    share = np.count_nonzero(mask) / mask.size
    expected = {"cc": 0, "nss": 0, "auc_judd": 0.5, "auc_borji": 0.5, "sim": share, "kld": -math.log(share)}
    assert found == pytest.approx({**expected, "emd": found["emd"]})
    assert found["emd"] > 0


@pytest.mark.parametrize(("value", "undefined"), [(0, set(KEYS)), (255, {"cc", "auc_judd", "auc_borji"})])
def test_a_mask_of_one_kind_is_undefined(value: int, undefined: set[str]) -> None:
    found = scored(pair(0)[0], np.full((12, 16), value, np.uint8))
    assert {key for key, number in found.items() if math.isnan(number)} == undefined


def test_pysodmetrics_further_metrics() -> None:
    for seed in range(3):
        saliency_map, mask = pair(seed, (40, 60))
        evaluators = {
            "hce": sod.HumanCorrectionEffortMeasure(),
            "msiou": sod.MSIoU(with_dynamic=False, with_adaptive=False, with_binary=True),
        }
        for evaluator in evaluators.values():
            evaluator.step(saliency_map, mask)
        found = metrics.score(saliency_map, mask, ("biou", "msiou", "hce"), curves=False).summary()
        assert found["hce"] == evaluators["hce"].get_results()["hce"]
        assert found["msiou"] == evaluators["msiou"].get_results()["binary"]
        values, fixed = pixels(saliency_map, mask)
        both = sum(value > 0.5 and one for value, one in zip(values, fixed, strict=True))
        either = sum(value > 0.5 or one for value, one in zip(values, fixed, strict=True))
        assert found["biou"] == pytest.approx(both / either)


def test_metrics_are_chosen_and_ordered() -> None:
    every = metrics.METRICS
    assert metrics.parse_metrics("S,MAE, max F ,auc") == ("s", "mae", "max_f", "auc_judd")
    inspyrenet = "Sm,mae,adpEm,maxEm,avgEm,adpFm,maxFm,avgFm,wFm"
    assert set(metrics.parse_metrics(inspyrenet)) == set(metrics.default_metrics())
    assert metrics.parse_metrics("all") == tuple(every)
    for text, complaint in (
        ("S,XYZ", "XYZ is no metric; write some of mae,"),
        ("s,Sm", "s is given twice"),
        ("", "no"),
    ):
        with pytest.raises(UserError, match=complaint):
            metrics.parse_metrics(text)
    names = [name for key, one in every.items() for name in (key, *one.aliases)]
    assert len({name.lower().replace("_", "") for name in names}) == len(names)


def test_chosen_metrics_alone_are_computed_and_compared() -> None:
    maps = [pair(seed) for seed in range(20)]
    parts = [metrics.score(*one, ("nss", "mae"), curves=False) for one in maps]
    scores = metrics.join(parts).take(np.arange(20))
    assert list(scores.summary()) == list(scores.values) == ["nss", "mae"]
    worse = metrics.join([metrics.score(255 - one, mask, ("nss", "mae"), curves=False) for one, mask in maps])
    deltas = bootstrap_deltas(scores, worse, resamples=50)
    assert list(deltas) == ["nss", "mae"]
    assert deltas["nss"].high < 0 < deltas["mae"].low
    peaks = [metrics.join([metrics.score(*one, ("max_f",), curves=False) for one in maps])] * 2
    assert bootstrap_deltas(*peaks, resamples=50)["max_f"].high == 0
