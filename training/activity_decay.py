"""The dynamic weight decay of CSNet, which drives the scales of idle channels to zero while it trains.

S.-H. Gao et al., "Highly Efficient Salient Object Detection with 100K Parameters", ECCV 2020, section 3.3.
"""

from typing import Any

import torch
from torch import nn

from sodeploy.training.models.csnet import CSNet

_COSTS = (8, 8, 4, 2, 1)  # of the coarsest branch of each stage: as high as its resolution


def forward_with_activity_decay(network: CSNet, image: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The network's logits, and a penalty on the batch norms' scales.

    The square of each channel's scale counts by how active the channel is, the mean over the images of half the
    magnitude of its spatial mean, and by how much it costs, twice as much per doubling of the resolution. Activities
    are coefficients only: no gradient flows through them. The head's scales are left out.
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
