"""Surfaces of the synthetic set: a pattern of light and dark, coloured between two colours."""

import cv2
import numpy as np

Colours = np.ndarray  # (2, 3) float32 RGB in [0, 255]: of a pattern's darkest and brightest places


def draw_texture(rng: np.random.Generator, size: tuple[int, int], colours: Colours) -> np.ndarray:
    """A random texture in the given colours; its grain is a share of the image, so it looks alike at any size.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    patterns = (_cloud, _cloud, _stripes, _checks, _spots, _plain)
    pattern = patterns[int(rng.integers(len(patterns)))](rng, size)
    pattern += rng.uniform(0.1, 0.5) * (_noise(rng, size, int(rng.integers(20, 60))) - 0.5)
    index = np.clip(pattern * 255, 0, 255).astype(np.uint8)
    ramp = np.linspace(colours[0], colours[1], 256).clip(0, 255).astype(np.uint8)
    return cv2.applyColorMap(index, ramp[:, None])


def draw_colours(rng: np.random.Generator, spread: float, unlike: np.ndarray | None = None, by: float = 0.0) -> Colours:
    """A random colour, and another from it by about `spread` in [0, 255].

    With `unlike`, a colour of another pair, their mean lies `by` away from it, as far as [0, 255] allows.
    """
    first = rng.uniform(20, 235, 3)
    grey = first.mean()
    first = grey + (first - grey) * rng.uniform(0.2, 1.3)  # from dull to vivid
    if unlike is not None:
        away = first - unlike
        away *= np.where(np.abs(unlike + by * np.sign(away) - 127.5) > 127.5, -1, 1)  # turn back from the ends
        first = unlike + away * by / np.linalg.norm(away)
    step = rng.normal(0, 0.4 * spread, 3) + rng.normal(0, spread)
    return np.clip(np.stack([first - step / 2, first + step / 2]), 0, 255)


def _noise(rng: np.random.Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """Smooth noise in [0, 1] with `cells` grains along the longer side."""
    height, width = size
    rows, columns = (max(2, round(cells * side / max(size))) for side in size)
    return cv2.resize(rng.random((rows, columns), np.float32), (width, height), interpolation=cv2.INTER_LINEAR)


def _grid(size: tuple[int, int], angle: float) -> np.ndarray:
    """The distance of each pixel along a direction, in shares of the longer side."""
    height, width = size
    x = np.arange(width, dtype=np.float32) * np.float32(np.cos(angle) / max(size))
    y = np.arange(height, dtype=np.float32) * np.float32(np.sin(angle) / max(size))
    return x[None] + y[:, None]


def _cloud(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    cells = int(rng.integers(3, 10))
    octaves = [_noise(rng, size, cells * 2**octave) * np.float32(0.8 / 2**octave) for octave in range(3)]
    return octaves[0] + octaves[1] + octaves[2] - np.float32(0.2)


def _stripes(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    phase = _grid(size, rng.uniform(0, np.pi)) * rng.uniform(6, 30) + _noise(rng, size, 4) * rng.uniform(0, 1.5)
    wave = np.sin(phase * np.float32(2 * np.pi))
    return np.clip(wave * rng.uniform(0.5, 3), -1, 1) * 0.5 + 0.5


def _checks(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    angle, cells = rng.uniform(0, np.pi), rng.uniform(4, 16)
    a, b = (np.floor(_grid(size, direction) * cells).astype(np.int32) for direction in (angle, angle + np.pi / 2))
    return ((a + b) & 1).astype(np.float32)


def _spots(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    cells, share = int(rng.integers(10, 30)), rng.uniform(0.45, 0.7)
    return np.clip((_noise(rng, size, cells) - share) * 8 + 0.5, 0, 1)


def _plain(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return _noise(rng, size, 2) * np.float32(0.5) + np.float32(0.25)
