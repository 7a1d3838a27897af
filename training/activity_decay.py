"""The dynamic weight decay of CSNet, which drives the scales of idle channels to zero during training.

S.-H. Gao et al., "Highly Efficient Salient Object Detection with 100K Parameters", ECCV 2020, section 3.3.
"""

from typing import Any

import torch
from torch import nn

from sodeploy.training.models.csnet import CSNet

_COSTS = (8, 8, 4, 2, 1)  # cost of the coarsest branch of each stage; it grows with the resolution


def forward_with_activity_decay(network: CSNet, image: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The network's logits, and a penalty on the batch norms' scales.

    The penalty is the sum over channels of scale² x activity x cost. The activity of a channel is half the magnitude
    of its spatial mean, averaged over the images. The cost doubles with the resolution. Activities are coefficients:
    no gradient flows through them. The scales of the head have no penalty.
    """
    penalties: list[torch.Tensor] = []
    handles = []
    stages = (network.stage0, network.stage1, network.stage2, network.stage3, network.stage4)
    for cost, stage in zip(_COSTS, stages, strict=True):
        for block in stage:
            for layer in block.children():

                def add(layer: nn.Module, _: Any, outputs: list[torch.Tensor], cost: int = cost) -> None:
                    penalties.extend(_penalties(layer, outputs, cost))

                handles.append(layer.register_forward_hook(add))
    try:
        logits = network(image)
    finally:
        for handle in handles:
            handle.remove()
    return logits, torch.stack(penalties).sum()


def _penalties(layer: Any, outputs: list[torch.Tensor], cost: int) -> list[torch.Tensor]:
    coarsest = len(outputs) - 1
    return [
        0.5 * cost * 2 ** (coarsest - branch) * (x.detach().float().mean((2, 3)).abs().mean(0) * bn.weight**2).sum()
        for branch, (x, bn) in enumerate(zip(outputs, layer.bns, strict=True))
    ]
