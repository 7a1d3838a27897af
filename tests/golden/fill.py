"""The recipe behind every golden value: parameters and images that anybody can make again.

A parameter depends on its name in the state dict and on its shape, an image on its size and its seed. The published
networks and ours are filled by the same recipe, so that their outputs can be compared without trained weights.
"""

import zlib

import numpy as np
import torch


def fill_state_dict(module: torch.nn.Module) -> torch.nn.Module:
    """Give every floating-point tensor of a module its values, in place; integers (counters, indices) stay as built.

    Batch norms get a running variance of about 1, and weights of two or more dimensions the scale of He et al. (2015).
    """
    state = module.state_dict()
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        random = np.random.RandomState(zlib.crc32(name.encode()))
        shape = tuple(tensor.shape)
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "running_var":
            values = random.uniform(0.8, 1.2, shape)
        elif leaf == "running_mean":
            values = 0.1 * random.standard_normal(shape)
        elif tensor.ndim >= 2:
            values = random.standard_normal(shape) * np.sqrt(2.0 / int(np.prod(shape[1:])))
        elif leaf == "weight":  # the scale of a norm layer
            values = random.uniform(0.8, 1.2, shape)
        else:
            values = 0.05 * random.standard_normal(shape)
        tensor.copy_(torch.from_numpy(np.asarray(values)).to(tensor.dtype))
    module.load_state_dict(state)
    return module


def golden_input(height: int, width: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """A float32 image of shape (1, channels, height, width) in [-1, 1]: one wave per channel, and noise."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = []
    for _ in range(channels):
        across, down, phase = random.uniform(1, 6), random.uniform(1, 6), random.uniform(0, 6.28)
        wave = np.sin(2 * np.pi * (across * x / width + down * y / height) + phase)
        planes.append(0.8 * wave + 0.2 * random.uniform(-1, 1, (height, width)))
    return torch.from_numpy(np.stack(planes)[None].astype(np.float32))


def golden_batch(height: int, width: int, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images and their masks of 0 and 1, as float32: the batch of every golden training step."""
    images = torch.cat([golden_input(height, width, channels, seed) for seed in (0, 1)])
    masks = torch.cat([(golden_input(height, width, 1, seed) > 0).float() for seed in (7, 8)])
    return images, masks
