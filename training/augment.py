"""The augmentations of training samples. A recipe lists them in their order.

Every step takes and returns an image (H, W, 3) uint8 RGB and a mask (H, W) uint8, or several masks (H, W, C). It draws
random numbers from the given generator only, so that a sample depends on the seed, the epoch and its index.
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
    """Resize to `size` x `size` pixels without keeping the aspect ratio; the image bilinearly, without antialiasing."""

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
    """Crop a square of `size` pixels at a random place."""

    name: Literal["random_crop"]
    size: int = Field(ge=1)

    def __call__(self, image: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> Pair:
        height, width = image.shape[:2]
        if min(height, width) < self.size:
            raise UserError(
                f"a crop of {self.size} does not fit an image of {height}x{width}; resize it to more before"
            )
        top, left = random.integers(height - self.size + 1), random.integers(width - self.size + 1)
        window = np.s_[top : top + self.size, left : left + self.size]
        return image[window], mask[window]


class Flip(_Step):
    """Mirror with probability `p`: left and right (horizontal), top and bottom (vertical), or one of them (either)."""

    name: Literal["flip"]
    axis: Literal["horizontal", "vertical", "either"] = "horizontal"
    p: float = Field(default=0.5, ge=0, le=1)

    def __call__(self, image: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> Pair:
        if random.random() >= self.p:
            return image, mask
        axis = {"horizontal": 1, "vertical": 0}[self.axis] if self.axis != "either" else random.integers(2)
        return np.flip(image, axis), np.flip(mask, axis)


class CropBorder(_Step):
    """Cut 0 to `most` pixels from each side, independently."""

    name: Literal["crop_border"]
    most: int = Field(ge=1)

    def __call__(self, image: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> Pair:
        height, width = image.shape[:2]
        if min(height, width) <= 2 * self.most:
            raise UserError(f"an image of {height}x{width} has no border of {self.most} pixels to crop; leave it out")
        top, bottom, left, right = random.integers(self.most + 1, size=4)
        window = np.s_[top : height - bottom, left : width - right]
        return image[window], mask[window]


class CropShare(_Step):
    """Cut less than the share `most` of height and width, from one side or both (J. Wei et al., F3Net, AAAI 2020)."""

    name: Literal["crop_share"]
    most: float = Field(gt=0, lt=1)

    def __call__(self, image: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> Pair:
        window = tuple(self._range(side, random) for side in image.shape[:2])
        return image[window], mask[window]

    def _range(self, side: int, random: np.random.Generator) -> slice:
        lost = int(random.integers(max(1, int(side * self.most))))
        start = int(random.integers(lost)) if lost else 0
        return slice(start, start + side - lost)


class Rotate(_Step):
    """Rotate by up to `degrees` to either side, with probability `p`. The corners become black, the size stays."""

    name: Literal["rotate"]
    degrees: float = Field(gt=0, le=180)
    p: float = Field(default=1, ge=0, le=1)
    image: Literal["linear", "nearest"] = "linear"

    def __call__(self, image: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> Pair:
        if random.random() >= self.p:
            return image, mask
        height, width = image.shape[:2]
        angle = random.uniform(-self.degrees, self.degrees)
        turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1)
        return (
            cv2.warpAffine(np.ascontiguousarray(image), turn, (width, height), flags=_INTERPOLATION[self.image]),
            cv2.warpAffine(np.ascontiguousarray(mask), turn, (width, height), flags=cv2.INTER_NEAREST),
        )


class Scale(_Step):
    """Scale by `low` to `high` about the center, with probability `p`. The size stays, the border becomes black."""

    name: Literal["scale"]
    low: float = Field(gt=0)
    high: float = Field(gt=0)
    p: float = Field(default=1, ge=0, le=1)

    def __call__(self, image: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> Pair:
        if random.random() >= self.p:
            return image, mask
        height, width = image.shape[:2]
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 0, random.uniform(self.low, self.high))
        return (
            cv2.warpAffine(np.ascontiguousarray(image), matrix, (width, height), flags=cv2.INTER_CUBIC),
            cv2.warpAffine(np.ascontiguousarray(mask), matrix, (width, height), flags=cv2.INTER_CUBIC),
        )


class Enhance(_Step):
    """Change contrast, brightness and sharpness in any order, each with probability `p` and a factor `low` to `high`.

    The factors are defined as in Pillow's ImageEnhance: 1 changes nothing; 0 gives the mean gray, black, or a smoothed
    image.
    """

    name: Literal["enhance"]
    low: float = Field(ge=0)
    high: float = Field(ge=0)
    p: float = Field(default=0.5, ge=0, le=1)

    def __call__(self, image: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> Pair:
        for degrade in random.permutation(np.array([_mean_grey, np.zeros_like, _smoothed], object)):
            if random.random() < self.p:
                factor = random.uniform(self.low, self.high)
                image = cv2.addWeighted(image, factor, degrade(image), 1 - factor, 0)
        return image, mask


class HidePatches(_Step):
    """Divide the image into square cells of one of the `sizes` and hide each with probability `p`; size 0 hides none.

    K. K. Singh and Y. J. Lee, "Hide-and-Seek", ICCV 2017.
    """

    name: Literal["hide_patches"]
    sizes: tuple[int, ...] = Field(min_length=1)
    p: float = Field(ge=0, le=1)
    colour: tuple[int, int, int] = Field(description="RGB of a hidden cell; the data set's mean")

    def __call__(self, image: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> Pair:
        size = int(random.choice(self.sizes))
        if size == 0:
            return image, mask
        height, width = image.shape[:2]
        hidden = random.random((-(-height // size), -(-width // size))) < self.p
        pixels = np.kron(hidden, np.ones((size, size), bool))[:height, :width]
        return np.where(pixels[..., None], np.array(self.colour, np.uint8), image), mask


def _mean_grey(image: np.ndarray) -> np.ndarray:
    return np.full_like(image, round(float(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean())))


def _smoothed(image: np.ndarray) -> np.ndarray:
    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()))


Augmentation = Annotated[
    Resize | RandomCrop | Flip | CropBorder | CropShare | Rotate | Scale | Enhance | HidePatches,
    Field(discriminator="name"),
]
