"""The extra masks that train the integrity ISNet: each mask grown, shrunk, and the band between.

    python calib_data/masks.py DUTS-TR --output DUTS-TR-margins

Writes dilated/, eroded/, envelope/ and expanded/, a PNG of each for every mask, at the mask's own size. Training makes
the same on the fly and needs no such folder; it serves other code, and eyes.
"""

from pathlib import Path, PurePath
from typing import Annotated

import cv2
import numpy as np
import typer

from sodeploy import artifacts, command_line, terminal
from sodeploy.calib_data.dataset import FileSample, Sample
from sodeploy.calib_data.images import write_picture
from sodeploy.calib_data.sources import open_dataset
from sodeploy.errors import UserError
from sodeploy.workers import parallel_map

KINDS = ("dilated", "eroded", "envelope", "expanded")
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


def write_margins(data: str | Path, output: Path, workers: int | None = None) -> int:
    """Write the four masks of every sample of `data` below `output`; returns how many samples.

    Args:
        workers: processes; one per usable core by default.

    Raises:
        UserError: a mask is missing or cannot be read, a sample's name leads out of `output`, or an output would
            overwrite a file of the data set; masks written before are whole.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers} does nothing; give 1 or more")
    artifacts.check_output_folder(output)
    dataset = open_dataset(data)
    targets = [_target(output, sample.name) for sample in dataset]
    files = [
        path for sample in dataset if isinstance(sample, FileSample) for path in (sample.image_path, sample.mask_path)
    ]
    artifacts.check_apart(
        [_of_kind(target, kind) for target in targets for kind in KINDS], [path for path in files if path]
    )
    with parallel_map(workers) as mapped:
        for _ in terminal.progress(mapped(_write, dataset, targets), "masks", total=len(dataset)):
            pass
    return len(dataset)


def _target(output: Path, name: str) -> tuple[Path, str]:
    """The folder and the name of a sample's files, which stay inside that folder."""
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise UserError(f"the sample {name} would be written outside {output}; give a list of names below one folder")
    return output, name


def _of_kind(target: tuple[Path, str], kind: str) -> Path:
    output, name = target
    return output / kind / f"{name}.png"


def _write(sample: Sample, target: tuple[Path, str]) -> None:
    for kind, mask in margins(sample.mask()).items():
        write_picture(_of_kind(target, kind), mask)


def main(
    data: Annotated[str, typer.Argument(help="a data set with masks")],
    output: Annotated[Path, typer.Option(help="the folder that the four folders are made in")],
    workers: Annotated[int | None, typer.Option(help="processes; one per core by default")] = None,
) -> None:
    """Write the masks that surround each mask of a data set."""
    count = write_margins(data, output, workers)
    terminal.note(f"wrote four masks for each of {count} samples to {output}")


if __name__ == "__main__":
    command_line.run(main)
