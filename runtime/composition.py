"""Pictures made of an image and its saliency map, on the CPU.

The reference for kernels/postprocess.cu, which gives the same bytes for the same map.
"""

from typing import Literal, get_args

import cv2
import numpy as np

Style = Literal["map", "rgba", "green", "overlay"]
STYLES: tuple[Style, ...] = get_args(Style)
CHANNELS = {"map": 1, "rgba": 4, "green": 3, "overlay": 3}
_SHARPNESS = 8  # a pixel that is half object weighs 1/256: its color is half the object's
_LEAST_WEIGHT = 1e-6  # of a pixel of the object in its surroundings: deep within it there is nothing else to average
_GREEN, _RED = np.array([[0, 255, 0], [255, 0, 0]], np.uint8)


def compose(image: np.ndarray, saliency: np.ndarray, style: Style) -> np.ndarray:
    """Put the salient object into a picture.

    - map: the saliency map itself.
    - rgba: the image with the map as its alpha channel (straight, not premultiplied).
    - green: the object over pure green.
    - overlay: the image with the object tinted red, at half strength.

    Args:
        image: (H, W, 3) uint8 RGB.
        saliency: (H, W) uint8 saliency map.

    Returns:
        uint8, (H, W) for map, (H, W, 4) for rgba, else (H, W, 3) RGB.
    """
    if style == "map":
        return saliency
    if style == "rgba":
        return np.dstack([image, saliency])
    if style == "overlay":
        return over(np.broadcast_to(_RED, image.shape), image, (saliency.astype(np.uint16) + 1) // 2)
    return over(image, np.broadcast_to(_GREEN, image.shape), saliency)


def over(upper: np.ndarray, lower: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """`upper` with opacity alpha / 255 on `lower`, rounded to nearest.

    Args:
        upper, lower: (H, W, 3) uint8.
        alpha: (H, W) uint8.
    """
    weight = alpha.astype(np.uint16)[..., None]
    result: np.ndarray = ((upper * weight + lower * (255 - weight) + 127) // 255).astype(np.uint8)
    return result


def defocused(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The surroundings of an object out of focus, without the object's own colors around it.

    Each pixel is the average of its neighbors under a Gaussian, weighted by how little of the object is in them
    (normalized convolution, Knutsson and Westin 1993). The Gaussian grows with the image: its sigma is 1/40 of the
    shorter side. It is computed on a smaller image, in which sigma is 4 pixels.

    Args:
        image: (H, W, 3) uint8 RGB.
        alpha: (H, W) uint8, the object.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    height, width = alpha.shape
    sigma = min(height, width) / 40
    factor = max(1.0, sigma / 4)
    small = max(1, round(width / factor)), max(1, round(height / factor))
    weight = (1 - alpha.astype(np.float32) / 255) ** _SHARPNESS + _LEAST_WEIGHT
    sums = np.dstack([image * weight[..., None], weight])
    sums = cv2.resize(sums, small, interpolation=cv2.INTER_AREA)
    sums = cv2.GaussianBlur(sums, (0, 0), max(sigma / factor, 0.1), borderType=cv2.BORDER_REPLICATE)
    blurred = sums[..., :3] / sums[..., 3:]
    enlarged = cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.rint(enlarged).clip(0, 255).astype(np.uint8))
