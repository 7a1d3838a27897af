"""The Laplacian pyramid of InSPyReNet: saliency maps `(N, 1, H, W)` halved, doubled and sharpened.

After P. Burt and E. Adelson, "The Laplacian Pyramid as a Compact Image Code", 1983; InSPyReNet, section 3.2.
"""

import torch
from torch import nn
from torch.nn import functional as F

_RADIUS = 3


class GaussianPyramid(nn.Module):
    """Halving and doubling with a Gaussian of 7 x 7 pixels and sigma 1, mirrored at the border."""

    kernel: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        row = torch.exp(-0.5 * torch.arange(-_RADIUS, _RADIUS + 1, dtype=torch.float64) ** 2)
        row = row / row.sum()
        self.register_buffer("kernel", torch.outer(row, row)[None, None].float(), persistent=False)

    def reduce(self, x: torch.Tensor) -> torch.Tensor:
        """`(N, 1, H, W)` at half the size; odd sizes round up."""
        return F.conv2d(_mirrored(x), self.kernel)[:, :, ::2, ::2]

    def expand(self, x: torch.Tensor) -> torch.Tensor:
        """`(N, 1, H, W)` at twice the size; H and W at least 2."""
        spread = F.pixel_shuffle(F.pad(x, (0, 0, 0, 0, 0, 3)), 2)  # three zeros beside each value
        return F.conv2d(_mirrored(spread), 4 * self.kernel)

    def reconstruct(self, coarse: torch.Tensor, detail: torch.Tensor) -> torch.Tensor:
        """The map at the size of `detail`: the coarser map is doubled in size and corrected."""
        return self.expand(coarse) + detail


def _mirrored(x: torch.Tensor) -> torch.Tensor:
    return F.pad(x, (_RADIUS,) * 4, mode="reflect")
