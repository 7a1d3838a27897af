"""Scale-invariant context attention, from which InSPyReNet draws the details of its maps."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from sodeploy.training.models.axial import DEPTH, resize
from sodeploy.training.models.convnorm import ConvNorm, ConvNormReLU


class ScaledConvNormReLU(ConvNormReLU):
    """For an input that was divided by `scale`: the kernel is multiplied by it, which export folds into the weights."""

    def __init__(self, inputs: int, outputs: int, scale: int) -> None:
        super().__init__(inputs, outputs, 1)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(F.conv2d(x, self.scale * self.conv.weight)))


class ScaleInvariantContextAttention(nn.Module):
    """SICA: a detail map and its feature, by attention to the sums of the features over a few soft regions.

    The regions are foreground, background and uncertain, by the coarser saliency map, and the bright and the dark side
    of its details where there is a Laplacian map (`laplacian`). They are summed over a grid of fixed size, whatever the
    image's, so a network must be run with the grid that it was trained with.

    The sums reach 1e8 where float16 ends at 65504. Both factors are therefore divided by a power of two beforehand, and
    the convolutions of the sums multiply by it again: the same numbers, bit for bit, in float32.
    """

    def __init__(self, inputs: int, grid: int, laplacian: bool) -> None:
        super().__init__()
        self.grid = (grid, grid)
        self.divisor = 2 ** math.ceil(math.log2(grid))
        self.threshold = nn.Parameter(torch.full((1,), 0.5))
        if laplacian:
            self.lthreshold = nn.Parameter(torch.full((1,), 0.5))
        scale = self.divisor**2
        self.conv_query = nn.Sequential(ConvNormReLU(inputs, DEPTH, 3), ConvNormReLU(DEPTH, DEPTH, 3))
        self.conv_key = nn.Sequential(ScaledConvNormReLU(inputs, DEPTH, scale), ConvNormReLU(DEPTH, DEPTH, 1))
        self.conv_value = nn.Sequential(ScaledConvNormReLU(inputs, DEPTH, scale), ConvNormReLU(DEPTH, DEPTH, 1))
        self.conv_out1 = ConvNormReLU(DEPTH, DEPTH, 3)
        self.conv_out2 = ConvNormReLU(inputs + DEPTH, DEPTH, 3)
        self.conv_out3 = ConvNormReLU(DEPTH, DEPTH, 3)
        self.conv_out4 = ConvNorm(DEPTH, 1, 1)

    def forward(
        self, x: torch.Tensor, saliency: torch.Tensor, laplacian: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A feature `(N, 64, H, W)` and a detail map `(N, 1, H, W)` for `x` of that size; all maps are logits."""
        batch, _, height, width = x.shape
        context = self.context(x, saliency, laplacian)[..., None]  # (N, C, K, 1)
        query = self.conv_query(x).reshape(batch, DEPTH, -1).transpose(1, 2)  # (N, H * W, 64)
        key = self.conv_key(context).flatten(2)  # (N, 64, K)
        value = self.conv_value(context).flatten(2).transpose(1, 2)  # (N, K, 64)
        attended = (DEPTH**-0.5 * query @ key).softmax(-1) @ value
        attended = self.conv_out1(attended.transpose(1, 2).reshape(batch, DEPTH, height, width))
        feature = self.conv_out3(self.conv_out2(torch.cat([x, attended], 1)))
        return feature, self.conv_out4(feature)

    def context(self, x: torch.Tensor, saliency: torch.Tensor, laplacian: torch.Tensor | None) -> torch.Tensor:
        """The regions' sums of features divided by `divisor**2`, `(N, C, K)`."""
        size = (x.shape[2], x.shape[3])
        side = torch.sigmoid(resize(saliency, size)) - self.threshold
        regions = [side.clamp(0, 1), (-side).clamp(0, 1), self.threshold - side.abs()]
        if laplacian is not None:
            side = torch.sigmoid(resize(laplacian, size)) - self.lthreshold
            regions += [side.clamp(0, 1), (-side).clamp(0, 1)]
        weights = resize(torch.cat(regions, 1), self.grid) / self.divisor
        features = resize(x, self.grid) / self.divisor
        # Row-major, not transposed: position n of a region meets the n-th run of C numbers of the features' memory.
        return (weights.flatten(2) @ features.reshape(x.shape[0], -1, x.shape[1])).transpose(1, 2)
