"""CSF: a cross-stage fusion head on a Res2Net-50, from the authors of CSNet (ECCV 2020)."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from sodeploy.training.models.network import SaliencyNetwork
from sodeploy.training.models.octave import MultiDilations, OctaveBlock, OctaveConv, Widths
from sodeploy.training.models.res2net import Res2Net50

_FUSED: Widths = (128, 256, 512, 512)
_group_norm = partial(nn.GroupNorm, 32)


class ResizingOctaveConv(OctaveConv):
    """1x1; up and down bilinearly, to the sizes of the layer's own inputs, so that images may have any size."""

    parameter = "weights"

    def __init__(self, inputs: Widths, outputs: Widths) -> None:
        super().__init__(inputs, outputs, kernel=1)

    def resample(self, x: torch.Tensor, i: int, j: int, feature: list[torch.Tensor]) -> torch.Tensor:
        return F.interpolate(x, size=feature[j].shape[-2:], mode="bilinear", align_corners=False)


class CSF(SaliencyNetwork):
    """Returns one map of logits. The features of the backbone's four stages are taken as one octave feature."""

    backbone_name = "base"

    def __init__(self) -> None:
        super().__init__()
        inputs, features = Res2Net50.widths[1:], (sum(_FUSED),)
        dilations = [(*[width // 5] * 4, width - 4 * (width // 5)) for width in _FUSED]
        self.base = Res2Net50()
        self.fuse = OctaveBlock(ResizingOctaveConv(inputs, _FUSED), _FUSED, _group_norm)
        self.ms = MultiDilations(_FUSED, dilations, nn.Conv2d, _group_norm)
        self.fuse1x1 = OctaveBlock(ResizingOctaveConv(_FUSED, features), features, _group_norm)
        self.cls_layer = nn.Conv2d(*features, 1, 1)
        for module in [*self.ms.modules(), self.cls_layer]:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
        assert self.cls_layer.bias is not None
        nn.init.zeros_(self.cls_layer.bias)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        _, *features = self.base(image)
        (fused,) = self.fuse1x1(self.ms(self.fuse(features)))
        logits = self.cls_layer(fused)
        return [F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)]
