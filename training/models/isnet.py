"""IS-Net and its ground-truth encoder (Xuebin Qin et al., "Highly Accurate Dichotomous Image Segmentation", ECCV 2022).

The encoder is trained first, to reproduce masks from masks; the segmentation network then learns to have the
encoder's features of the mask as its own features of the image (feature synchronisation). Only the segmentation
network is deployed.
"""

from collections import OrderedDict

import torch
from torch import nn

from sodeploy.training.models.rsu import NestedUNet, RSUEncoder, Widths, resize_to

Maps = list[torch.Tensor]


class ISNetDIS(NestedUNet):
    """U²-Net's structure at half size behind a strided convolution, without the fusion of the side outputs.

    `forward` gives six maps at the input's size, fine to coarse.
    """

    def __init__(self) -> None:
        super().__init__(
            stem=nn.Conv2d(3, 64, 3, stride=2, padding=1),
            in_channels=64,
            encoder=[Widths(*w) for w in ((32, 64), (32, 128), (64, 256), (128, 512), (256, 512), (256, 512))],
            decoder=[Widths(*w) for w in ((16, 64), (32, 64), (64, 128), (128, 256), (256, 512))],
        )

    def forward(self, image: torch.Tensor) -> Maps:
        return self.forward_with_features(image)[0]

    def forward_with_features(self, image: torch.Tensor) -> tuple[Maps, Maps]:
        """The logits, and the six features they come from (64 to 512 channels at strides 2 to 64)."""
        features = self.decode(self.encode(image))
        return [resize_to(side, image) for side in self.side_logits(features)], features


class ISNetGTEncoder(RSUEncoder):
    """The encoder of masks, `(N, 1, H, W)` in [0, 1], whose features have the shapes of `ISNetDIS`'s."""

    def __init__(self) -> None:
        stem = nn.Sequential(
            OrderedDict(conv=nn.Conv2d(1, 16, 3, stride=2, padding=1), bn=nn.BatchNorm2d(16), rl=nn.ReLU(inplace=True))
        )
        encoder = [Widths(*w) for w in ((16, 64), (16, 64), (32, 128), (32, 256), (64, 512), (64, 512))]
        super().__init__(stem, 16, encoder)
        self.add_side_heads([widths.out for widths in encoder])

    def forward(self, image: torch.Tensor) -> Maps:
        return self.forward_with_features(image)[0]

    def forward_with_features(self, image: torch.Tensor) -> tuple[Maps, Maps]:
        """The logits of the mask, and the six features they come from."""
        features = self.encode(image)
        return [resize_to(side, image) for side in self.side_logits(features)], features
