"""Res2Net-50 v1b, 26 channels x 4 scales, without its classifier.

S.-H. Gao et al., "Res2Net: A New Multi-Scale Backbone Architecture", IEEE TPAMI 2021. Module names are those of the
authors' ImageNet weights (res2net50_v1b_26w_4s), which load unchanged.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

_SCALES = 4


class Bottle2neck(nn.Module):
    """A bottleneck whose 3x3 convolution is cut into four groups of channels, the last of which is not convolved.

    Inside a stage each group also gets the result of the group before it. The first block of a stage changes the size:
    its groups stay apart and the last is averaged over 3x3 pixels, in the first stage too, where the stride is 1.
    """

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int, first: bool) -> None:
        super().__init__()
        width, outputs = planes * 26 // 64, 4 * planes
        self.width, self.stride = width, stride
        self.conv1 = nn.Conv2d(inputs, _SCALES * width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_SCALES * width)
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
            for _ in range(_SCALES - 1)
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(_SCALES - 1))
        self.conv3 = nn.Conv2d(_SCALES * width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride) if first else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.downsample is not None
        shortcut = self.downsample(x) if self.downsample is not None else x
        *groups, last = F.relu(self.bn1(self.conv1(x))).split(self.width, dim=1)
        results: list[torch.Tensor] = []
        for group, conv, bn in zip(groups, self.convs, self.bns, strict=True):
            if results and not first:
                group = results[-1] + group
            results.append(F.relu(bn(conv(group))))
        results.append(F.avg_pool2d(last, 3, self.stride, padding=1) if first else last)
        return F.relu(self.bn3(self.conv3(torch.cat(results, 1))) + shortcut)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
    return nn.Sequential(pool, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


def _stage(inputs: int, planes: int, stride: int, dilations: Sequence[int]) -> nn.Sequential:
    first = Bottle2neck(inputs, planes, stride, dilations[0], first=True)
    return nn.Sequential(first, *(Bottle2neck(4 * planes, planes, 1, dilation, False) for dilation in dilations[1:]))


class Res2Net50(nn.Module):
    """Five feature maps of `(N, 3, H, W)`, with 64, 256, 512, 1024, 2048 channels at 1/4, 1/4, 1/8, 1/16, 1/32.

    Args:
        dilated: layers 3 and 4 see wider, with dilations 2 and 4, 8, 16; the parameters are the same.
    """

    widths = (64, 256, 512, 1024, 2048)

    def __init__(self, dilated: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
        )
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, 1, (1,) * 3)
        self.layer2 = _stage(256, 128, 2, (1,) * 4)
        self.layer3 = _stage(512, 256, 2, ((2,) if dilated else (1,)) * 6)
        self.layer4 = _stage(1024, 512, 2, (4, 8, 16) if dilated else (1,) * 3)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(image))), 3, stride=2, padding=1)
        features = [x]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return features
