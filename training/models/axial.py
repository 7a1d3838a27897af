"""The encoder and decoder of InSPyReNet: convolutions along the axes and attention along them."""

import torch
from torch import nn
from torch.nn import functional as F

from sodeploy.training.models.convnorm import ConvNorm

DEPTH = 64  # channels of every feature after the backbone


def resize(x: torch.Tensor, size: tuple[int, int], align_corners: bool = False) -> torch.Tensor:
    """`x`, bilinearly, at `size` (height, width)."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


class AxisAttention(nn.Module):
    """Self-attention along an axis of `length` positions, `(N, C, H, W)` to the same shape.

    The positions are those of the memory, taken row-major in runs of `length`: with the width that is the width, with
    the height it is not the height unless H = W, and then it is the width again. The published weights were trained so.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.query_conv = ConvNorm(channels, channels // 8, 1)
        self.key_conv = ConvNorm(channels, channels // 8, 1)
        self.value_conv = ConvNorm(channels, channels, 1)

    def forward(self, x: torch.Tensor, length: int) -> torch.Tensor:
        shape = (x.shape[0], -1, length)
        query, key = self.query_conv(x).reshape(shape), self.key_conv(x).reshape(shape)
        attention = (query.transpose(1, 2) @ key).softmax(-1)  # (N, length, length)
        attended = self.value_conv(x).reshape(shape) @ attention.transpose(1, 2)
        return self.gamma * attended.reshape(x.shape) + x


class AxialPair(nn.Module):
    """The owner of the two axis attentions, `Hattn` and `Wattn`, which it sums."""

    Hattn: AxisAttention
    Wattn: AxisAttention

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        return self.Hattn(x, x.shape[2]) + self.Wattn(x, x.shape[3])


class ContextBranch(AxialPair):
    """A horizontal and a vertical strip convolution, axial attention, a dilated convolution; no activation."""

    def __init__(self, inputs: int, receptive_field: int) -> None:
        super().__init__()
        self.conv0 = ConvNorm(inputs, DEPTH, 1)
        self.conv1 = ConvNorm(DEPTH, DEPTH, (1, receptive_field))
        self.conv2 = ConvNorm(DEPTH, DEPTH, (receptive_field, 1))
        self.conv3 = ConvNorm(DEPTH, DEPTH, 3, dilation=receptive_field)
        self.Hattn = AxisAttention(DEPTH)
        self.Wattn = AxisAttention(DEPTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv3(self.attend(self.conv2(self.conv1(self.conv0(x)))))


class ContextEncoder(nn.Module):
    """Parallel axial attention encoder: a backbone's feature in 64 channels, seen at four extents."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch0 = ConvNorm(inputs, DEPTH, 1)
        self.branch1 = ContextBranch(inputs, 3)
        self.branch2 = ContextBranch(inputs, 5)
        self.branch3 = ContextBranch(inputs, 7)
        self.conv_cat = ConvNorm(4 * DEPTH, DEPTH, 3)
        self.conv_res = ConvNorm(inputs, DEPTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = [self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)]
        return F.relu(self.conv_cat(torch.cat(branches, 1)) + self.conv_res(x))


class Score(nn.Module):
    """The coarsest logits from a feature."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(DEPTH, 1, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class Decoder(AxialPair):
    """The three coarsest contexts in one feature, and the coarsest saliency map, both at 1/8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3 * DEPTH, DEPTH, 3)
        self.conv2 = ConvNorm(DEPTH, DEPTH, 3)
        self.conv3 = ConvNorm(DEPTH, DEPTH, 3)
        self.conv4 = ConvNorm(DEPTH, DEPTH, 3)
        self.conv5 = Score()
        self.Hattn = AxisAttention(DEPTH)
        self.Wattn = AxisAttention(DEPTH)

    def forward(self, c3: torch.Tensor, c4: torch.Tensor, c5: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        size = (c3.shape[2], c3.shape[3])
        x = torch.cat([resize(c5, size, align_corners=True), resize(c4, size, align_corners=True), c3], 1)
        feature = self.conv4(self.conv3(self.conv2(self.attend(self.conv1(x)))))
        return feature, self.conv5(feature)
