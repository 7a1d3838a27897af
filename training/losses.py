"""The losses, by name. A recipe gives each a weight; a new loss costs a function and one entry in `LOSSES`.

A map loss compares the logits of all supervised maps, each `(N, 1, h, w)`, with the mask `(N, 1, H, W) float32` in
[0, 1], resized to the size of a smaller map. It returns the sum over the maps of the mean over the batch. A forward
loss runs the network itself, because it needs more than the logits.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from sodeploy.training.activity_decay import forward_with_activity_decay
from sodeploy.training.integrity_losses import expanded_region, hierarchical_difference
from sodeploy.training.models.csnet import CSNet
from sodeploy.training.models.isnet import ISNetDIS
from sodeploy.training.models.isnet_integrity import ISNetIntegrity
from sodeploy.training.models.network import SaliencyNetwork
from sodeploy.training.pyramid_losses import pyramid_consistency, structure_pyramid

Logits = Sequence[torch.Tensor]


class MapLoss(NamedTuple):
    """A loss of logits and mask.

    Attributes:
        of: function of (logits, mask).
        network: the class of networks that the loss is for.
        margins: the mask is `(N, 3, H, W)`: itself, dilated, eroded.
    """

    of: Callable[[Logits, torch.Tensor], torch.Tensor]
    network: type[SaliencyNetwork] = SaliencyNetwork
    margins: bool = False


class ForwardLoss(NamedTuple):
    """A loss that is computed together with the logits.

    Attributes:
        forward: function of (network, image, mask, teacher) that gives (logits, loss).
        network: the class of networks that the loss is for.
        teacher: the name of the network whose features are the targets; None: there is no teacher.
    """

    forward: Callable[[Any, torch.Tensor, torch.Tensor, Any], tuple[Logits, torch.Tensor]]
    network: type[SaliencyNetwork]
    teacher: str | None = None


def bce(logits: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy, the mean over pixels. It takes logits, so that it stays finite in half precision."""
    return _sum(F.binary_cross_entropy_with_logits(logit.float(), _at(mask, logit)) for logit in logits)


def iou(logits: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """1 - IoU of each whole map, with soft sets and 1 added to intersection and union (as in RAS and BASNet)."""
    return _sum(_iou(torch.sigmoid(logit.float()), _at(mask, logit)) for logit in logits)


def bce_sum(logits: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy, the sum over pixels: large images count more (as in CSF and DSS)."""
    return _sum(
        F.binary_cross_entropy_with_logits(logit.float(), _at(mask, logit), reduction="sum") / len(logit)
        for logit in logits
    )


def feature_distance(features: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> torch.Tensor:
    """Feature synchronization: the sum over the levels of the mean squared difference (IS-Net, ECCV 2022, eq. 4)."""
    return _sum(F.mse_loss(f.float(), target.float()) for f, target in zip(features, targets, strict=True))


def _feature_sync(
    network: ISNetDIS, image: torch.Tensor, mask: torch.Tensor, teacher: Any
) -> tuple[Logits, torch.Tensor]:
    """Feature synchronization: squared distance to the teacher's features of the mask (IS-Net, ECCV 2022, eq. 4)."""
    logits, features = network.forward_with_features(image)
    with torch.no_grad():
        _, targets = teacher.forward_with_features(mask)
    return logits, feature_distance(features, targets)


def _activity_decay(
    network: CSNet, image: torch.Tensor, mask: torch.Tensor, teacher: None
) -> tuple[Logits, torch.Tensor]:
    """CSNet's dynamic weight decay, which drives the scales of idle channels to zero (Gao et al., ECCV 2020, 3.3)."""
    return forward_with_activity_decay(network, image)


LOSSES: dict[str, MapLoss | ForwardLoss] = {
    "bce": MapLoss(bce),
    "bce_sum": MapLoss(bce_sum),
    "iou": MapLoss(iou),
    "structure_pyramid": MapLoss(structure_pyramid),
    "pyramid_consistency": MapLoss(pyramid_consistency),
    "hierarchical_difference": MapLoss(hierarchical_difference, ISNetIntegrity, margins=True),
    "expanded_region": MapLoss(expanded_region, ISNetIntegrity, margins=True),
    "feature_sync": ForwardLoss(_feature_sync, ISNetDIS, teacher="isnet_gt_encoder"),
    "activity_decay": ForwardLoss(_activity_decay, CSNet),
}


def needs_margins(names: Iterable[str]) -> bool:
    """Whether one of these losses reads the dilated and the eroded mask."""
    return any(isinstance(loss := LOSSES[name], MapLoss) and loss.margins for name in names)


def forward_loss(names: Iterable[str]) -> str | None:
    """The forward loss among these losses, or None."""
    return next((name for name in names if isinstance(LOSSES[name], ForwardLoss)), None)


def teacher_of(names: Iterable[str]) -> str | None:
    """The name of the teacher network that one of these losses needs, or None."""
    losses = (LOSSES[name] for name in names)
    return next((loss.teacher for loss in losses if isinstance(loss, ForwardLoss) and loss.teacher), None)


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
