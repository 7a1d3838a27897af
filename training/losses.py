"""Losses between saliency logits and masks, and between features: plain functions, summed with a recipe's weights.

A map loss takes the logits of all supervised maps, each `(N, 1, h, w)`, and the mask `(N, 1, H, W) float32` in [0, 1],
resized to a map's size where that is smaller; it returns the sum over the maps of the mean over the batch.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F

from sodeploy.training.integrity_losses import expanded_region, hierarchical_difference
from sodeploy.training.pyramid_losses import pyramid_consistency, structure_pyramid

MapLoss = Callable[[Sequence[torch.Tensor], torch.Tensor], torch.Tensor]


def bce(logits: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy, the mean over pixels; in logits, so that it stays finite in half precision."""
    return _sum(F.binary_cross_entropy_with_logits(logit.float(), _at(mask, logit)) for logit in logits)


def iou(logits: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """1 - IoU of each image's whole map, with soft sets and 1 added to intersection and union (as RAS, BASNet)."""
    return _sum(_iou(torch.sigmoid(logit.float()), _at(mask, logit)) for logit in logits)


def bce_sum(logits: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy, the sum over pixels: large images count for more (as CSF, DSS)."""
    return _sum(
        F.binary_cross_entropy_with_logits(logit.float(), _at(mask, logit), reduction="sum") / len(logit)
        for logit in logits
    )


def feature_distance(features: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> torch.Tensor:
    """Feature synchronisation: the sum over the levels of the mean squared difference (IS-Net, ECCV 2022, eq. 4)."""
    return _sum(F.mse_loss(f.float(), target.float()) for f, target in zip(features, targets, strict=True))


MAP_LOSSES: dict[str, MapLoss] = {
    "bce": bce,
    "bce_sum": bce_sum,
    "iou": iou,
    "structure_pyramid": structure_pyramid,
    "pyramid_consistency": pyramid_consistency,
    "hierarchical_difference": hierarchical_difference,
    "expanded_region": expanded_region,
}
NEED_MARGINS = {"hierarchical_difference", "expanded_region"}  # their mask has the dilated and eroded ones beside it


def _iou(probability: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    intersection = (probability * mask).sum(dim=(1, 2, 3))
    union = (probability + mask).sum(dim=(1, 2, 3)) - intersection
    return (1 - (intersection + 1) / (union + 1)).mean()


def _at(mask: torch.Tensor, logit: torch.Tensor) -> torch.Tensor:
    if mask.shape[2:] == logit.shape[2:]:
        return mask
    return F.interpolate(mask, size=logit.shape[2:], mode="bilinear", align_corners=False)


def _sum(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(terms)).sum()
