"""InSPyReNet: a saliency map as a Laplacian pyramid, each level from attention to what the level above is unsure of.

T. Kim et al., "Revisiting Image Pyramid Structure for High Resolution Salient Object Detection", ACCV 2022.
"""

from typing import NamedTuple

import torch

from sodeploy.training.models.axial import DEPTH, ContextEncoder, Decoder, resize
from sodeploy.training.models.laplacian import GaussianPyramid
from sodeploy.training.models.network import SaliencyNetwork
from sodeploy.training.models.res2net import Res2Net50
from sodeploy.training.models.sica import ScaleInvariantContextAttention
from sodeploy.training.models.swin import BASE, TINY, Swin


class Levels(NamedTuple):
    """The outputs of the network for an image, all logits; both lists run from fine to coarse.

    Attributes:
        saliency: `(N, 1, H, W)`, then 1/2, 1/4 and 1/8 of it.
        details: the Laplacian maps of the first three.
    """

    saliency: list[torch.Tensor]
    details: list[torch.Tensor]


class InSPyReNet(SaliencyNetwork):
    """Returns four maps of logits: the first of the image's size, the others at 1/2, 1/4 and 1/8.

    A coarser map is a constant to the finer ones: the loss of each trains its own details.

    Args:
        backbone: five feature maps, at 1/4, 1/4, 1/8, 1/16 and 1/32 of the image, with `widths` channels.
        grid: side in pixels of the finest context grid, that of the training images: 384, or 1024 for the
            high-resolution checkpoints. Weights fit either and answer well only with their own.
    """

    backbone_name = "backbone"
    multiple = 8

    def __init__(self, backbone: Res2Net50 | Swin, grid: int = 384) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = GaussianPyramid()
        contexts = [ContextEncoder(width) for width in backbone.widths]
        self.context1, self.context2, self.context3, self.context4, self.context5 = contexts
        self.decoder = Decoder()
        self.attention0 = ScaleInvariantContextAttention(DEPTH, grid, laplacian=True)
        self.attention1 = ScaleInvariantContextAttention(2 * DEPTH, grid // 2, laplacian=True)
        self.attention2 = ScaleInvariantContextAttention(2 * DEPTH, grid // 4, laplacian=False)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return self.levels(image).saliency

    def levels(self, image: torch.Tensor) -> Levels:
        """The whole pyramid of an image."""
        height, width = image.shape[2], image.shape[3]
        x1, x2, x3, x4, x5 = self.backbone(image)
        f3, d3 = self.decoder(self.context3(x3), self.context4(x4), self.context5(x5))
        quarter, half = (height // 4, width // 4), (height // 2, width // 2)
        f2, p2 = self.attention2(torch.cat([self.context2(x2), resize(f3, quarter)], 1), d3.detach())
        d2 = self.pyramid.reconstruct(d3.detach(), p2)
        x = torch.cat([resize(self.context1(x1), half), resize(f2, half)], 1)
        f1, p1 = self.attention1(x, d2.detach(), p2.detach())
        d1 = self.pyramid.reconstruct(d2.detach(), p1)
        _, p0 = self.attention0(resize(f1, (height, width)), d1.detach(), p1.detach())
        d0 = self.pyramid.reconstruct(d1.detach(), p0)
        return Levels([d0, d1, d2, d3], [p0, p1, p2])


def inspyrenet_res2net50() -> InSPyReNet:
    """On a Res2Net-50 whose last two layers are dilated."""
    return InSPyReNet(Res2Net50(dilated=True))


def inspyrenet_swint() -> InSPyReNet:
    """On Swin-T. The authors dropped it; no checkpoint of it was published for the network as it is now."""
    return InSPyReNet(Swin(TINY))


def inspyrenet_swinb(grid: int = 384) -> InSPyReNet:
    """InSPyReNet on Swin-B with windows of 12: the authors' best; with a grid of 1024 their background remover."""
    return InSPyReNet(Swin(BASE), grid)
