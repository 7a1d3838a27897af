"""Generalised octave convolutions: a feature map at several resolutions, convolved as one.

An octave feature is a list of `(N, C_b, H / 2**b, W / 2**b)`, branch b from fine to coarse; the channels (widths) of
its branches are given as a tuple. S.-H. Gao et al., "Highly Efficient Salient Object Detection with 100K Parameters",
ECCV 2020, after Y. Chen et al., "Drop an Octave", ICCV 2019.
"""

import math
import operator
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import accumulate

import torch
from torch import nn
from torch.nn import functional as F

Widths = tuple[int, ...]
DILATIONS = (1, 2, 4, 8, 16)


class OctaveConv(nn.Module):
    """Every input branch convolved into every output branch, one weight for all, no bias.

    On the way down a branch is resampled before its convolution, on the way up after it: each convolution runs at the
    lower of the two resolutions. How to resample is the subclass's.
    """

    parameter = "weight"  # its name in the state dict

    def __init__(self, inputs: Widths, outputs: Widths, kernel: int) -> None:
        super().__init__()
        weight = torch.empty(sum(outputs), sum(inputs), kernel, kernel)
        self.register_parameter(self.parameter, nn.Parameter(nn.init.kaiming_uniform_(weight, a=math.sqrt(5))))
        self.columns = list(accumulate(inputs, initial=0))
        self.rows = list(accumulate(outputs, initial=0))
        self.padding = kernel // 2

    def forward(self, feature: list[torch.Tensor]) -> list[torch.Tensor]:
        weight = getattr(self, self.parameter)
        result = []
        for j in range(len(self.rows) - 1):
            terms = []
            for i, x in enumerate(feature):
                block = weight[self.rows[j] : self.rows[j + 1], self.columns[i] : self.columns[i + 1]]
                if i < j:
                    x = self.resample(x, i, j, feature)
                x = F.conv2d(x, block, padding=self.padding)
                if i > j:
                    x = self.resample(x, i, j, feature)
                terms.append(x)
            result.append(reduce(operator.add, terms))
        return result

    def resample(self, x: torch.Tensor, i: int, j: int, feature: list[torch.Tensor]) -> torch.Tensor:
        """Bring `x` from the resolution of branch i to the resolution of branch j; `feature` is the layer's input."""
        raise NotImplementedError


class OctaveBlock(nn.Module):
    """An octave convolution, then a norm and a PReLU per branch."""

    def __init__(self, conv: OctaveConv, outputs: Widths, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv = conv
        self.bns = nn.ModuleList(norm(width) for width in outputs)
        self.prelus = nn.ModuleList(nn.PReLU(width) for width in outputs)

    def forward(self, feature: list[torch.Tensor]) -> list[torch.Tensor]:
        return [prelu(bn(x)) for x, bn, prelu in zip(self.conv(feature), self.bns, self.prelus, strict=True)]


class MultiDilation(nn.Module):
    """Parallel 3x3 convolutions with dilations 1, 2, 4, 8, 16, concatenated; then a norm and a PReLU.

    `widths[k]` are the output channels of dilation `DILATIONS[k]`; one that was pruned to 0 is left out, and so is its
    index in the state dict.
    """

    def __init__(self, inputs: int, widths: Widths, conv: type[nn.Conv2d], norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.msconv = nn.ModuleDict(
            {
                str(k): conv(inputs, width, 3, padding=dilation, dilation=dilation, bias=False)
                for k, (width, dilation) in enumerate(zip(widths, DILATIONS, strict=True))
                if width
            }
        )
        self.bn = norm(sum(widths))
        self.prelu = nn.PReLU(sum(widths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.prelu(self.bn(torch.cat([conv(x) for conv in self.msconv.values()], 1)))


class MultiDilations(nn.Module):
    """One `MultiDilation` per branch, without exchange between branches."""

    def __init__(
        self,
        inputs: Widths,
        widths: Sequence[Widths],
        conv: type[nn.Conv2d],
        norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            MultiDilation(width, dilations, conv, norm) for width, dilations in zip(inputs, widths, strict=True)
        )

    def forward(self, feature: list[torch.Tensor]) -> list[torch.Tensor]:
        return [conv(x) for x, conv in zip(feature, self.convs, strict=True)]
