"""The errors of mattes equal their definitions, written anew here, and the values that follow by hand.

The references work in float64, pixel by pixel, from Rhemann et al., CVPR 2009, and share no code with what they check.
"""

import math

import cv2
import numpy as np
import pytest

from sodeploy.runtime.measure import metrics

pytest.importorskip("py_sod_metrics")

KEYS = ("sad", "mse", "grad", "conn")


def mattes(seed: int, size: tuple[int, int] = (20, 26)) -> tuple[np.ndarray, np.ndarray]:
    """Two soft mattes of one object; the first has noise and a second, separate object."""
    random = np.random.default_rng(seed)
    truth = np.zeros(size, np.uint8)
    cv2.circle(truth, (9, 9), 6, 255, -1)
    truth = cv2.GaussianBlur(truth, (0, 0), 1.5)
    matte = truth + random.normal(0, 30, size)
    matte[14:19, 19:25] = 200
    return matte.clip(0, 255).astype(np.uint8), truth


def scored(matte: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    return metrics.score(matte, truth, KEYS, curves=False).summary()


def magnitude(alpha: np.ndarray) -> np.ndarray:
    """The gradient's magnitude, by a sum over each pixel's neighbors; beyond the border its pixels go on."""
    sigma, radius = 1.4, 4
    around = range(-radius, radius + 1)

    def gauss(x: int) -> float:
        return math.exp(-(x**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))

    kernel = {(i, j): gauss(i) * -j * gauss(j) / sigma**2 for i in around for j in around}
    norm = math.sqrt(sum(weight**2 for weight in kernel.values()))
    height, width = alpha.shape
    found = np.zeros(alpha.shape)
    for y in range(height):
        for x in range(width):
            down = across = 0.0
            for (i, j), weight in kernel.items():
                row, column = min(max(y + i, 0), height - 1), min(max(x + j, 0), width - 1)
                across += weight / norm * alpha[row, column]
                row, column = min(max(y + j, 0), height - 1), min(max(x + i, 0), width - 1)
                down += weight / norm * alpha[row, column]
            found[y, x] = math.hypot(across, down)
    return found


def largest(region: set[tuple[int, int]]) -> set[tuple[int, int]]:
    best: set[tuple[int, int]] = set()
    left = set(region)
    while left:
        part, edge = set(), {min(left)}
        while edge:
            part |= edge
            edge = {(y + i, x + j) for y, x in edge for i, j in ((0, 1), (1, 0), (0, -1), (-1, 0))} & left - part
        left -= part
        best = part if len(part) > len(best) else best
    return best


def connection(matte: np.ndarray, truth: np.ndarray) -> float:
    """The error of connection: at each level the largest region which both mattes hold is the object."""
    level: dict[tuple[int, int], float] = {(y, x): 0.0 for y in range(matte.shape[0]) for x in range(matte.shape[1])}
    held = set(level)
    for step in range(1, 11):
        region = {(y, x) for y, x in level if 10 * int(matte[y, x]) >= 255 * step <= 10 * int(truth[y, x])}
        held &= largest(region)
        level |= dict.fromkeys(held, step / 10)

    def degree(alpha: int, connected: float) -> float:
        gap = alpha / 255 - connected
        return 1 - gap if gap >= 0.15 else 1.0

    return sum(
        abs(degree(int(matte[place]), connected) - degree(int(truth[place]), connected))
        for place, connected in level.items()
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_errors_equal_their_definitions(seed: int) -> None:
    matte, truth = mattes(seed)
    one, other = matte / np.float64(255), truth / np.float64(255)
    found = scored(matte, truth)
    assert found["sad"] == pytest.approx(np.abs(one - other).sum() / 1000)
    assert found["mse"] == pytest.approx(((one - other) ** 2).mean())
    assert found["grad"] == pytest.approx(((magnitude(one) - magnitude(other)) ** 2).sum() / 1000)
    assert found["conn"] == pytest.approx(connection(matte, truth) / 1000)
    assert min(found.values()) > 0


def test_equal_mattes_have_no_error() -> None:
    _, truth = mattes(0)
    assert scored(truth, truth) == dict.fromkeys(KEYS, 0)


def test_a_matte_is_not_stretched_and_the_mask_stays_soft() -> None:
    """A map with half of the alpha everywhere is a bad matte, and a good saliency map."""
    _, truth = mattes(0)
    half = truth // 2
    assert scored(half, truth)["sad"] == pytest.approx((truth.sum() - half.sum(dtype=int)) / 255 / 1000)


def test_what_is_not_connected_counts_by_its_alpha() -> None:
    """The second object is not in the true matte: its whole alpha, .8, is missing from the degree of connection."""
    truth = np.zeros((12, 20), np.uint8)
    truth[2:8, 2:8] = 255
    matte = truth.copy()
    matte[3:5, 14:18] = 204
    assert scored(matte, truth)["conn"] == pytest.approx(8 * 0.8 / 1000)
    matte[3:5, 14:18] = 38  # below .15: too little to be seen
    assert scored(matte, truth)["conn"] == 0


def test_an_empty_matte_has_finite_errors() -> None:
    truth = np.zeros((12, 20), np.uint8)
    truth[2:8, 2:8] = 255
    found = scored(np.zeros_like(truth), truth)
    assert found["conn"] == pytest.approx(36 / 1000)
    assert found["mse"] == pytest.approx(36 / 240)
