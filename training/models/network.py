"""The base class of every network here."""

from typing import ClassVar

import torch
from torch import nn

from sodeploy.errors import UserError

_SMALLEST = 32  # the deepest feature maps are 32 times smaller than the image


class SaliencyNetwork(nn.Module):
    """A network from an image `(N, 3, H, W) float32`, normalised as its contract says, to saliency logits.

    `forward` returns the logits of all supervised maps, a list of `(N, 1, H, W)` (a network's own docstring says if
    some are smaller); the first is the prediction. Logits, not probabilities: losses and half precision need them.
    """

    multiple: ClassVar[int] = 1  # height and width must be multiples of it
    backbone_name: str = ""  # the module that takes ImageNet weights, if any

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        raise NotImplementedError

    def check_size(self, height: int, width: int) -> None:
        """Raise UserError, naming the nearest valid size, unless the network takes images of height x width."""
        nearest = [max(_SMALLEST, round(side / self.multiple) * self.multiple) for side in (height, width)]
        if nearest != [height, width]:
            raise UserError(
                f"{type(self).__name__} cannot take {height}x{width} images (height x width): both must be multiples "
                f"of {self.multiple} and at least {_SMALLEST}; the nearest such size is {nearest[0]}x{nearest[1]}"
            )

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        """The saliency map, `(N, 1, H, W)` in [0, 1]: what is exported and deployed."""
        return torch.sigmoid(self(image)[0])
