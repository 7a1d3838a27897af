"""A convolution followed by batch norm, as two networks name it."""

import torch
from torch import nn
from torch.nn import functional as F


class ConvNorm(nn.Module):
    """A convolution without bias that keeps the size, then batch norm; the activation is the caller's."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int], dilation: int = 1, momentum: float = 0.1
    ) -> None:
        super().__init__()
        vertical, horizontal = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (dilation * (vertical // 2), dilation * (horizontal // 2))
        self.conv = nn.Conv2d(inputs, outputs, (vertical, horizontal), padding=padding, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(outputs, momentum=momentum)
        nn.init.kaiming_normal_(self.conv.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x))


class ConvNormReLU(ConvNorm):
    """A convolution, batch norm, ReLU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(super().forward(x))
