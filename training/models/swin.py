"""Swin Transformer as a backbone for dense prediction.

Z. Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021. Module names are
those of the authors' ImageNet weights. Tokens stand as `(N, H, W, C)`.

Batch, height and width are only ever read from the tensors, and padding and cropping are unconditional, so an exported
graph may be run at another batch and another size than it was traced with.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


class SwinSize(NamedTuple):
    """A variant: channels and heads of the first stage (they double at each), blocks per stage, side of the window."""

    channels: int
    heads: int
    depths: tuple[int, int, int, int]
    window: int


TINY = SwinSize(96, 3, (2, 2, 6, 2), 7)
BASE = SwinSize(128, 4, (2, 2, 18, 2), 12)

_DROP_PATH = 0.2  # of the last block; blocks before it skip less often, in proportion to their depth


def round_up(x: int, multiple: int) -> int:
    """The first multiple that is not below x."""
    return (x + multiple - 1) // multiple * multiple


def cut_windows(x: torch.Tensor, window: int) -> torch.Tensor:
    """`(N, H, W, C)`, whose sides are multiples of `window`, as `(N * windows, window**2, C)`, row by row."""
    _, height, width, channels = x.shape
    x = x.reshape(-1, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def join_windows(windows: torch.Tensor, window: int, height: int, width: int) -> torch.Tensor:
    """The inverse of `cut_windows`; returns `(N, height, width, C)`."""
    channels = windows.shape[-1]
    x = windows.reshape(-1, height // window, width // window, window, window, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


def shift_mask(height: int, width: int, window: int, device: torch.device) -> torch.Tensor:
    """The mask that separates tokens of a shifted window that are no neighbours, `(windows, 1, window**2, window**2)`.

    The cyclic shift brings the last rows and columns beside the first; 0 between tokens of one region, -100 elsewhere.
    """
    shift = window // 2
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    row_region = (rows >= height - window).float() + (rows >= height - shift).float()
    column_region = (columns >= width - window).float() + (columns >= width - shift).float()
    regions = 3 * row_region[:, None] + column_region[None, :]
    regions = cut_windows(regions[None, :, :, None], window)  # (windows, window**2, 1)
    return ((regions != regions.transpose(1, 2)).float() * -100.0)[:, None]


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learnt bias per relative position."""

    relative_position_index: torch.Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.channels, self.heads = channels, heads
        self.scale = (channels // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.normal_(self.relative_position_bias_table, std=0.02)
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        rows, columns = at[:, :, None] - at[:, None, :] + window - 1
        self.register_buffer("relative_position_index", rows * (2 * window - 1) + columns)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """`x` is `(N * windows, window**2, C)`, like the result; `mask` comes from `shift_mask`."""
        tokens = x.shape[1]
        shape = (-1, tokens, self.heads, self.channels // self.heads)
        query, key, value = (part.reshape(shape).transpose(1, 2) for part in self.qkv(x).split(self.channels, dim=-1))
        scores = self.scale * query @ key.transpose(2, 3)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        scores = scores + bias.reshape(tokens, tokens, self.heads).permute(2, 0, 1)
        if mask is not None:
            by_image = scores.reshape(-1, mask.shape[0], self.heads, tokens, tokens)
            scores = (by_image + mask.to(scores.dtype)).reshape(-1, self.heads, tokens, tokens)
        x = scores.softmax(-1) @ value
        return self.proj(x.transpose(1, 2).reshape(-1, tokens, self.channels))


class MLP(nn.Sequential):
    """Two linear layers with a GELU between them, four times as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * channels, channels)


class SwinBlock(nn.Module):
    """Attention inside windows, shifted by half a window if `shifted`, then an MLP; both with a shortcut."""

    def __init__(self, channels: int, heads: int, window: int, shifted: bool, drop_path: float) -> None:
        super().__init__()
        self.window = window
        self.shift = window // 2 if shifted else 0
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLP(channels)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x + self.skip_at_random(self.attend(self.norm1(x), mask))
        return x + self.skip_at_random(self.mlp(self.norm2(x)))

    def attend(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The padding to whole windows comes after the norm: its tokens are zero, and take part as keys and values."""
        _, height, width, _ = x.shape
        full_height, full_width = round_up(height, self.window), round_up(width, self.window)
        x = F.pad(x, (0, 0, 0, full_width - width, 0, full_height - height))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        windows = self.attn(cut_windows(x, self.window), mask if self.shift else None)
        x = join_windows(windows, self.window, full_height, full_width)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]

    def skip_at_random(self, x: torch.Tensor) -> torch.Tensor:
        """Stochastic depth (G. Huang et al., ECCV 2016), per image."""
        if not self.training or self.drop_path == 0:
            return x
        keep = 1 - self.drop_path
        return x * (torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(keep) / keep)


class PatchMerging(nn.Module):
    """2x2 tokens into one of twice the channels; odd sides are padded."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(4 * channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, height, width, _ = x.shape
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class SwinStage(nn.Module):
    """Blocks with and without shift in turn; returns their result, and the next stage's input."""

    def __init__(self, channels: int, heads: int, window: int, drop_paths: list[float], last: bool) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            SwinBlock(channels, heads, window, shifted=block % 2 == 1, drop_path=drop_path)
            for block, drop_path in enumerate(drop_paths)
        )
        self.downsample = None if last else PatchMerging(channels)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, height, width, _ = x.shape
        mask = shift_mask(round_up(height, self.window), round_up(width, self.window), self.window, x.device)
        for block in self.blocks:
            x = block(x, mask)
        return x, x if self.downsample is None else self.downsample(x)


class PatchEmbedding(nn.Module):
    """4x4 pixels into a token."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, 4, stride=4)
        self.norm = nn.LayerNorm(channels)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        _, _, height, width = image.shape
        image = F.pad(image, (0, round_up(width, 4) - width, 0, round_up(height, 4) - height))
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


class Swin(nn.Module):
    """Five feature maps of `(N, 3, H, W)`: the embedded patches at 1/4, then the stages at 1/4, 1/8, 1/16, 1/32."""

    def __init__(self, size: SwinSize) -> None:
        super().__init__()
        stages = [size.channels * 2**stage for stage in range(4)]
        self.widths = (size.channels, *stages)
        self.patch_embed = PatchEmbedding(size.channels)
        drop_paths = torch.linspace(0, _DROP_PATH, sum(size.depths), device="cpu").split(size.depths)
        self.layers = nn.ModuleList(
            SwinStage(width, size.heads * 2**stage, size.window, drop_paths[stage].tolist(), last=stage == 3)
            for stage, width in enumerate(stages)
        )
        self.norm0, self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for width in stages)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        x = self.patch_embed(image)
        features = [x.permute(0, 3, 1, 2)]
        for layer, norm in zip(self.layers, (self.norm0, self.norm1, self.norm2, self.norm3), strict=True):
            result, x = layer(x)
            features.append(norm(result).permute(0, 3, 1, 2))
        return features
