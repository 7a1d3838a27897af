"""CSNet: saliency with 0.1 M parameters, from octave convolutions whose widths were learnt by pruning.

S.-H. Gao, Y.-Q. Tan, M.-M. Cheng et al., "Highly Efficient Salient Object Detection with 100K Parameters", ECCV 2020.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from sodeploy.training.models.network import SaliencyNetwork
from sodeploy.training.models.octave import MultiDilations, OctaveBlock, OctaveConv, Widths


@dataclass(frozen=True)
class CSNetWidths:
    """The channels of a CSNet.

    Attributes:
        stages: per stage, per block, the widths of its output branches, fine to coarse.
        fuse: of the head's first layer, at 1/2, 1/4 and 1/8.
        dilations: per branch of the head, the channels of its dilations 1, 2, 4, 8, 16.
        features: in front of the classifier.
    """

    stages: tuple[tuple[Widths, ...], ...]
    fuse: Widths
    dilations: tuple[Widths, Widths, Widths]
    features: int


# As published: the channels left by pruning a network with half of each stage's channels in either branch.
L_X1 = CSNetWidths(
    stages=(
        ((8, 10),),
        ((9, 10), (10, 10), (10, 10)),
        ((19, 13), (19, 17), (20, 12), (34,)),
        ((24, 21), (26, 27), (22, 18), (19, 18), (23, 18), (38,)),
        ((18, 29), (25, 24), (26, 20), (50,)),
    ),
    fuse=(12, 24, 24),
    dilations=((1, 2, 2, 2, 4), (1, 4, 4, 4, 5), (2, 2, 4, 5, 4)),
    features=60,
)
L_X2 = CSNetWidths(
    stages=(
        ((13, 10),),
        ((13, 12), (18, 11), (18, 12)),
        ((28, 21), (34, 22), (31, 29), (51,)),
        ((23, 26), (27, 26), (25, 20), (17, 21), (19, 25), (38,)),
        ((18, 31), (31, 27), (26, 44), (64,)),
    ),
    fuse=(17, 38, 32),
    dilations=((2, 1, 2, 2, 1), (0, 6, 6, 7, 5), (0, 1, 3, 7, 7)),
    features=79,
)


def unpruned(width: int) -> CSNetWidths:
    """The network that pruning starts from; the published ones started from width 20 (L-x1) and 40 (L-x2)."""

    def halves(channels: int) -> Widths:
        return (channels // 2, channels - channels // 2)

    outputs = (2 * width, 4 * width, 4 * width)
    fuse = tuple(channels // 3 for channels in outputs)
    first, second, third = ((*[channels // 5] * 4, channels - 4 * (channels // 5)) for channels in fuse)
    deep = ((outputs[0], 3), (outputs[1], 5), (outputs[2], 3))
    return CSNetWidths(
        stages=(
            (halves(width),),
            (halves(width),) * 3,
            *(((halves(channels),) * split + ((channels,),)) for channels, split in deep),
        ),
        fuse=fuse,
        dilations=(first, second, third),
        features=sum(fuse),
    )


class ScaledConv2d(nn.Conv2d):
    """A convolution that stores its kernel divided by 100, which makes it learn faster."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, 100 * self.weight, self.bias)


class PoolingOctaveConv(OctaveConv):
    """Down by max pooling, up bilinearly; with `stride` 2 every branch is averaged over 2x2 pixels first."""

    def __init__(self, inputs: Widths, outputs: Widths, kernel: int, stride: int) -> None:
        super().__init__(inputs, outputs, kernel)
        self.stride = stride

    def forward(self, feature: list[torch.Tensor]) -> list[torch.Tensor]:
        if self.stride > 1:
            feature = [F.avg_pool2d(x, self.stride) for x in feature]
        return super().forward(feature)

    def resample(self, x: torch.Tensor, i: int, j: int, feature: list[torch.Tensor]) -> torch.Tensor:
        if i < j:
            return F.max_pool2d(x, 2 ** (j - i))
        return F.interpolate(x, scale_factor=float(2 ** (i - j)), mode="bilinear", align_corners=False)


class Depthwise(nn.Module):
    """A depthwise 3x3 convolution, batch norm and PReLU for each branch by itself."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ScaledConv2d(c, c, 3, padding=1, groups=c, bias=False) for c in widths)
        self.bns = nn.ModuleList(nn.BatchNorm2d(c) for c in widths)
        self.prelus = nn.ModuleList(nn.PReLU(c) for c in widths)

    def forward(self, feature: list[torch.Tensor]) -> list[torch.Tensor]:
        layers = zip(self.convs, self.bns, self.prelus, strict=True)
        return [prelu(bn(conv(x))) for x, (conv, bn, prelu) in zip(feature, layers, strict=True)]


class InLayerBlock(nn.Module):
    """An octave convolution that exchanges between branches, then two depthwise ones that do not.

    The checkpoints call the first `conv1x1` whether its kernel is 1x1 or 3x3.
    """

    def __init__(self, inputs: Widths, outputs: Widths, kernel: int, stride: int) -> None:
        super().__init__()
        conv = PoolingOctaveConv(inputs, outputs, kernel, stride)
        self.conv1x1 = OctaveBlock(conv, outputs, nn.BatchNorm2d)
        self.conv3x3_1 = Depthwise(outputs)
        self.conv3x3_2 = Depthwise(outputs)

    def forward(self, feature: list[torch.Tensor]) -> list[torch.Tensor]:
        return self.conv3x3_2(self.conv3x3_1(self.conv1x1(feature)))


class OctaveFusion(nn.Module):
    """The head: the last features of stages 2, 3 and 4, taken as one octave feature, fused into one at 1/2."""

    def __init__(self, inputs: Widths, widths: CSNetWidths) -> None:
        super().__init__()
        fused: Widths = tuple(sum(dilations) for dilations in widths.dilations)
        self.fuse = OctaveBlock(PoolingOctaveConv(inputs, widths.fuse, 1, 1), widths.fuse, nn.BatchNorm2d)
        self.ms = MultiDilations(widths.fuse, widths.dilations, ScaledConv2d, nn.BatchNorm2d)
        features = (widths.features,)
        self.fuse1x1 = OctaveBlock(PoolingOctaveConv(fused, features, 1, 1), features, nn.BatchNorm2d)

    def forward(self, feature: list[torch.Tensor]) -> torch.Tensor:
        (fused,) = self.fuse1x1(self.ms(self.fuse(feature)))
        return fused


class CSNet(SaliencyNetwork):
    """Returns one map of logits. Height and width must be multiples of 16."""

    multiple = 16

    def __init__(self, widths: CSNetWidths) -> None:
        super().__init__()
        inputs: Widths = (3,)
        stages, outputs = [], []
        for number, stage in enumerate(widths.stages):
            blocks = []
            for block, branches in enumerate(stage):
                kernel = 3 if block == 0 and number != 1 else 1
                stride = 2 if block == 0 and number >= 2 else 1
                blocks.append(InLayerBlock(inputs, branches, kernel, stride))
                inputs = branches
            stages.append(nn.Sequential(*blocks))
            outputs.append(inputs)
        self.stage0, self.stage1, self.stage2, self.stage3, self.stage4 = stages
        self.oct_fuse = OctaveFusion(tuple(sum(branches) for branches in outputs[2:]), widths)
        self.cls_layer = nn.Conv2d(widths.features, 1, 1)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        feature = self.stage1(self.stage0([image]))
        pyramid = []
        for stage in (self.stage2, self.stage3, self.stage4):
            feature = stage(feature)
            pyramid += feature
        logits = self.cls_layer(self.oct_fuse(pyramid))
        return [F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)]
