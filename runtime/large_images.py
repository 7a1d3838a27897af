"""Images that are larger than a network's input: their patches merged, or two scales of them blended.

Any network can be used. Where it gives its own pyramid of logits (InSPyReNet in PyTorch), that one is used, else the
Laplacian pyramid of its map. `sodeploy.runtime.pyramid` merges and blends.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from sodeploy import terminal
from sodeploy.errors import UserError
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.processing import postprocess, preprocess, probability
from sodeploy.runtime.pyramid import MOST_DETAILS, Levels, blend, levels_of, merge_patches
from sodeploy.stages import command

LARGEST_SIDE = 1280  # of the shorter side of the large scale, as InSPyReNet's published runs have it
_MULTIPLE = 32  # of the sides of a large scale that is one input: every network here takes it
_LEAST = 1e-7  # of a probability whose logit is taken: an output may be 0 or 1 exactly

Network = Callable[[np.ndarray], np.ndarray]


@runtime_checkable
class HasPyramids(Protocol):
    """A session whose network is a pyramid itself."""

    def pyramids(self, batch: np.ndarray) -> list[Levels]:
        """(N, 3, h, w) float32 -> the pyramid of logits of each."""


@dataclass(frozen=True)
class LargeImages:
    """How an image that is larger than the input is seen.

    Attributes:
        patches: cut into overlapping patches of the input's size, whose pyramids are merged.
        two_scales: the details of the large scale are added to the map of the whole image at the input's size.
        largest_side: the large scale's shorter side in pixels, at most.
    """

    patches: bool = False
    two_scales: bool = False
    largest_side: int = LARGEST_SIDE

    def __bool__(self) -> bool:
        return self.patches or self.two_scales


def predict_large(
    image: np.ndarray,
    contract: Contract,
    network: Network,
    way: LargeImages,
    pyramids: Callable[[np.ndarray], list[Levels]] | None = None,
) -> np.ndarray:
    """Turn an image into its saliency map by patches, by two scales, or by both.

    Args:
        image: (H, W, 3) uint8 RGB.
        network: (1, 3, h, w) float32 -> (1, 1, h, w), for example `Session.infer`.
        way: at least one of its two ways.
        pyramids: (N, 3, h, w) float32 -> the network's own pyramid of logits for each; by default the Laplacian pyramid
            of its map.

    Returns:
        (H, W) uint8 saliency map.

    Raises:
        UserError: the network takes one size only, and two scales are asked for without patches; or a value is NaN.
    """
    size = image.shape[0], image.shape[1]
    see = pyramids or (lambda batch: _pyramids(network(batch), contract))
    if way.patches:
        levels = _of_patches(image, contract, see, way.largest_side)
    else:
        require_fit(contract, way)
        levels = see(preprocess(image, contract, _one_input(size, contract, way.largest_side))[None])[0]
    if way.two_scales:
        levels = blend(see(preprocess(image, contract)[None])[0], levels)
    return postprocess(levels.saliency[0], contract.model_copy(update={"output": "logit"}), size)


def require_fit(contract: Contract, way: LargeImages) -> None:
    """Refuse two scales without patches of a network that takes one size only.

    Raises:
        UserError: that is so.
    """
    if way.two_scales and not way.patches and not contract.dynamic_size:
        raise UserError(
            f"{contract.network} takes {contract.height}x{contract.width} only, which is the small one of two scales; "
            f"add --patches for the large one, or export the model with --dynamic-size: {command('to_onnx')}"
        )


def patch_size(size: tuple[int, int], contract: Contract, largest_side: int = LARGEST_SIDE) -> tuple[int, int]:
    """(height, width) that an image is resized to before it is cut: patches that overlap by half, without a rest."""
    height, width = _bounded(size, largest_side)
    return _whole(height, contract.height), _whole(width, contract.width)


def cut_patches(tensor: np.ndarray, patch: tuple[int, int]) -> Iterator[np.ndarray]:
    """The patches of (3, H, W), each (3, h, w), row by row; neighbors overlap by half."""
    for top in range(0, tensor.shape[1] - patch[0] + 1, patch[0] // 2):
        for left in range(0, tensor.shape[2] - patch[1] + 1, patch[1] // 2):
            yield np.ascontiguousarray(tensor[:, top : top + patch[0], left : left + patch[1]])


def to_logits(output: np.ndarray, contract: Contract) -> np.ndarray:
    """The logits in one output (h, w) of a network: float32, finite.

    Raises:
        UserError: a value is NaN, or a probability is infinite.
    """
    kept = np.clip(probability(output, contract), _LEAST, 1 - _LEAST)
    logits: np.ndarray = np.log(kept) - np.log1p(-kept)
    return logits


def _of_patches(
    image: np.ndarray, contract: Contract, see: Callable[[np.ndarray], list[Levels]], largest_side: int
) -> Levels:
    size = patch_size((image.shape[0], image.shape[1]), contract, largest_side)
    patch, stride = (contract.height, contract.width), (contract.height // 2, contract.width // 2)
    tensor = preprocess(image, contract, size)
    columns = (size[1] - patch[1]) // stride[1] + 1
    rows = (size[0] - patch[0]) // stride[0] + 1
    parts = terminal.progress(cut_patches(tensor, patch), "patches", rows * columns)
    return merge_patches((see(part[None])[0] for part in parts), columns, size, stride)


def _pyramids(outputs: np.ndarray, contract: Contract) -> list[Levels]:
    details = _details(outputs.shape[2], outputs.shape[3])
    return [levels_of(to_logits(output[0], contract), details) for output in outputs]


def _details(height: int, width: int) -> int:
    """Levels of details for maps of that size, whose halves are the strides of patches."""
    details = 0
    while details < MOST_DETAILS and height % (4 << details) == 0 and width % (4 << details) == 0:
        details += 1
    return details


def _bounded(size: tuple[int, int], largest_side: int) -> tuple[float, float]:
    factor = min(1.0, largest_side / min(size))
    return size[0] * factor, size[1] * factor


def _whole(side: float, patch: int) -> int:
    stride = patch // 2
    return patch + stride * max(0, round((side - patch) / stride))


def _one_input(size: tuple[int, int], contract: Contract, largest_side: int) -> tuple[int, int]:
    height, width = (max(_MULTIPLE, round(side / _MULTIPLE) * _MULTIPLE) for side in _bounded(size, largest_side))
    return max(height, contract.height), max(width, contract.width)
