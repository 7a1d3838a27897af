"""The coarse branch of the integrity ISNet: where, roughly, is the whole object?"""

import torch
from torch import nn
from torch.nn import functional as F

from sodeploy.training.models.convnorm import ConvNorm

_MOMENTUM = 0.999  # of the batch norms after pooled and dilated convolutions: nearly the last batch's statistics alone


def resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`x`, bilinearly, at the height and width of `like`."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    """A 1x1 convolution."""
    return nn.Conv2d(inputs, outputs, 1)


def conv3x3(inputs: int, outputs: int, dilation: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)


class GlobalContext(nn.Module):
    """The image's mean feature, `(N, C, 1, 1)`. In train mode its batch norm needs more than one image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ConvNorm(channels, channels, 1, momentum=_MOMENTUM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.adaptive_avg_pool2d(x, 1))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: dilated convolutions side by side, the image's mean among them."""

    def __init__(self, channels: int, dilations: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 1, momentum=_MOMENTUM)
        self.conv_aspp1 = ConvNorm(channels, channels, 3, dilations[0], _MOMENTUM)
        self.conv_aspp2 = ConvNorm(channels, channels, 3, dilations[1], _MOMENTUM)
        self.conv_aspp3 = ConvNorm(channels, channels, 3, dilations[2], _MOMENTUM)
        self.conv_pool = GlobalContext(channels)
        self.conv2 = ConvNorm(5 * channels, channels, 1, momentum=_MOMENTUM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        local = [self.conv1(x), self.conv_aspp1(x), self.conv_aspp2(x), self.conv_aspp3(x)]
        features = torch.cat([*local, self.conv_pool(x).expand_as(local[0])], 1)
        return F.dropout(F.relu(self.conv2(F.relu(features))), 0.5, self.training)


class ReceptiveFields(nn.Module):
    """Four linear chains of convolutions that see 1, 3, 7 and 11 pixels far; `(N, C, H, W)` to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = channels // 4
        self.branch_0 = pointwise(channels, width)
        self.branch_11 = pointwise(channels, width)
        self.branch_12 = conv3x3(width, width)
        self.branch_21 = pointwise(channels, width)
        self.branch_22 = conv3x3(width, width)
        self.branch_23 = conv3x3(width, width, dilation=2)
        self.branch_31 = pointwise(channels, width)
        self.branch_32 = nn.Conv2d(width, width, 5, padding=2)
        self.branch_33 = conv3x3(width, width, dilation=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.branch_12(self.branch_11(x))
        second = self.branch_23(self.branch_22(self.branch_21(x)))
        third = self.branch_33(self.branch_32(self.branch_31(x)))
        return torch.cat([self.branch_0(x), first, second, third], 1)


class CoarseNet(nn.Module):
    """Features of the ResNet's four stages, fused from the deepest up.

    Returns 256 channels at 1/4, 1/8 and 1/16 of the image. Where two maps are enlarged and added, they are added first:
    the same up to rounding, with one resize.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv5_1 = pointwise(2048, 256)
        self.aspp5 = ASPP(256, (1, 2, 4))
        self.conv5_2, self.conv5_3, self.conv5_4 = pointwise(256, 64), conv3x3(64, 64), pointwise(64, 256)
        self.conv4_1 = pointwise(1024, 256)
        self.aspp4 = ASPP(256, (2, 4, 8))
        self.conv45_1, self.conv45_2, self.conv45_3 = pointwise(256, 64), conv3x3(64, 64), pointwise(64, 256)
        self.conv45_4 = pointwise(256, 256)
        self.conv3_1 = pointwise(512, 256)
        self.rfb3 = ReceptiveFields(256)
        self.conv345_1, self.conv345_2, self.conv345_3 = pointwise(256, 64), conv3x3(64, 64), pointwise(64, 256)
        self.conv345_4 = pointwise(256, 256)
        self.conv345_123_1, self.conv345_123_2 = pointwise(256, 64), conv3x3(64, 64)
        self.conv345_123_3, self.conv345_123_4 = pointwise(64, 256), pointwise(256, 256)
        self.conv2_1 = pointwise(256, 64)
        self.rfb2 = ReceptiveFields(64)
        self.conv2_2, self.conv2_3 = conv3x3(64, 64), pointwise(64, 256)

    def forward(
        self, r2: torch.Tensor, r3: torch.Tensor, r4: torch.Tensor, r5: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = self.aspp5(F.relu(self.conv5_1(r5)))
        x = _bottleneck(x, self.conv5_2, self.conv5_3, self.conv5_4)
        c45 = F.relu(resize(x, r4) + self.aspp4(self.conv4_1(r4)))
        x = _bottleneck(c45, self.conv45_1, self.conv45_2, self.conv45_3) + self.conv45_4(c45)
        c345 = F.relu(resize(x, r3) + self.rfb3(self.conv3_1(r3)))
        e = self.conv345_4(c345)
        u = F.relu(_bottleneck(c345, self.conv345_1, self.conv345_2, self.conv345_3) + e)
        x = _bottleneck(u, self.conv345_123_1, self.conv345_123_2, self.conv345_123_3) + self.conv345_123_4(u) + e
        shallow = self.conv2_3(F.relu(self.conv2_2(self.rfb2(F.relu(self.conv2_1(r2))))))
        return F.relu(resize(x, r2) + shallow), c345, c45


def _bottleneck(x: torch.Tensor, narrow: nn.Module, mix: nn.Module, widen: nn.Module) -> torch.Tensor:
    result: torch.Tensor = widen(F.relu(mix(F.relu(narrow(x)))))
    return result
