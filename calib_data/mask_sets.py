"""Whether the masks of a set say something, and how its files store them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from sodeploy import terminal
from sodeploy.calib_data.mask_reading import FOREGROUND, understand_mask
from sodeploy.errors import UserError
from sodeploy.workers import usable_cores


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


def _shares_of_files(files: Sequence[Path], data: str) -> list[float]:
    """The object's share of each mask; each unusual way of storing them is told."""
    with ThreadPoolExecutor(usable_cores()) as threads:  # OpenCV decodes while other threads run
        read = threads.map(_share_and_rule, files)
        try:
            found = list(terminal.progress(read, f"reading the masks of {data}", total=len(files)))
        finally:
            threads.shutdown(cancel_futures=True)
    for rule, count in Counter(rule for _, rule in found if rule).items():
        first = next(file for file, (_, other) in zip(files, found, strict=True) if other == rule)
        which = f"masks of {data}" if count == len(files) else f"{count} of {len(files)} masks of {data}"
        terminal.note(f"{which}: {rule} (read from {first})")
    return [share for share, _ in found]


def _share_and_rule(file: Path) -> tuple[float, str]:
    mask, rule = understand_mask(file)
    return _share(mask), rule


def _shares_up_to_first(samples: Iterable[_Masked]) -> list[float]:
    shares = []
    for sample in samples:
        shares.append(_share(sample.mask()))
        if 0 < shares[-1] < 1:
            break
    return shares


def _share(mask: np.ndarray) -> float:
    return float(np.count_nonzero(mask > FOREGROUND) / mask.size)
