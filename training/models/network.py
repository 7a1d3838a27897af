"""What every network here has in common."""

import torch
from torch import nn


class SaliencyNetwork(nn.Module):
    """A network from an image `(N, 3, H, W) float32`, normalised as its contract says, to saliency logits.

    `forward` returns the logits of all supervised maps, a list of `(N, 1, H, W)` (a network's own docstring says if
    some are smaller); the first is the prediction. Logits, not probabilities: losses and half precision need them.
    """

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        raise NotImplementedError

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        """The saliency map, `(N, 1, H, W)` in [0, 1]: what is exported and deployed."""
        return torch.sigmoid(self(image)[0])
