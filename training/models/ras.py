"""RAS: a coarse map refined from the features it has not yet claimed, by reverse attention.

S. Chen et al., "Reverse Attention-Based Residual Network for Salient Object Detection", IEEE TIP 2020. Version 1 and 2
of the authors' PyTorch code are two networks; their checkpoints are not interchangeable.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from sodeploy.training.models.network import SaliencyNetwork
from sodeploy.training.models.resnet import ResNet50

_WIDTH = 64


def resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`x` at the height and width of `like`, bilinear with aligned corners."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=True)


def convolution(kernel: int, dilation: int, norm: bool) -> Iterator[nn.Module]:
    """A convolution that keeps channels and size, batch norm if `norm`, ReLU."""
    yield nn.Conv2d(_WIDTH, _WIDTH, kernel, padding=dilation * (kernel // 2), dilation=dilation)
    if norm:
        yield nn.BatchNorm2d(_WIDTH)
    yield nn.ReLU()


class Narrowed(nn.Module):
    """The start of both heads: 64 channels by a 1x1 convolution; batch norm and ReLU only if `norm`."""

    def __init__(self, inputs: int, norm: bool) -> None:
        super().__init__()
        self.convert = nn.Conv2d(inputs, _WIDTH, 1)
        self.bn = nn.BatchNorm2d(_WIDTH) if norm else None

    def narrow(self, x: torch.Tensor) -> torch.Tensor:
        x = self.convert(x)
        return x if self.bn is None else F.relu(self.bn(x))


class MultiScaleContext(Narrowed):
    """The coarsest logits: four branches with kernels 1, 3, 5, 7, then 3x3 with dilations 1, 2, 4, 6."""

    def __init__(self, inputs: int, norm: bool) -> None:
        super().__init__(inputs, norm)
        self.branch1 = nn.Sequential(*convolution(1, 1, norm), *convolution(3, 1, norm))
        self.branch2 = nn.Sequential(*convolution(3, 1, norm), *convolution(3, 2, norm))
        self.branch3 = nn.Sequential(*convolution(5, 1, norm), *convolution(3, 4, norm))
        self.branch4 = nn.Sequential(*convolution(7, 1, norm), *convolution(3, 6, norm))
        self.score = nn.Conv2d(4 * _WIDTH, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.narrow(x)
        return self.score(torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1))


class ReverseAttention(Narrowed):
    """Logits corrected by what the features say where the coarser logits see no object."""

    def __init__(self, inputs: int, norm: bool) -> None:
        super().__init__(inputs, norm)
        layers = [layer for _ in range(3) for layer in convolution(3, 1, norm)]
        self.convs = nn.Sequential(*layers, nn.Conv2d(_WIDTH, 1, 3, padding=1))

    def forward(self, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return logits + self.convs(torch.sigmoid(-logits) * self.narrow(x))


class RAS(SaliencyNetwork):
    """Returns five maps of logits (version 1) or four (version 2), from fine to coarse, all of the image's size."""

    def __init__(self, version: Literal[1, 2]) -> None:
        super().__init__()
        norm = version == 2
        self.backbone_name = "bkbone" if version == 2 else "resnet"
        self.add_module(self.backbone_name, ResNet50())
        widths = ResNet50.widths
        self.mscm = MultiScaleContext(widths[4], norm)
        self.ra1 = ReverseAttention(widths[0], norm) if version == 1 else None
        self.ra2 = ReverseAttention(widths[1], norm)
        self.ra3 = ReverseAttention(widths[2], norm)
        self.ra4 = ReverseAttention(widths[3], norm)
        for head in (self.mscm, self.ra1, self.ra2, self.ra3, self.ra4):
            if head is not None:
                _initialise(head, norm)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        *features, deepest = getattr(self, self.backbone_name)(image)
        logits = self.mscm(deepest)
        maps = [logits]
        for feature, attend in zip(reversed(features), (self.ra4, self.ra3, self.ra2, self.ra1), strict=True):
            if attend is not None:
                logits = attend(feature, resize(logits, feature))
                maps.append(logits)
        return [resize(logits, image) for logits in reversed(maps)]


def _initialise(head: nn.Module, norm: bool) -> None:
    """As the authors do: Kaiming and zero biases before batch norm; else N(0, 0.01) and PyTorch's own biases."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d) and norm:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
