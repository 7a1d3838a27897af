"""What a training step minimises: a network, the terms of its loss, and the teacher of some."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn

from sodeploy.training.activity_decay import forward_with_activity_decay
from sodeploy.training.losses import MAP_LOSSES, NEED_MARGINS, feature_distance
from sodeploy.training.models.csnet import CSNet
from sodeploy.training.models.isnet import ISNetDIS, ISNetGTEncoder
from sodeploy.training.models.network import SaliencyNetwork
from sodeploy.training.recipe import ACTIVITY_DECAY, FEATURE_SYNC


class Objective(nn.Module):
    """From a batch to the terms of the loss; a module, so that DistributedDataParallel can wrap the whole of it.

    Args:
        weights: of each term.
        sees_masks: the network's input is the mask itself.
        teacher: whose features of the mask the network's features of the image are to equal. It is frozen, in eval
            mode: what a mask's features are must not depend on the masks it shares a batch with. (The published code
            freezes the parameters alone and leaves the teacher's batch norm on batch statistics.)
    """

    def __init__(
        self,
        network: SaliencyNetwork,
        weights: Mapping[str, float],
        sees_masks: bool = False,
        teacher: ISNetGTEncoder | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.weights = weights
        self.sees_masks = sees_masks
        # In a tuple: it is no part of what is trained, saved or synchronised.
        self._teacher = (teacher.eval().requires_grad_(False),) if teacher else ()

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each term, unweighted, and `loss`, their weighted sum.

        Args:
            image: (N, 3, H, W) float32, normalised.
            mask: (N, 1, H, W) float32 in [0, 1]; for losses that need margins (N, 3, H, W).
        """
        terms = {}
        if self._teacher:
            logits, features = cast(ISNetDIS, self.network).forward_with_features(image)
            with torch.no_grad():
                _, targets = self._teacher[0].forward_with_features(mask)
            terms[FEATURE_SYNC] = feature_distance(features, targets)
        elif ACTIVITY_DECAY in self.weights:
            logits, terms[ACTIVITY_DECAY] = forward_with_activity_decay(cast(CSNet, self.network), image)
        else:
            logits = self.network(mask if self.sees_masks else image)
        with torch.autocast(image.device.type, enabled=False):
            for name in (term for term in self.weights if term in MAP_LOSSES):
                terms[name] = MAP_LOSSES[name](logits, mask if name in NEED_MARGINS else mask[:, :1])
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return {"loss": loss, **terms}


def set_train_mode(network: nn.Module, batch_norm: str) -> None:
    """Train mode; with `frozen` batch norms keep their running statistics, and use them."""
    network.train()
    if batch_norm == "frozen":
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
