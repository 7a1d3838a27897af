"""Pictures made of an image and its saliency map, on the CPU.

The reference for kernels/postprocess.cu, which gives the same bytes for the same map.
"""

from typing import Literal, get_args

import cv2
import numpy as np

Style = Literal["map", "rgba", "green", "blur", "overlay"]
STYLES: tuple[Style, ...] = get_args(Style)
CHANNELS = {"map": 1, "rgba": 4, "green": 3, "blur": 3, "overlay": 3}
BLUR_CELL = 16  # pixels of the image that one pixel of the blurred background averages
_GREEN, _RED = np.array([[0, 255, 0], [255, 0, 0]], np.uint8)


def compose(image: np.ndarray, saliency: np.ndarray, style: Style) -> np.ndarray:
    """Put the salient object into a picture.

    - map: the saliency map itself.
    - rgba: the image with the map as its alpha channel (straight, not premultiplied).
    - green: the object over pure green.
    - blur: the object over the image out of focus (averaged over 16 x 16 pixels, enlarged bilinearly).
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
        return _mixed(np.broadcast_to(_RED, image.shape), image, (saliency.astype(np.uint16) + 1) // 2)
    if style == "green":
        return _mixed(image, np.broadcast_to(_GREEN, image.shape), saliency)
    height, width = image.shape[:2]
    small = cv2.resize(image, small_size((height, width))[::-1], interpolation=cv2.INTER_AREA)
    return _mixed(image, cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), saliency)


def small_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the small image that becomes the blurred background."""
    return -(-size[0] // BLUR_CELL), -(-size[1] // BLUR_CELL)


def _mixed(over: np.ndarray, under: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """`over` with opacity alpha / 255 on `under`, rounded to nearest."""
    weight = alpha.astype(np.uint16)[..., None]
    result: np.ndarray = ((over * weight + under * (255 - weight) + 127) // 255).astype(np.uint8)
    return result
