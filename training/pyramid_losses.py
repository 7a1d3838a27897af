"""The losses of InSPyReNet, between a pyramid of logits, from fine to coarse, and the mask's own pyramid.

Each level is enlarged, by repetition, to the size of the mask `(N, 1, H, W)`, and so is the mask's level.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F

from sodeploy.training.models.laplacian import GaussianPyramid


def structure_pyramid(logits: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """Sum over the levels of weighted binary cross entropy and pixel-wise soft IoU."""
    pyramid = GaussianPyramid().to(mask.device)
    total, level = torch.zeros((), device=mask.device), mask
    for logit in logits:
        enlarged, target = _enlarged(logit.float(), mask), _enlarged(level, mask)
        total = total + weighted_bce(enlarged, target) + pixel_iou(enlarged, target)
        level = pyramid.reduce(level)
    return total


def pyramid_consistency(logits: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """Sum over the levels of the mean difference to the next finer one, halved; the finer one is not moved by it."""
    pyramid = GaussianPyramid().to(mask.device)
    total = torch.zeros((), device=mask.device)
    for fine, coarse in pairwise(logits):
        halved = pyramid.reduce(fine.detach().float())
        total = total + (_enlarged(coarse.float(), mask) - _enlarged(halved, mask)).abs().mean()
    return total


def weighted_bce(logit: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy, up to six times as heavy where the mask differs from its surroundings.

    The mean of the weighted terms, not divided by the mean weight.
    """
    weight = 1 + 5 * (F.avg_pool2d(target, 31, stride=1, padding=15) - target).abs()
    return (weight * F.binary_cross_entropy_with_logits(logit, target, reduction="none")).mean()


def pixel_iou(logit: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean of each pixel's own 1 - IoU, with 1 added to intersection and union."""
    probability = torch.sigmoid(logit)
    intersection = probability * target
    return (1 - (intersection + 1) / (probability + target - intersection + 1)).mean()


def _enlarged(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")
