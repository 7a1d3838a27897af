"""Checks of a set: masks that say nothing or are inverted, unusual ways of storing them, images that are masks."""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from sodeploy import terminal
from sodeploy.calib_data.dataset import Dataset
from sodeploy.calib_data.mask_reading import FOREGROUND, understand_mask
from sodeploy.calib_data.sources import Source, open_dataset
from sodeploy.errors import UserError
from sodeploy.workers import usable_cores

_INVERTED = 0.75  # of the border: an object that fills more of it is rare, a background seldom fills less
_LOOKED_AT = 8  # images of a set, evenly chosen
_EXTREME = 16  # grey levels from black and from white that a mask's pixels have, also after JPEG


class _Masked(Protocol):
    @property
    def name(self) -> str: ...

    def mask(self) -> np.ndarray: ...


def check_masks(samples: Iterable[_Masked], data: str) -> None:
    """Refuse a set whose masks say nothing, and tell the user about ways of storing them that are not the usual one.

    All mask files are read, because a few among many may be stored in another way. Each way is told once, with the
    number of its masks. Of masks without a file, such as drawn ones, the first ones are read, up to one that has both
    object and background.

    Args:
        samples: have a name, a mask and, where it is a file, its `mask_path`.
        data: name of the set.

    Raises:
        UserError: a mask cannot be read; or every mask is empty or full.
    """
    known = list(samples)
    files = [path for sample in known if (path := getattr(sample, "mask_path", None))]
    shares = _shares_of_files(files, data) if files else _shares_up_to_first(known)
    if shares and all(share in (0, 1) for share in shares):
        kind = (
            "no object" if not any(shares) else "no background" if all(shares) else "either no object or no background"
        )
        last = files[-1] if files else known[-1].name
        raise UserError(
            f"{data}: all {len(shares)} masks have {kind} (above {FOREGROUND} is object), the last is {last}; "
            "check that these are the masks, and how they are stored"
        )


def open_photographs(
    source: Source | Sequence[Source], root: str | Path | None = None, limit: int | None = None
) -> Dataset:
    """Open images to calibrate on; a folder of masks is refused. A few of the images are read.

    Args:
        source: as `open_dataset` takes it; masks beside the images are left alone.
        root: as of `open_dataset`.
        limit: take only the first N images; all of them by default.

    Raises:
        UserError: as `open_dataset`; nearly all pixels of each image read are black or white, as a mask's are; or an
            image cannot be read.
    """
    dataset = open_dataset(source, masks=False, root=root).first(limit)
    chosen = dataset.samples[:: max(1, len(dataset) // _LOOKED_AT)][:_LOOKED_AT]
    # An image of one color may be either; a set of nothing else says nothing.
    if not all(_is_black_or_white(sample.image()) for sample in chosen):
        return dataset
    if any(np.ptp(sample.image()) > 255 - 2 * _EXTREME for sample in chosen):
        raise UserError(
            f"{dataset.name}: its images are black and white alone, as masks are (e.g. {chosen[0].name}); give the "
            "folder of the photographs"
        )
    return dataset


def _is_black_or_white(image: np.ndarray) -> bool:
    levels = image.astype(np.int16)
    grey = np.ptp(levels, axis=2).max() <= 2
    return bool(grey and np.mean((levels < _EXTREME) | (levels > 255 - _EXTREME)) > 0.98)


class _Found(NamedTuple):
    """The object's share of a mask and of its border, from 0 to 1, and the way of storing it."""

    share: float
    border: float
    rule: str


def _shares_of_files(files: Sequence[Path], data: str) -> list[float]:
    """The object's share of each mask; unusual ways of storing them, and inverted ones, are told."""
    with ThreadPoolExecutor(usable_cores()) as threads:  # OpenCV decodes while other threads run
        read = threads.map(_examine, files)
        try:
            found = list(terminal.progress(read, f"reading the masks of {data}", total=len(files)))
        finally:
            threads.shutdown(cancel_futures=True)
    for rule, count in Counter(one.rule for one in found if one.rule).items():
        first = next(file for file, one in zip(files, found, strict=True) if one.rule == rule)
        which = f"masks of {data}" if count == len(files) else f"{count} of {len(files)} masks of {data}"
        terminal.note(f"{which}: {rule} (read from {first})")
    white = [file for file, one in zip(files, found, strict=True) if one.border > _INVERTED and one.share < 1]
    if len(white) > len(files) / 2:
        terminal.warn(
            f"{data}: in {len(white)} of {len(files)} masks the border of the picture is object, as in {white[0]}; are "
            "they inverted? The object must be white and the background black: invert them if so"
        )
    return [one.share for one in found]


def _examine(file: Path) -> _Found:
    mask, rule = understand_mask(file)
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return _Found(_share(mask), _share(border), rule)


def _shares_up_to_first(samples: Iterable[_Masked]) -> list[float]:
    shares = []
    for sample in samples:
        shares.append(_share(sample.mask()))
        if 0 < shares[-1] < 1:
            break
    return shares


def _share(mask: np.ndarray) -> float:
    return float(np.count_nonzero(mask > FOREGROUND) / mask.size)
