"""ResNet-50, without its classifier: K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.

Module names are torchvision's, whose ImageNet weights load unchanged; the stride is in the 3x3 convolution.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut, to 4 * planes channels; H and W are divided by `stride`."""

    def __init__(self, inputs: int, planes: int, stride: int, downsample: bool) -> None:
        super().__init__()
        outputs = 4 * planes
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.downsample = shortcut if downsample else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


def stage(inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    """`blocks` bottlenecks, of which the first changes size and channels."""
    first = Bottleneck(inputs, planes, stride, downsample=True)
    return nn.Sequential(first, *(Bottleneck(4 * planes, planes, 1, downsample=False) for _ in range(blocks - 1)))


class ResNet50(nn.Module):
    """Five feature maps of `(N, 3, H, W)`, with 64, 256, 512, 1024, 2048 channels at 1/2, 1/4, 1/8, 1/16, 1/32.

    The first is what enters the max pooling.
    """

    widths = (64, 256, 512, 1024, 2048)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(64, 64, blocks=3, stride=1)
        self.layer2 = stage(256, 128, blocks=4, stride=2)
        self.layer3 = stage(512, 256, blocks=6, stride=2)
        self.layer4 = stage(1024, 512, blocks=3, stride=2)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        features = [F.relu(self.bn1(self.conv1(image)))]
        x = F.max_pool2d(features[0], 3, stride=2, padding=1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return features
