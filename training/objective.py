"""The objective of a training step: a network, the terms of its loss, and a teacher where a term needs one."""

from collections.abc import Mapping

import torch
from torch import nn

from sodeploy.training.losses import LOSSES, ForwardLoss, MapLoss, forward_loss
from sodeploy.training.models.network import SaliencyNetwork


class Objective(nn.Module):
    """From a batch to the terms of the loss. It is a module, so that DistributedDataParallel can wrap all of it.

    Args:
        weights: the weight of each term.
        sees_masks: the network's input is the mask itself.
        teacher: the network whose features of the mask are the targets. It is frozen and in eval mode, so that the
            features of a mask do not depend on the other masks of its batch. (The published code freezes only the
            parameters and lets the teacher's batch norm use batch statistics.)
    """

    def __init__(
        self,
        network: SaliencyNetwork,
        weights: Mapping[str, float],
        sees_masks: bool = False,
        teacher: SaliencyNetwork | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.weights = weights
        self.sees_masks = sees_masks
        # In a tuple, so that it is not registered as a module: it is not trained, saved or synchronized.
        self._teacher = (teacher.eval().requires_grad_(False) if teacher else None,)

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each term without its weight, and `loss`, the weighted sum.

        Args:
            image: (N, 3, H, W) float32, normalized.
            mask: (N, 1, H, W) float32 in [0, 1]; (N, 3, H, W) for losses that need margins.
        """
        terms = {}
        name = forward_loss(self.weights)
        if name is not None and isinstance(own := LOSSES[name], ForwardLoss):
            logits, terms[name] = own.forward(self.network, image, mask, self._teacher[0])
        else:
            logits = self.network(mask if self.sees_masks else image)
        with torch.autocast(image.device.type, enabled=False):
            for term in self.weights:
                if isinstance(loss := LOSSES[term], MapLoss):
                    terms[term] = loss.of(logits, mask if loss.margins else mask[:, :1])
        total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return {"loss": total, **terms}


def set_train_mode(network: nn.Module, batch_norm: str) -> None:
    """Set train mode. With "frozen", batch norms use their running statistics and do not change them."""
    network.train()
    if batch_norm == "frozen":
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
