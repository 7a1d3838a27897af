"""The metrics by which saliency is compared with fixations, on a map and the mask of a salient object.

Source of all: Bylinskii et al., "What do different evaluation metrics tell us about saliency models?", IEEE TPAMI
41(3), 2019. They need a fixation map or a density, which a mask gives by these rules:

- fixations (AUC, NSS): every foreground pixel is one fixation;
- density (KLD, CC, SIM, EMD): uniform on the foreground, zero elsewhere, with the sum 1. It is not blurred: the blur in
  the literature fills the gaps between measured points, and a mask has none;
- the map's density: the map, stretched to [0, 1], divided by its sum. A constant map says nothing: its density is
  uniform, its CC and NSS are 0, and its AUC is .5.

Without foreground all are undefined (NaN), without background CC and AUC.
"""

import math

import cv2
import numpy as np

EMD_SIDE = 32  # cells along the longer side of the grid on which EMD is computed
BORJI_SPLITS = 100  # random draws that AUC-Borji is the mean of
BORJI_STEP = 10  # thresholds of AUC-Borji: 0, .1, .2 ... 1 of the map's range

_EPSILON = float(np.finfo(np.float64).eps)  # the regularization of KLD in the paper's code
_SMALLEST_MASS = 1e-9  # float32, in which OpenCV solves the transport, cannot place less


def density_of(values: np.ndarray) -> np.ndarray:
    """Non-negative `values`, (H, W), divided by their sum; uniform where all are equal. float64."""
    if values.min() == values.max():
        return np.full(values.shape, 1 / values.size)
    return np.asarray(values / values.sum(dtype=np.float64), np.float64)


def density_of_mask(foreground: np.ndarray) -> np.ndarray:
    """The uniform density on the foreground, (H, W) bool -> float64; NaN where there is none."""
    count = np.count_nonzero(foreground)
    return foreground / count if count else np.full(foreground.shape, np.nan)


def kld(predicted: np.ndarray, density: np.ndarray) -> float:
    """Kullback-Leibler divergence of the map's density from the mask's, in nats; 0 for equal ones."""
    return float(np.sum(density * np.log(_EPSILON + density / (_EPSILON + predicted))))


def cc(saliency: np.ndarray, density: np.ndarray) -> float:
    """Pearson's correlation coefficient, from -1 (the map is the opposite of the mask) over 0 to 1."""
    one, other = saliency - saliency.mean(), density - density.mean()
    spread = math.sqrt(float((other**2).sum()))
    if not spread > _EPSILON:  # also NaN
        return math.nan
    norm = math.sqrt(float((one**2).sum()))
    return float((one * other).sum() / (norm * spread)) if norm else 0.0


def sim(predicted: np.ndarray, density: np.ndarray) -> float:
    """Similarity, the histogram intersection of two densities: from 0 (no overlap) to 1."""
    return float(np.minimum(predicted, density).sum())


def nss(saliency: np.ndarray, fixations: np.ndarray) -> float:
    """Normalized scanpath saliency: the mean, over the fixations, of the map with mean 0 and standard deviation 1.

    Larger is better; 0 is chance.
    """
    if not fixations.any():
        return math.nan
    spread = saliency.std()
    return float((saliency[fixations].mean() - saliency.mean()) / spread) if spread else 0.0


def emd(predicted: np.ndarray, density: np.ndarray) -> float:
    """Earth mover's distance: the least mean distance by which the map's mass must move to become the mask's.

    Both densities are averaged on a grid with `EMD_SIDE` cells along the longer side; a smaller map keeps its pixels.
    There the optimal transport is solved exactly (network simplex, `cv2.EMD`), with Euclidean distances, in cells.
    """
    if not np.isfinite(density).all():
        return math.nan
    one, other = _on_grid(predicted), _on_grid(density)
    stays = np.minimum(one, other)  # an optimal transport moves no mass that both have in the same place
    one, other = one - stays, other - stays
    mass = float(one.sum())
    if mass < _SMALLEST_MASS:
        return 0.0
    return float(cv2.EMD(_signature(one), _signature(other), cv2.DIST_L2)[0]) * mass


def _on_grid(density: np.ndarray) -> np.ndarray:
    scale = min(1.0, EMD_SIDE / max(density.shape))
    height, width = (max(1, round(side * scale)) for side in density.shape)
    averaged = cv2.resize(density, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(averaged / averaged.sum())


def _signature(mass: np.ndarray) -> np.ndarray:
    """The cells with mass as rows of mass, column, row; float32."""
    rows, columns = np.nonzero(mass)
    return np.column_stack([mass[rows, columns], columns, rows]).astype(np.float32)


def auc_judd(levels: np.ndarray, fixations: np.ndarray) -> float:
    """Area under the ROC curve whose thresholds are the map's values at the fixations, as Judd et al. (ICCV 2009).

    A true positive is a fixation at or above the threshold, a false positive another pixel there. A map that has one
    value on the whole object gives one threshold, so .5 is the least that such a map can get.

    Args:
        levels: (H, W) uint8, the map.
        fixations: (H, W) bool.
    """
    at_fixations, elsewhere = (np.bincount(levels[chosen], minlength=256) for chosen in (fixations, ~fixations))
    if not at_fixations.any() or not elsewhere.any():
        return math.nan
    thresholds = np.flatnonzero(at_fixations)[::-1]
    return _area(_above(elsewhere)[thresholds], _above(at_fixations)[thresholds])


def auc_borji(levels: np.ndarray, fixations: np.ndarray) -> float:
    """Area under the ROC curve against random pixels, as Borji et al. (ICCV 2013); the mean of `BORJI_SPLITS` draws.

    Each draw takes as many pixels as there are fixations, uniformly from the whole image and with repetition. Only
    their values matter, so the counts of the values are drawn, from the multinomial distribution that they have. The
    seed is fixed. The thresholds lie `1 / BORJI_STEP` of the map's range apart.

    Args:
        levels: (H, W) uint8, the map.
        fixations: (H, W) bool.
    """
    count = int(np.count_nonzero(fixations))
    if not 0 < count < fixations.size:
        return math.nan
    lowest, highest = int(levels.min()), int(levels.max())
    steps = np.arange(BORJI_STEP, -1, -1)  # the least level at or above each threshold, without rounding errors
    thresholds = lowest + -(-(steps * (highest - lowest)) // BORJI_STEP)
    hits = _above(np.bincount(levels[fixations], minlength=256))[thresholds]
    shares = np.bincount(levels.ravel(), minlength=256) / levels.size
    drawn = np.random.default_rng(0).multinomial(count, shares, size=BORJI_SPLITS)
    return float(np.mean([_area(_above(draw)[thresholds], hits) for draw in drawn]))


def _above(counts: np.ndarray) -> np.ndarray:
    """(256,) the share of all values that are at or above each level."""
    return np.asarray(counts[::-1].cumsum()[::-1] / counts.sum())


def _area(false: np.ndarray, true: np.ndarray) -> float:
    """The area under a curve of rates, from (0, 0) to (1, 1), by trapezoids."""
    x, y = np.concatenate([[0], false, [1]]), np.concatenate([[0], true, [1]])
    return float(((x[1:] - x[:-1]) * (y[1:] + y[:-1])).sum() / 2)
