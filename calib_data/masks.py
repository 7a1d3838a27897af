"""What the integrity ISNet is trained with beside each mask: the mask grown, shrunk, and the band between.

    python calib_data/masks.py DUTS-TR --output DUTS-TR-margins

Writes dilated/, eroded/, envelope/ and expanded/, a PNG of each for every mask, at the mask's own size. Training makes
the same on the fly and needs no such folder; it serves other code, and eyes.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer

from sodeploy import artifacts, terminal
from sodeploy.calib_data.dataset import Dataset, Sample
from sodeploy.calib_data.sources import open_dataset
from sodeploy.errors import UserError

MARGIN = 5  # pixels, in a square neighbourhood, at the mask's own size

_NEIGHBOURHOOD = np.ones((2 * MARGIN + 1, 2 * MARGIN + 1), np.uint8)


def dilate(mask: np.ndarray) -> np.ndarray:
    """`(H, W) uint8`, each pixel the greatest value within `MARGIN`."""
    return np.asarray(cv2.dilate(mask, _NEIGHBOURHOOD))


def erode(mask: np.ndarray) -> np.ndarray:
    """`(H, W) uint8`, each pixel the least value within `MARGIN`; outside the image nothing counts."""
    return np.asarray(cv2.erode(mask, _NEIGHBOURHOOD))


def margins(mask: np.ndarray) -> dict[str, np.ndarray]:
    """The four masks of one, `(H, W) uint8` each.

    `envelope` is the band along the boundary, `expanded` the mask and the band together. The authors' script saves the
    dilated mask as the eroded one too; here it is eroded (G. Zhu et al., Pattern Recognition 2024).
    """
    dilated, eroded = dilate(mask), erode(mask)
    envelope = dilated - eroded
    return {"dilated": dilated, "eroded": eroded, "envelope": envelope, "expanded": cv2.add(envelope, mask)}


def write_margins(data: str | Path, output: Path, workers: int) -> int:
    """Write the four masks of every sample of `data` below `output`; returns how many samples.

    Raises:
        UserError: a mask is missing or cannot be read; what was written before is whole.
    """
    if workers < 1:
        raise UserError(f"--workers {workers} does nothing; give 1 or more")
    dataset = open_dataset(data)
    for _ in terminal.progress(_written(dataset, output, workers), "masks", total=len(dataset)):
        pass
    return len(dataset)


def _written(dataset: Dataset, output: Path, workers: int) -> Iterator[None]:
    if workers == 1:
        yield from map(_write, dataset, repeat(output))
        return
    with ProcessPoolExecutor(workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        try:
            yield from pool.map(_write, dataset, repeat(output), chunksize=16)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write(sample: Sample, output: Path) -> None:
    for kind, mask in margins(sample.mask()).items():
        with artifacts.atomic_write(output / kind / f"{sample.name}.png") as path:
            if not cv2.imwrite(str(path), mask):
                raise OSError(f"{path} could not be written")


def main(
    data: Annotated[str, typer.Argument(help="a data set with masks")],
    output: Annotated[Path, typer.Option(help="the folder that the four folders are made in")],
    workers: Annotated[int, typer.Option(help="processes")] = os.cpu_count() or 1,
) -> None:
    """Write the masks that surround each mask of a data set."""
    count = write_margins(data, output, workers)
    terminal.note(f"wrote four masks for each of {count} samples to {output}")


if __name__ == "__main__":
    terminal.run(main)
