"""The masks of an evaluation, and the file of the saliency map that belongs to each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from sodeploy.calib_data import Dataset, open_datasets
from sodeploy.calib_data.dataset import FileSample
from sodeploy.calib_data.images import SUFFIXES
from sodeploy.calib_data.layouts import find_layout, without_ending
from sodeploy.calib_data.mask_reading import read_mask
from sodeploy.calib_data.sources import Source, located
from sodeploy.errors import UserError


class Truth(Protocol):
    """A mask under the name that its saliency maps have too."""

    @property
    def name(self) -> str: ...

    def mask(self) -> np.ndarray:
        """(H, W) uint8."""


@dataclass(frozen=True)
class MaskFile:
    """A mask whose image nobody needs."""

    name: str
    mask_path: Path

    def mask(self) -> np.ndarray:
        """(H, W) uint8."""
        return read_mask(self.mask_path)


def open_truths(source: Source, root: Path | None) -> tuple[str, list[Truth]]:
    """A data set's name and its masks."""
    place = None if isinstance(source, Dataset) else located(source, root)
    if place and place.is_dir() and not (layout := find_layout(place)).masks and layout.images:
        photograph = next((path for path in layout.images.values() if path.suffix.lower() in (".jpg", ".jpeg")), None)
        if photograph:
            raise UserError(f"{place} has no masks, and {photograph.name} does not look like one; give the data set")
        return place.resolve().name, [MaskFile(stem, path) for stem, path in layout.images.items()]
    (dataset,) = open_datasets([place or source], root=root)
    masks: list[Truth] = [
        MaskFile(sample.name, sample.mask_path) if isinstance(sample, FileSample) and sample.mask_path else sample
        for sample in dataset
    ]
    return dataset.name, masks


def maps_of(folder: Path, dataset: str, masks: Sequence[Truth]) -> list[Path]:
    """The map of each mask."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one with a saliency map for every mask")
    place = folder / dataset if (folder / dataset).is_dir() else folder
    files: dict[str, Path] = {}
    for path in sorted(place.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            other = files.setdefault(path.relative_to(place).with_suffix("").as_posix(), path)
            if other != path:
                raise UserError(f"{other} and {path.name} are maps of the same name; remove one")
    found = {mask.name: its for mask in masks if (its := _map_of(mask.name, files))}
    missing = [mask.name for mask in masks if mask.name not in found]
    if missing:
        raise UserError(
            f"{place} lacks {len(missing)} of {len(masks)} maps of {dataset}, the first {missing[0]}; "
            "make them, or give the list of the images that count as --data LIST.txt"
        )
    if len(set(found.values())) < len(masks):
        first = next(name for name, its in found.items() if list(found.values()).count(its) > 1)
        raise UserError(
            f"{place} has one map for several masks of {dataset}, the first {first}; name maps as the masks"
        )
    return [found[mask.name] for mask in masks]


def _map_of(name: str, files: Mapping[str, Path]) -> Path | None:
    """The map of a mask: of its whole name, without its folders (a list has them), or without its ending (x_mask)."""
    plain = Path(name).name
    return next(
        (files[one] for one in (name, plain, without_ending(name), without_ending(plain)) if one in files), None
    )


def listed_pairs(path: str | Path, root: Path | None) -> tuple[str, list[tuple[Truth, Path]]]:
    """The name of a list whose lines are a map and its mask, and the pairs.

    Raises:
        UserError: as `calib_data.open_dataset`.
    """
    (dataset,) = open_datasets([path], root=root)
    pairs: list[tuple[Truth, Path]] = []
    for sample in dataset:
        if not isinstance(sample, FileSample) or sample.mask_path is None:
            raise UserError(f"{path} is no list of maps and masks; write a map and its mask on each line")
        pairs.append((MaskFile(sample.name, sample.mask_path), sample.image_path))
    return dataset.name, pairs
