"""Where on an image a model loses: the difference of two mean absolute errors, split over kinds of pixels."""

import cv2
import numpy as np

# In the order in which a pixel is claimed; each belongs to the first that fits.
REGIONS = {
    "small objects": "connected parts of the mask below 1 % of the image",
    "thin parts": "parts of the mask narrower than 4 % of the shorter side",
    "boundary": "pixels within 1 % of the shorter side from the mask's edge",
    "inside": "the rest of the mask",
    "background": "the rest of the image",
}
_SMALL_SHARE, _THIN_SHARE, _BAND_SHARE = 0.01, 0.04, 0.01


def regions_of(foreground: np.ndarray) -> np.ndarray:
    """The region of each pixel.

    Args:
        foreground: (H, W) bool.

    Returns:
        (H, W) uint8, indices into `REGIONS`.
    """
    mask = foreground.astype(np.uint8)
    side = min(mask.shape)
    names = list(REGIONS)
    found = np.where(foreground, names.index("inside"), names.index("background")).astype(np.uint8)
    band = max(1, round(_BAND_SHARE * side))
    edge = _grown(mask, band) != 1 - _grown(1 - mask, band)
    found[edge] = names.index("boundary")
    opened = cv2.morphologyEx(mask, cv2.MORPH_OPEN, _disc(max(1, round(_THIN_SHARE * side / 2))))
    found[foreground & (opened == 0)] = names.index("thin parts")
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    small = statistics[:, cv2.CC_STAT_AREA] < _SMALL_SHARE * mask.size
    small[0] = False  # the background
    found[small[labels]] = names.index("small objects")
    return found


def regional_losses(baseline: np.ndarray, other: np.ndarray, foreground: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """How much of MAE(other) - MAE(baseline) lies in each region.

    Args:
        baseline, other: (H, W) float saliency maps in [0, 1].
        foreground: (H, W) bool.
        regions: of `regions_of` for `foreground`.

    Returns:
        (len(REGIONS),) float64; the sum is the difference of the two MAE.
    """
    truth = foreground.astype(np.float64)
    worse = np.abs(other - truth) - np.abs(baseline - truth)
    return np.bincount(regions.ravel(), worse.ravel(), len(REGIONS)) / regions.size


def region_shares(regions: np.ndarray) -> np.ndarray:
    """(len(REGIONS),) share of the image's pixels in each region."""
    return np.bincount(regions.ravel(), minlength=len(REGIONS)) / regions.size


def _grown(mask: np.ndarray, radius: int) -> np.ndarray:
    grown: np.ndarray = cv2.dilate(mask, _disc(radius))
    return grown


def _disc(radius: int) -> np.ndarray:
    disc: np.ndarray = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return disc
