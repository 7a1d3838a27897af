"""Residual U-blocks and the nested U-shaped networks made of them, which U²-Net and IS-Net share.

Xuebin Qin et al., "U²-Net: Going Deeper with Nested U-Structure for Salient Object Detection", Pattern Recognition
2020. Module names are those of the published checkpoints.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from sodeploy.training.models.network import SaliencyNetwork


class Widths(NamedTuple):
    """Channels of one stage: inside its residual U-block, and of its result."""

    mid: int
    out: int


_DEPTHS = (7, 6, 5, 4)  # levels of the blocks of stages 1 to 4; stages 5 and 6 are too small to pool and dilate instead


def conv_bn_relu(in_channels: int, out_channels: int, dilation: int = 1, stride: int = 1) -> nn.Sequential:
    """3 x 3 convolution with bias, batch norm, ReLU; with stride 1 the size stays."""
    return nn.Sequential(
        OrderedDict(
            conv_s1=nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=dilation, dilation=dilation),
            bn_s1=nn.BatchNorm2d(out_channels),
            relu_s1=nn.ReLU(inplace=True),
        )
    )


def halve(x: torch.Tensor) -> torch.Tensor:
    """2 x 2 max pooling in which odd sizes round up."""
    return F.max_pool2d(x, 2, stride=2, ceil_mode=True)


def resize_to(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`x`, bilinearly, at the height and width of `other`."""
    return F.interpolate(x, size=other.shape[2:], mode="bilinear", align_corners=False)


def join(deeper: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    """The deeper tensor, enlarged to the skip's size, and the skip, on the channels in this order."""
    return torch.cat([resize_to(deeper, skip), skip], dim=1)


class RSU(nn.Module):
    """Residual U-block: a U-Net of `levels` levels, pooled `levels - 2` times, plus its own first convolution.

    `(N, in_channels, H, W)` to `(N, widths.out, H, W)`, any size.
    """

    def __init__(self, levels: int, in_channels: int, widths: Widths) -> None:
        super().__init__()
        mid, out = widths
        self.levels = levels
        self.rebnconvin = conv_bn_relu(in_channels, out)
        for level in range(1, levels):
            self.add_module(f"rebnconv{level}", conv_bn_relu(out if level == 1 else mid, mid))
        self.add_module(f"rebnconv{levels}", conv_bn_relu(mid, mid, dilation=2))
        for level in range(levels - 1, 0, -1):
            self.add_module(f"rebnconv{level}d", conv_bn_relu(2 * mid, out if level == 1 else mid))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.rebnconvin(x)
        skips = [self.get_submodule("rebnconv1")(residual)]
        for level in range(2, self.levels):
            skips.append(self.get_submodule(f"rebnconv{level}")(halve(skips[-1])))
        x = self.get_submodule(f"rebnconv{self.levels}")(skips[-1])
        x = torch.cat([x, skips[-1]], dim=1)  # the two lowest levels have one size
        for level in range(self.levels - 1, 1, -1):
            x = join(self.get_submodule(f"rebnconv{level}d")(x), skips[level - 2])
        return self.get_submodule("rebnconv1d")(x) + residual


class DilatedRSU(nn.Module):
    """The residual U-block for small maps (RSU-4F): dilations 1, 2, 4, 8 in the place of pooling."""

    def __init__(self, in_channels: int, widths: Widths) -> None:
        super().__init__()
        mid, out = widths
        self.rebnconvin = conv_bn_relu(in_channels, out)
        self.rebnconv1 = conv_bn_relu(out, mid)
        self.rebnconv2 = conv_bn_relu(mid, mid, dilation=2)
        self.rebnconv3 = conv_bn_relu(mid, mid, dilation=4)
        self.rebnconv4 = conv_bn_relu(mid, mid, dilation=8)
        self.rebnconv3d = conv_bn_relu(2 * mid, mid, dilation=4)
        self.rebnconv2d = conv_bn_relu(2 * mid, mid, dilation=2)
        self.rebnconv1d = conv_bn_relu(2 * mid, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.rebnconvin(x)
        hx1 = self.rebnconv1(residual)
        hx2 = self.rebnconv2(hx1)
        hx3 = self.rebnconv3(hx2)
        x = self.rebnconv4(hx3)
        x = self.rebnconv3d(torch.cat([x, hx3], dim=1))
        x = self.rebnconv2d(torch.cat([x, hx2], dim=1))
        return self.rebnconv1d(torch.cat([x, hx1], dim=1)) + residual


def rsu(stage: int, in_channels: int, widths: Widths) -> nn.Module:
    """The block of stage 1 to 6, encoder or decoder."""
    if stage <= len(_DEPTHS):
        return RSU(_DEPTHS[stage - 1], in_channels, widths)
    return DilatedRSU(in_channels, widths)


class RSUEncoder(SaliencyNetwork):
    """Six stages of residual U-blocks, each at half the size of the one before.

    Args:
        stem: what comes before stage 1, or None.
        in_channels: of stage 1.
        encoder: the widths of `stage1` to `stage6`.
    """

    def __init__(self, stem: nn.Module | None, in_channels: int, encoder: Sequence[Widths]) -> None:
        super().__init__()
        self.conv_in = stem
        for stage, widths in enumerate(encoder, start=1):
            self.add_module(f"stage{stage}", rsu(stage, in_channels, widths))
            in_channels = widths.out

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The results of the six stages."""
        if self.conv_in is not None:
            x = self.conv_in(x)
        features = [self.get_submodule("stage1")(x)]
        for stage in range(2, 7):
            features.append(self.get_submodule(f"stage{stage}")(halve(features[-1])))
        return features

    def add_side_heads(self, channels: Sequence[int]) -> None:
        """Register `side1` to `side6`, a 3 x 3 convolution to one channel each."""
        for stage, width in enumerate(channels, start=1):
            self.add_module(f"side{stage}", nn.Conv2d(width, 1, 3, padding=1))

    def side_logits(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """`(N, 1, h, w)` of each feature, at the feature's own size."""
        return [self.get_submodule(f"side{stage}")(feature) for stage, feature in enumerate(features, start=1)]


class NestedUNet(RSUEncoder):
    """The encoder, and five stages of residual U-blocks back up.

    Args:
        decoder: the widths of `stage1d` to `stage5d`.
    """

    def __init__(
        self, stem: nn.Module | None, in_channels: int, encoder: Sequence[Widths], decoder: Sequence[Widths]
    ) -> None:
        super().__init__(stem, in_channels, encoder)
        deeper = encoder[5].out
        for stage in range(5, 0, -1):
            self.add_module(f"stage{stage}d", rsu(stage, deeper + encoder[stage - 1].out, decoder[stage - 1]))
            deeper = decoder[stage - 1].out
        self.add_side_heads([*(widths.out for widths in decoder), encoder[5].out])

    def decode(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Encoder features to those that the side heads see: `stage1d` to `stage5d`, and stage 6 as it is."""
        decoded = [features[5]]
        for stage in range(5, 0, -1):
            decoded.insert(0, self.get_submodule(f"stage{stage}d")(join(decoded[0], features[stage - 1])))
        return decoded
