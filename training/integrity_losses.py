"""The losses of the integrity ISNet (G. Zhu et al., Pattern Recognition 2024).

`logits` are its five maps, four of the object from fine to coarse and one of the object with a margin. `masks` are
`(N, 3, H, W)`: the mask, the dilated mask and the eroded mask (`sodeploy.calib_data.masks`).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

_WEIGHTS = (1.0, 0.8, 0.6, 0.4)  # of the four maps of the object


def hierarchical_difference(logits: Sequence[torch.Tensor], masks: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy and soft IoU, both weighted by how near a pixel is to the boundary, of the first four maps.

    The authors' code passes an argument that makes PyTorch average the cross entropy before it is weighted, so that the
    weights cancel; here they count, as the paper says.
    """
    terms = [
        weight * difference_aware(logit.float(), masks) for weight, logit in zip(_WEIGHTS, logits[:4], strict=True)
    ]
    return torch.stack(terms).sum()


def difference_aware(logit: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """One map's term of `hierarchical_difference`."""
    mask = masks[:, :1]
    weight = boundary_weight(masks)
    bce = F.binary_cross_entropy_with_logits(logit, mask, reduction="none")
    probability = torch.sigmoid(logit)
    intersection = (weight * probability * mask).sum((1, 2, 3))
    union = (weight * (probability + mask)).sum((1, 2, 3)) - intersection
    per_image = (weight * bce).sum((1, 2, 3)) / weight.sum((1, 2, 3)) + 1 - (intersection + 1) / (union + 1)
    return per_image.mean()


def boundary_weight(masks: torch.Tensor) -> torch.Tensor:
    """`(N, 1, H, W)`: 2, and more on both sides of the boundary, where a margin differs from its surroundings."""
    surroundings = F.avg_pool2d(masks[:, 1:3], 31, stride=1, padding=15)
    return (1 + 5 * (surroundings - masks[:, 1:3]).abs()).sum(1, keepdim=True)


def expanded_region(logits: Sequence[torch.Tensor], masks: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy and soft IoU of the fifth map with the expanded mask: the mask and its boundary's band."""
    mask, dilated, eroded = masks.split(1, dim=1)
    expanded = (mask + dilated - eroded).clamp(max=1)
    logit = logits[4].float()
    probability = torch.sigmoid(logit)
    intersection = (probability * expanded).sum((1, 2, 3))
    union = (probability + expanded).sum((1, 2, 3)) - intersection
    iou = intersection / union.clamp(min=torch.finfo(union.dtype).tiny)  # an empty mask met by a map of zeros
    return F.binary_cross_entropy_with_logits(logit, expanded) + (1 - iou).mean()
