"""What happens to an image and its mask before the network sees them in training, step by step, as a recipe lists it.

Every step takes and returns an image (H, W, 3) uint8 RGB and a mask (H, W) uint8, and draws its chances from the
generator it is given, so that a sample depends on nothing but the seed, the epoch and its index.
"""

from typing import Annotated, Literal

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sodeploy.errors import UserError

Pair = tuple[np.ndarray, np.ndarray]

_INTERPOLATION = {"linear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST}


class _Step(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def __call__(self, image: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> Pair:
        raise NotImplementedError


class Resize(_Step):
    """To `size` x `size` pixels, aspect ratio not kept; the image bilinearly without antialiasing."""

    name: Literal["resize"]
    size: int = Field(ge=1)
    mask: Literal["linear", "nearest"] = Field(default="linear", description="linear softens the mask's edges")

    def __call__(self, image: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> Pair:
        size = (self.size, self.size)
        return (
            cv2.resize(image, size, interpolation=cv2.INTER_LINEAR),
            cv2.resize(mask, size, interpolation=_INTERPOLATION[self.mask]),
        )


class RandomCrop(_Step):
    """A square of `size` pixels, anywhere in the image."""

    name: Literal["random_crop"]
    size: int = Field(ge=1)

    def __call__(self, image: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> Pair:
        height, width = mask.shape
        if min(height, width) < self.size:
            raise UserError(
                f"a crop of {self.size} does not fit an image of {height}x{width}; resize it to more before"
            )
        top, left = random.integers(height - self.size + 1), random.integers(width - self.size + 1)
        window = np.s_[top : top + self.size, left : left + self.size]
        return image[window], mask[window]


class Flip(_Step):
    """Mirrored with the probability `p`: left and right exchanged (horizontal), or top and bottom (vertical)."""

    name: Literal["flip"]
    axis: Literal["horizontal", "vertical"] = "horizontal"
    p: float = Field(default=0.5, ge=0, le=1)

    def __call__(self, image: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> Pair:
        if random.random() >= self.p:
            return image, mask
        axis = 1 if self.axis == "horizontal" else 0
        return np.flip(image, axis), np.flip(mask, axis)


Augmentation = Annotated[Resize | RandomCrop | Flip, Field(discriminator="name")]
