"""Small networks of the structures of 2024 to 2026: a Swin or PVT backbone and a decoder with deformable convolutions.

Written from the papers: Swin (Liu et al., 2021: windows, every second block shifted, patch merging), PVT v2 (Wang et
al., 2022: attention to a pooled map, a depthwise convolution in the MLP), and BiRefNet (Zheng et al., 2024: an ASPP of
modulated deformable convolutions of several sizes, and the image's own patches beside the features). Widths are small.
Weights are drawn from a seed, batch norms measure drawn pictures, and the last layer is fitted to their masks by least
squares, so that the map is a coarse saliency map.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sodeploy.calib_data import open_dataset
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.processing import preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEADS = 2


class DeformConv(torch.autograd.Function):
    """The operator of ONNX (opset 19). torch has no kernel of its own; this one samples tap by tap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        side = weight.shape[2]
        y, x0 = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        columns = []
        for tap in range(side * side):
            moved_y = y + tap // side - side // 2 + offset[:, 2 * tap]
            moved_x = x0 + tap % side - side // 2 + offset[:, 2 * tap + 1]
            grid = torch.stack([(2 * moved_x + 1) / width - 1, (2 * moved_y + 1) / height - 1], dim=-1)
            sampled = functional.grid_sample(x, grid, align_corners=False)
            columns.append(sampled * mask[:, tap : tap + 1])
        stacked = torch.stack(columns, dim=2).reshape(n, channels * side * side, height, width)
        return functional.conv2d(stacked, weight.reshape(len(weight), -1, 1, 1), bias)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, offset: Any, bias: Any, mask: Any) -> Any:
        side = weight.type().sizes()[2]
        made = g.op("DeformConv", x, weight, offset, bias, mask, pads_i=[side // 2] * 4, kernel_shape_i=[side, side])
        return made.setType(
            x.type().with_sizes([*x.type().sizes()[:1], weight.type().sizes()[0], *x.type().sizes()[2:]])
        )


class Deformable(nn.Module):
    """A modulated deformable convolution: offsets and mask come from convolutions of the input."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(channels, 2 * side * side, side, padding=side // 2)
        self.modulator = nn.Conv2d(channels, side * side, side, padding=side // 2)
        self.weight = nn.Parameter(torch.randn(channels, channels, side, side) / (side * channels**0.5))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        mask = 2 * torch.sigmoid(self.modulator(x))
        return torch.relu(self.norm(DeformConv.apply(x, self.weight, self.offset(x), self.bias, mask)))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of (B, L, C) with `HEADS` heads."""
    b, length, channels = q.shape
    q, k, v = (t.reshape(b, -1, HEADS, channels // HEADS).transpose(1, 2) for t in (q, k, v))
    weights = torch.softmax(q @ k.transpose(-2, -1) * (channels // HEADS) ** -0.5, dim=-1)
    return (weights @ v).transpose(1, 2).reshape(b, length, channels)


class SwinBlock(nn.Module):
    """Attention within windows; in shifted blocks the map is rolled by half a window before and after."""

    def __init__(self, channels: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.window, self.shift = window, window // 2 if shifted else 0
        self.norm, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.project = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C)
        b, height, width, channels = x.shape
        w = self.window
        moved = torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2)) if self.shift else self.norm(x)
        tiles = moved.reshape(b, height // w, w, width // w, w, channels).permute(0, 1, 3, 2, 4, 5)
        made = self.project(attend(*self.qkv(tiles.reshape(-1, w * w, channels)).chunk(3, dim=-1)))
        made = made.reshape(b, height // w, width // w, w, w, channels).permute(0, 1, 3, 2, 4, 5)
        made = made.reshape(b, height, width, channels)
        x = x + (torch.roll(made, (self.shift, self.shift), (1, 2)) if self.shift else made)
        return x + self.mlp(self.norm2(x))


class PvtBlock(nn.Module):
    """Attention of every place to a pooled map, and an MLP with a depthwise convolution inside."""

    def __init__(self, channels: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.q, self.kv = nn.Linear(channels, channels), nn.Linear(channels, 2 * channels)
        self.project, self.pool = nn.Linear(channels, channels), nn.Conv2d(channels, channels, window, window)
        self.wide, self.narrow = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        b, height, width, channels = x.shape
        normal = self.norm(x)
        pooled = self.pool(normal.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        made = attend(self.q(normal.reshape(b, -1, channels)), *self.kv(pooled).chunk(2, dim=-1))
        x = x + self.project(made).reshape(b, height, width, channels)
        inner = self.depthwise(self.wide(self.norm2(x)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.narrow(functional.gelu(inner))


class Modern(nn.Module):
    """Patches of 4 x 4, two stages of the backbone, a deformable ASPP at 1/8, and a head at 1/4."""

    def __init__(self, block: type[nn.Module], width: int = 16, window: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.stage1 = nn.Sequential(*(block(width, window, shifted) for shifted in (False, True)))
        self.merge = nn.Linear(4 * width, 2 * width)
        self.stage2 = nn.Sequential(*(block(2 * width, window, shifted) for shifted in (False, True)))
        self.aspp = nn.ModuleList(Deformable(2 * width, side) for side in (1, 3, 7))
        self.pooled = nn.Conv2d(2 * width, 2 * width, 1)
        self.join = nn.Conv2d(8 * width, 2 * width, 1)
        self.image = nn.Conv2d(3, width, 4, 4)  # the image itself beside the features, as BiRefNet's references
        self.head = nn.Conv2d(4 * width, 1, 1)

    def features(self, x: Tensor) -> Tensor:
        first = self.stage1(self.patches(x).permute(0, 2, 3, 1))
        parts = [first[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        second = self.stage2(self.merge(torch.cat(parts, dim=-1))).permute(0, 3, 1, 2)
        whole = functional.interpolate(self.pooled(second.mean((2, 3), keepdim=True)), size=second.shape[2:])
        joined = torch.relu(self.join(torch.cat([*(layer(second) for layer in self.aspp), whole], dim=1)))
        large = functional.interpolate(joined, size=first.shape[1:3], mode="bilinear", align_corners=False)
        return torch.cat([large, first.permute(0, 3, 1, 2), torch.relu(self.image(x))], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        logits = functional.interpolate(
            self.head(self.features(x)), size=x.shape[2:], mode="bilinear", align_corners=False
        )
        return torch.sigmoid(logits)


BACKBONES = {"swin": SwinBlock, "pvt": PvtBlock}


def network(backbone: str, size: int = 64) -> Modern:
    """A network for images of `size` x `size`, whose last layer is fitted to drawn pictures and their masks.

    As in the papers, windows grow with the size.
    """
    torch.manual_seed(0)
    made = Modern(BACKBONES[backbone], window=max(4, size // 128))
    contract = Contract(network=backbone, height=size, width=size, mean=MEAN, std=STD)
    samples = list(open_dataset(f"synthetic:train:12:{max(64, size // 4)}"))
    batches = [torch.from_numpy(preprocess(sample.image(), contract)[None]) for sample in samples]
    rows, targets = [], []
    with torch.no_grad():
        made.train()
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean over all pictures
        for batch in batches:
            made(batch)
        made.eval()
        for sample, batch in zip(samples, batches, strict=True):
            mask = torch.from_numpy(sample.mask().astype(np.float32) / 255)[None, None]
            truth = functional.interpolate(mask, size=(size // 4, size // 4), mode="area").reshape(-1, 1)
            features = made.features(batch).permute(0, 2, 3, 1).reshape(-1, made.head.in_channels)
            step = max(1, len(features) // 4096)
            rows.append(torch.cat([features, torch.ones(len(features), 1)], dim=1)[::step].double())
            targets.append(8 * truth[::step].double() - 4)
        known, target = torch.cat(rows), torch.cat(targets)
        damping = 1e-2 * len(known) * torch.eye(known.shape[1], dtype=torch.float64)
        solution = torch.linalg.solve(known.T @ known + damping, known.T @ target).float()
        made.head.weight.copy_(solution[:-1].reshape(1, -1, 1, 1))
        made.head.bias.copy_(solution[-1])
    return made


def export(made: Modern, path: Path, size: int) -> Path:
    """The file as its makers would export it, with DeformConv inside."""
    torch.onnx.export(
        made, (torch.zeros(1, 3, size, size),), str(path), opset_version=20, dynamo=False,
        input_names=["image"], output_names=["saliency"],
    )  # fmt: skip
    return path
