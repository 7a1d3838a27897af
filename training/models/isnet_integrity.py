"""ISNet (integrity): separate the object coarsely, with some margin, then segment it.

G. Zhu et al., "Separate first, then segment: An integrity segmentation network for salient object detection", Pattern
Recognition 2024. Not related to the IS-Net of DIS.
"""

import torch
from torch import nn
from torch.nn import functional as F

from sodeploy.training.models.integrity_coarse import ASPP, CoarseNet, conv3x3, pointwise, resize
from sodeploy.training.models.network import SaliencyNetwork
from sodeploy.training.models.resnet import ResNet50


class ChannelAttention(nn.Module):
    """256 channels of the left feature, weighted by the mean of the deeper one."""

    def __init__(self, left: int, down: int) -> None:
        super().__init__()
        self.conv0 = pointwise(left, 256)
        self.bn0 = nn.BatchNorm2d(256)
        self.conv1 = pointwise(down, 256)
        self.conv2 = pointwise(256, 256)

    def forward(self, left: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.conv2(F.relu(self.conv1(F.adaptive_avg_pool2d(down, 1)))))
        return F.relu(self.bn0(self.conv0(left))) * gate


class CoordinateAttention(nn.Module):
    """Weights from the means over rows and over columns (Q. Hou et al., CVPR 2021).

    Means rather than `AdaptiveAvgPool2d((None, 1))`, which no ONNX operator can express.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = pointwise(256, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = pointwise(16, 256)
        self.conv3 = pointwise(16, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height = x.shape[2]
        rows = x.mean(3, keepdim=True)  # (N, 256, H, 1)
        columns = x.mean(2, keepdim=True).transpose(2, 3)  # (N, 256, W, 1)
        y = F.hardswish(self.bn1(self.conv1(torch.cat([rows, columns], 2))))
        of_rows = torch.sigmoid(self.conv2(y[:, :, :height]))
        of_columns = torch.sigmoid(self.conv3(y[:, :, height:].transpose(2, 3)))
        return of_columns * of_rows * x


class BodyAggregation(nn.Module):
    """Left (this stage), down (the finer branch so far), right (the global context) and top (the coarse branch)."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.CoordAttention = CoordinateAttention()
        self.conv0, self.bn0 = conv3x3(left, 256), nn.BatchNorm2d(256)
        self.conv1, self.bn1 = conv3x3(256, 256), nn.BatchNorm2d(256)
        self.conv2, self.bn2 = conv3x3(256, 256), nn.BatchNorm2d(256)
        self.conv4, self.bn4 = conv3x3(256, 256), nn.BatchNorm2d(256)
        self.conv_d, self.conv_r, self.conv_l = conv3x3(256, 256), conv3x3(256, 256), conv3x3(256, 256)
        self.conv3, self.bn3 = conv3x3(768, 256), nn.BatchNorm2d(256)

    def forward(self, left: torch.Tensor, down: torch.Tensor, right: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
        left = F.relu(self.bn0(self.conv0(left)))
        down = F.relu(self.bn1(self.conv1(down)))
        right = F.relu(self.bn2(self.conv2(right)))
        top = F.relu(self.bn4(self.conv4(top)))
        by_left = F.relu(self.conv_l(left) * resize(down, left))
        by_down = F.relu(resize(self.conv_d(down), left) * left)
        by_right = F.relu(resize(self.conv_r(right), left) * left)
        x = F.relu(self.bn3(self.conv3(torch.cat([by_left, by_down, by_right], 1))))
        return x * self.CoordAttention(top) + x


class SelfRefinement(nn.Module):
    """A feature times a weight plus a bias, both computed from itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(256, 256), nn.BatchNorm2d(256)
        self.conv2 = conv3x3(256, 512)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        weight, bias = self.conv2(x).split(256, dim=1)
        return F.relu(weight * x + bias)


class ISNetIntegrity(SaliencyNetwork):
    """Returns five maps of logits of the image's size: four of the object, from fine to coarse, then one of the object
    with a margin, to be trained against the expanded mask.

    `ca55`, `conv_p`, `bn` and `bn256` are in every checkpoint and never used: they do not train.
    """

    backbone_name = "bkbone"

    def __init__(self) -> None:
        super().__init__()
        self.aspp = ASPP(256, (1, 2, 4))
        self.bkbone = ResNet50()
        self.ca45 = ChannelAttention(2048, 2048)
        self.ca35 = ChannelAttention(2048, 2048)
        self.ca25 = ChannelAttention(2048, 2048)
        self.ca55 = ChannelAttention(256, 2048)
        self.ca_c2 = ChannelAttention(256, 256)
        self.ca_c3 = ChannelAttention(256, 256)
        self.ca_c4 = ChannelAttention(256, 256)
        self.ba1_45 = BodyAggregation(1024)
        self.ba1_34 = BodyAggregation(512)
        self.ba1_23 = BodyAggregation(256)
        self.ba2_4 = SelfRefinement()
        self.ba2_3 = SelfRefinement()
        self.ba2_2 = SelfRefinement()
        self.linear5 = conv3x3(256, 1)
        self.linear4 = conv3x3(256, 1)
        self.linear3 = conv3x3(256, 1)
        self.linear2 = conv3x3(256, 1)
        self.linear1 = conv3x3(256, 1)
        self.Coarse_Net = CoarseNet()
        self.conv_o = pointwise(2048, 256)
        self.conv_p = conv3x3(256, 256)
        self.conv_q = pointwise(256, 2048)
        self.bn = nn.BatchNorm2d(1)
        self.bn256 = nn.BatchNorm2d(256)
        self.bn2048 = nn.BatchNorm2d(2048)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.startswith("bkbone."):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for unused in (self.ca55, self.conv_p, self.bn, self.bn256):
            unused.requires_grad_(False)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        _, r2, r3, r4, r5 = self.bkbone(image)
        c2, c345, c45 = self.Coarse_Net(r2, r3, r4, r5)
        t5 = self.aspp(F.relu(self.conv_o(r5)))
        r5 = r5 + r5 * torch.sigmoid(self.bn2048(self.conv_q(t5)))
        k2 = self.ca_c2(c2, c2)
        t4 = self.ba2_4(self.ba1_45(r4, t5, self.ca45(r5, r5), self.ca_c4(c45, c45)))
        t3 = self.ba2_3(self.ba1_34(r3, t4, self.ca35(r5, r5), self.ca_c3(c345, c345)))
        t2 = self.ba2_2(self.ba1_23(r2, t3, self.ca25(r5, r5), k2))
        maps = [self.linear2(t2), self.linear3(t3), self.linear4(t4), self.linear5(t5), self.linear1(k2)]
        return [resize(logits, image) for logits in maps]
