"""The errors by which an alpha matte is compared with another, on a map and a mask with soft edges.

Source of all: Rhemann et al., "A perceptually motivated online benchmark for image matting", CVPR 2009. The map is the
matte as it is: it is not stretched, and the mask is not made binary. All are computed on the whole image, without a
trimap, as for AIM-500 and P3M-500. All but MSE are sums over the image, so they grow with its size; they are given in
thousands, as the literature gives them.
"""

import math

import cv2
import numpy as np

SIGMA = 1.4  # of the Gaussian whose first derivatives are the gradient, in pixels
LEAST_GAP = 0.15  # of a pixel's alpha above the level up to which it is connected; a smaller one does not count
STEPS = 10  # levels of alpha at which connection is looked for: .1, .2 ... 1

_THOUSAND = 1000
_CUT = 1e-2  # the kernel ends where the Gaussian falls below this value


def sad(matte: np.ndarray, truth: np.ndarray) -> float:
    """Sum of absolute differences of alpha, in thousands.

    Args:
        matte, truth: (H, W) uint8, alpha times 255; so in all functions here.
    """
    return float(cv2.absdiff(matte, truth).sum(dtype=np.int64)) / 255 / _THOUSAND


def mse(matte: np.ndarray, truth: np.ndarray) -> float:
    """Mean squared difference of alpha."""
    return float(np.square(_alpha(matte) - _alpha(truth)).mean())


def gradient_error(matte: np.ndarray, truth: np.ndarray) -> float:
    """Sum of squared differences of the gradients' magnitudes, in thousands."""
    return float(np.square(_gradient(_alpha(matte)) - _gradient(_alpha(truth))).sum()) / _THOUSAND


def connectivity_error(matte: np.ndarray, truth: np.ndarray) -> float:
    """Sum of absolute differences of the degrees of connection, in thousands.

    At each level, the object is the largest region, by 4 neighbors, in which both mattes have at least this alpha. A
    pixel is connected up to the highest level up to which all objects hold it. Its degree of connection is 1 less the
    alpha by which it exceeds that level, if this is `LEAST_GAP` or more.
    """
    least = np.minimum(matte, truth).astype(np.uint16) * STEPS
    connected = np.zeros(matte.shape, np.float64)
    within = np.ones(matte.shape, bool)
    for step in range(1, STEPS + 1):
        within &= _largest_region(least >= step * 255)
        connected[within] = step / STEPS
    degrees = (_degree(_alpha(plane) - connected) for plane in (matte, truth))
    return float(np.abs(next(degrees) - next(degrees)).sum()) / _THOUSAND


def _alpha(plane: np.ndarray) -> np.ndarray:
    return plane.astype(np.float64) / 255


def _gradient(alpha: np.ndarray) -> np.ndarray:
    """The magnitude of the gradient, (H, W) float64.

    The kernels have a Euclidean norm of 1, as in the program that the authors of the benchmark published.
    """
    radius = math.ceil(SIGMA * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * SIGMA * _CUT)))
    offsets = np.arange(-radius, radius + 1)
    smooth = np.exp(-(offsets**2) / (2 * SIGMA**2))
    slope = offsets * smooth
    smooth, slope = smooth / np.linalg.norm(smooth), slope / np.linalg.norm(slope)
    across, down = (
        cv2.sepFilter2D(alpha, cv2.CV_64F, *kernels, borderType=cv2.BORDER_REPLICATE)
        for kernels in ((slope, smooth), (smooth, slope))
    )
    return np.hypot(across, down)


def _largest_region(region: np.ndarray) -> np.ndarray:
    """The largest connected part of (H, W) bool; of equal ones the first by rows. Nothing if there is none."""
    count, labels, figures, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=4)
    if count == 1:
        return region
    return np.asarray(labels == 1 + int(np.argmax(figures[1:, cv2.CC_STAT_AREA])))


def _degree(gap: np.ndarray) -> np.ndarray:
    return 1 - np.where(gap >= LEAST_GAP, gap, 0)
