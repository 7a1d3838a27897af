"""Laplacian pyramids of saliency logits: two scales blended, or the pyramids of overlapping patches merged.

After T. Kim et al., "Revisiting Image Pyramid Structure for High Resolution Salient Object Detection" (InSPyReNet),
ACCV 2022, sections 3.2 and 3.4. Coarse structure comes from one map, and details from another.
"""

from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np

MOST_DETAILS = 3  # levels of details, as InSPyReNet has them
_TRANSITIONS = (17, 9, 5)  # diameter in pixels of the band that gets details, at each level from fine to coarse
_RADIUS = 3
_EXACT = np.exp(-0.5 * np.arange(-_RADIUS, _RADIUS + 1, dtype=np.float64) ** 2)
_GAUSSIAN = (_EXACT / _EXACT.sum()).astype(np.float32)  # 7 pixels, sigma 1


class Levels(NamedTuple):
    """A pyramid of logits; both lists run from fine to coarse.

    Attributes:
        saliency: (H, W) float32, then 1/2, 1/4 ... of it; one more than details.
        details: the correction of each map but the coarsest, when the next coarser one is doubled in size.
    """

    saliency: list[np.ndarray]
    details: list[np.ndarray]


def reduce(x: np.ndarray) -> np.ndarray:
    """(H, W) float32 at half the size, odd sizes rounded up, after a Gaussian of sigma 1, mirrored at the border."""
    smooth = cv2.sepFilter2D(x, cv2.CV_32F, _GAUSSIAN, _GAUSSIAN, borderType=cv2.BORDER_REFLECT_101)
    return np.ascontiguousarray(smooth[::2, ::2])


def expand(x: np.ndarray) -> np.ndarray:
    """(H, W) float32 at twice the size, smoothed by the same Gaussian."""
    spread = np.zeros((2 * x.shape[0], 2 * x.shape[1]), np.float32)
    spread[::2, ::2] = x
    doubled = 2 * _GAUSSIAN
    return np.asarray(cv2.sepFilter2D(spread, cv2.CV_32F, doubled, doubled, borderType=cv2.BORDER_REFLECT_101))


def levels_of(logits: np.ndarray, details: int = MOST_DETAILS) -> Levels:
    """The pyramid of one map of logits.

    Args:
        logits: (H, W) float32, both multiples of 2 ** details.
    """
    saliency, corrections = [logits], []
    for _ in range(details):
        coarse = reduce(saliency[-1])
        corrections.append(saliency[-1] - expand(coarse))
        saliency.append(coarse)
    return Levels(saliency, corrections)


def reconstruct(coarse: np.ndarray, detail: np.ndarray) -> np.ndarray:
    """The map at the size of `detail`: the coarser map is doubled in size and corrected."""
    return expand(coarse) + detail


def blend(low: Levels, high: Levels) -> Levels:
    """The low resolution's finest map in the place of the high's coarsest; details of the high where objects end."""
    saliency = [_resized(low.saliency[0], high.saliency[-1])]
    details: list[np.ndarray] = []
    for detail, diameter in reversed(list(zip(high.details, _TRANSITIONS[-len(high.details) :], strict=True))):
        band = _resized(transition(saliency[0], diameter), detail)
        details.insert(0, band * detail)
        saliency.insert(0, reconstruct(saliency[0], details[0]))
    return Levels(saliency, details)


def transition(logits: np.ndarray, diameter: int) -> np.ndarray:
    """1 where the saliency changes by more than a half within an ellipse of that diameter, else 0; float32."""
    saliency = sigmoid(logits)
    return (dilate(saliency, diameter) + dilate(-saliency, diameter) > 0.5).astype(np.float32)


def dilate(x: np.ndarray, diameter: int) -> np.ndarray:
    """Each pixel of (H, W) float32 the maximum over an ellipse; outside nothing counts.

    The ellipse is the one of the published code, whatever version of OpenCV is installed.
    """
    radius = diameter // 2
    rows = np.arange(-radius, radius + 1)
    half = np.round(radius * np.sqrt(1 - rows**2 / radius**2))
    ellipse = (np.abs(rows) <= half[:, None]).astype(np.uint8)
    return np.asarray(cv2.dilate(x, ellipse))


def merge_patches(patches: Iterable[Levels], columns: int, size: tuple[int, int], stride: tuple[int, int]) -> Levels:
    """The pyramid of a whole image, from the pyramids of its patches.

    The coarsest map is the maximum over the patches. At each finer level a pixel's detail is from the patch which has
    the maximum one level coarser, in that level's own maps of the patches. Of equal patches the first one counts.

    Args:
        patches: row by row; each is used once and need not be kept.
        columns: patches in a row.
        size: (height, width) of the whole.
        stride: pixels from one patch to the next, down and to the right; multiples of 2 ** details.
    """
    maps: list[np.ndarray] = []
    parts: list[np.ndarray] = []
    for index, patch in enumerate(patches):
        if not maps:
            maps = [np.full(_divided(size, level), -np.inf, np.float32) for level in range(len(patch.saliency))]
            parts = [np.zeros(_divided(size, level), np.float32) for level in range(len(patch.details))]
        place = index // columns * stride[0], index % columns * stride[1]
        for level in range(len(patch.saliency)) if not parts else range(1, len(patch.saliency)):
            best = _part(maps[level], place, patch.saliency[level].shape, level)
            won = patch.saliency[level] > best
            best[won] = patch.saliency[level][won]
            if level:
                finer = won.repeat(2, axis=0).repeat(2, axis=1)
                part = _part(parts[level - 1], place, finer.shape, level - 1)
                part[finer] = patch.details[level - 1][finer]
    saliency = [maps[-1]]
    for detail in reversed(parts):
        saliency.insert(0, reconstruct(saliency[0], detail))
    return Levels(saliency, parts)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), by tanh: no overflow at either end."""
    result: np.ndarray = 0.5 * np.tanh(0.5 * logits) + np.float32(0.5)
    return result


def _divided(size: tuple[int, int], level: int) -> tuple[int, int]:
    return size[0] >> level, size[1] >> level


def _part(canvas: np.ndarray, place: tuple[int, int], shape: tuple[int, ...], level: int) -> np.ndarray:
    """The view of a canvas that a patch covers at a level."""
    top, left = place[0] >> level, place[1] >> level
    return canvas[top : top + shape[0], left : left + shape[1]]


def _resized(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.resize(x, like.shape[::-1], interpolation=cv2.INTER_LINEAR))
