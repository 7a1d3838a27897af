"""U²-Net and U²-Netp (Xuebin Qin et al., Pattern Recognition 2020), and a small one for demonstrations."""

from collections.abc import Sequence

import torch
from torch import nn

from sodeploy.training.models.rsu import NestedUNet, Widths, conv_bn_relu, resize_to


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


class U2NetTiny(NestedUNet):
    """A small U²-Net of ours, for `sodeploy demo`: trains in two minutes on a laptop's CPU.

    A quarter of the resolution, as two strided convolutions leave it, and narrow where maps are large; the rest is
    U²-Net. `forward` gives seven maps: the fused one at the input's size, then the sides at a quarter of it.
    """

    def __init__(self) -> None:
        super().__init__(
            stem=nn.Sequential(conv_bn_relu(3, 16, stride=2), conv_bn_relu(16, 32, stride=2)),
            in_channels=32,
            encoder=[Widths(*w) for w in ((16, 32), (16, 48), (24, 64), (32, 96), (32, 96), (32, 96))],
            decoder=[Widths(*w) for w in ((16, 32), (16, 32), (24, 48), (32, 64), (32, 96))],
        )
        self.outconv = nn.Conv2d(6, 1, 1)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        finest, *coarser = self.side_logits(self.decode(self.encode(image)))
        sides = [finest, *(resize_to(side, finest) for side in coarser)]
        return [resize_to(self.outconv(torch.cat(sides, dim=1)), image), *sides]
