"""InSPyReNet on images larger than it was trained with: two scales blended, or overlapping patches merged.

Both work on pyramids of logits (`Levels`): what is coarse comes from one pass, and only details from another.
"""

import math

import torch
import torch.nn.functional as F

from sodeploy.training.models.axial import resize
from sodeploy.training.models.inspyrenet import InSPyReNet, Levels
from sodeploy.training.models.laplacian import GaussianPyramid

_TRANSITIONS = (17, 9, 5)  # diameter in pixels of the band that gets details, at each level from fine to coarse


def predict_blended(network: InSPyReNet, small: torch.Tensor, large: torch.Tensor) -> torch.Tensor:
    """The saliency map `(N, 1, H, W)` of `large`, with the structure of `small`, the same image at trained size."""
    blended = blend(network.pyramid, network.levels(small), network.levels(large))
    return torch.sigmoid(blended.saliency[0])


def blend(pyramid: GaussianPyramid, low: Levels, high: Levels) -> Levels:
    """The low resolution's finest map in the place of the high's coarsest; details of the high where objects end.

    T. Kim et al., ACCV 2022, section 3.4.
    """
    coarsest = high.saliency[-1]
    saliency = [resize(low.saliency[0], (coarsest.shape[2], coarsest.shape[3]))]
    details: list[torch.Tensor] = []
    for detail, diameter in zip(reversed(high.details), reversed(_TRANSITIONS), strict=True):
        band = resize(transition(saliency[0], diameter), (detail.shape[2], detail.shape[3]))
        details.insert(0, band * detail)
        saliency.insert(0, pyramid.reconstruct(saliency[0], details[0]))
    return Levels(saliency, details)


def transition(logits: torch.Tensor, diameter: int) -> torch.Tensor:
    """1 where the saliency changes by more than a half within an ellipse of that diameter, else 0."""
    saliency = torch.sigmoid(logits)
    return (dilate(saliency, diameter) + dilate(-saliency, diameter) > 0.5).to(logits.dtype)


def dilate(x: torch.Tensor, diameter: int) -> torch.Tensor:
    """Each pixel of `(N, 1, H, W)` the maximum over an ellipse as OpenCV's MORPH_ELLIPSE; outside nothing counts."""
    radius, height = diameter // 2, x.shape[2]
    padded = F.pad(x, (0, 0, radius, radius), value=-math.inf)
    result = x
    for row in range(-radius, radius + 1):
        half = round(radius * math.sqrt(1 - row**2 / radius**2))
        shifted = padded[:, :, radius + row : radius + row + height]
        result = torch.maximum(result, F.max_pool2d(shifted, (1, 2 * half + 1), stride=1, padding=(0, half)))
    return result


def predict_patched(network: InSPyReNet, image: torch.Tensor, patch: int = 384, stride: int = 192) -> torch.Tensor:
    """The saliency map `(1, 1, H, W)` of one image `(1, 3, H, W)`, from patches as large as training images.

    H and W are patch plus a multiple of stride; both are multiples of 8.
    """
    columns = (image.shape[3] - patch) // stride + 1
    merged = merge_patches(network.pyramid, network.levels(cut_patches(image, patch, stride)), columns, stride)
    return torch.sigmoid(merged.saliency[0])


def cut_patches(image: torch.Tensor, patch: int, stride: int) -> torch.Tensor:
    """`(1, C, H, W)` as `(patches, C, patch, patch)`, row by row."""
    windows = image[0].unfold(1, patch, stride).unfold(2, patch, stride)  # (C, rows, columns, patch, patch)
    return windows.flatten(1, 2).transpose(0, 1)


def merge_patches(pyramid: GaussianPyramid, patches: Levels, columns: int, stride: int) -> Levels:
    """The pyramid of the whole image, from the pyramids of its patches, which are the batch.

    The coarsest map is the maximum over the patches. At each finer level a pixel's detail is that of the patch which
    had the maximum one level coarser, in that level's own maps of the patches.
    """
    factors = [2**level for level in range(len(patches.saliency))]
    maps = [_on_canvas(x, columns, stride // k) for x, k in zip(patches.saliency, factors, strict=True)]
    parts = [_on_canvas(x, columns, stride // k) for x, k in zip(patches.details, factors, strict=False)]
    saliency = [maps[-1].amax(0, keepdim=True)]
    details: list[torch.Tensor] = []
    for level in reversed(range(len(parts))):
        winner = maps[level + 1].argmax(0, keepdim=True)
        winner = winner.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        details.insert(0, parts[level].gather(0, winner))
        saliency.insert(0, pyramid.reconstruct(saliency[0], details[0]))
    return Levels(saliency, details)


def _on_canvas(patches: torch.Tensor, columns: int, stride: int) -> torch.Tensor:
    """`(patches, 1, h, w)` each at its place in the whole, `(patches, 1, H, W)`, with -inf around it."""
    count, _, height, width = patches.shape
    full = ((count // columns - 1) * stride + height, (columns - 1) * stride + width)
    canvas = patches.new_full((count, 1, *full), -math.inf)
    for index, patch in enumerate(patches):
        top, left = index // columns * stride, index % columns * stride
        canvas[index, :, top : top + height, left : left + width] = patch
    return canvas
