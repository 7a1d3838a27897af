"""U²-Net and U²-Netp (Xuebin Qin et al., Pattern Recognition 2020), and a narrower one for demonstrations."""

from collections.abc import Sequence

import torch
from torch import nn

from training.models.rsu import NestedUNet, Widths, resize_to


class U2Net(NestedUNet):
    """Nested U-structure whose six side outputs are fused by a 1 x 1 convolution on the logits.

    `forward` gives seven maps, all at the input's size: the fused one, then the sides from fine to coarse.
    """

    def __init__(self, encoder: Sequence[Widths], decoder: Sequence[Widths]) -> None:
        super().__init__(None, 3, encoder, decoder)
        self.outconv = nn.Conv2d(6, 1, 1)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        finest, *coarser = self.side_logits(self.decode(self.encode(image)))
        sides = [finest, *(resize_to(side, finest) for side in coarser)]
        return [self.outconv(torch.cat(sides, dim=1)), *sides]


def u2net() -> U2Net:
    """The full network: 44.0 M parameters, 58.6 GMACs at 320 x 320."""
    return U2Net(
        encoder=[Widths(*w) for w in ((32, 64), (32, 128), (64, 256), (128, 512), (256, 512), (256, 512))],
        decoder=[Widths(*w) for w in ((16, 64), (32, 64), (64, 128), (128, 256), (256, 512))],
    )


def u2netp() -> U2Net:
    """The small network: 1.13 M parameters, 19.8 GMACs at 320 x 320."""
    return U2Net(encoder=[Widths(16, 64)] * 6, decoder=[Widths(16, 64)] * 5)


def u2net_tiny() -> U2Net:
    """U²-Netp at a quarter of its width, ours: trains in two minutes on a laptop's CPU, for `sodeploy demo`."""
    return U2Net(encoder=[Widths(8, 16)] * 6, decoder=[Widths(8, 16)] * 5)
