"""A data set is a named sequence of samples; a sample is an image and, where there is one, its mask."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from sodeploy import artifacts
from sodeploy.calib_data.images import read_image
from sodeploy.calib_data.mask_reading import read_mask
from sodeploy.errors import UserError


class Sample(Protocol):
    """One image with its mask, read or drawn anew on each call."""

    @property
    def name(self) -> str:
        """The name, unique in the data set, without a file's suffix."""

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""

    def mask(self) -> np.ndarray:
        """(H, W) uint8, 255 where the salient object is."""

    def digest(self) -> str:
        """Hex sha256 of the image's content: equal for the same image under another name."""


@dataclass(frozen=True)
class Dataset:
    """Samples in a fixed order, under the name that tables and file names give them."""

    name: str
    samples: Sequence[Sample] = field(repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def first(self, count: int | None) -> "Dataset":
        """The data set of the first `count` samples, which are not read here; all of them with None."""
        return Dataset(self.name, [self.samples[index] for index in range(len(self))[:count]])

    def __str__(self) -> str:
        return f"{self.name} ({len(self)} images)"


@dataclass
class FileSample:
    """A sample that lies on disk."""

    name: str
    image_path: Path
    mask_path: Path | None = None
    _digest: str = field(default="", init=False, repr=False, compare=False)
    _size: tuple[int, ...] = field(default=(), init=False, repr=False, compare=False)

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB.

        Raises:
            UserError: the file is missing, broken, or no image.
        """
        image = read_image(self.image_path)
        self._size = image.shape[:2]
        return image

    def mask(self) -> np.ndarray:
        """(H, W) uint8, as large as the image.

        Raises:
            UserError: there is no mask, it cannot be read, or its size is not the image's.
        """
        if self.mask_path is None:
            raise UserError(f"{self.image_path} has no mask; give a data set that has one for every image")
        mask = read_mask(self.mask_path)
        if (self._size or self.image().shape[:2]) != mask.shape:
            (height, width), (mask_height, mask_width) = self._size, mask.shape
            turned = ": height and width are swapped" if (mask_height, mask_width) == (width, height) else ""
            raise UserError(
                f"{self.mask_path} is {mask_width}x{mask_height} but its image {self.image_path} is {width}x{height} "
                f"as shown (EXIF orientation applied){turned}; mend or remove the pair"
            )
        return mask

    def digest(self) -> str:
        """Hex sha256 of the image file's bytes."""
        if not self._digest:
            try:
                self._digest = artifacts.sha256(self.image_path)
            except OSError as error:
                raise UserError(
                    f"{self.image_path}: {error.strerror}; mend it or remove it from the data set"
                ) from None
        return self._digest


def overlap(a: Dataset, b: Dataset) -> list[str]:
    """Names of the samples of `a` whose image content also stands in `b`, in the order of `a`."""
    theirs = {sample.digest() for sample in b}
    return [sample.name for sample in a if sample.digest() in theirs]


def array_digest(image: np.ndarray) -> str:
    """Hex sha256 of an image that no file holds: of its shape and pixels."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
