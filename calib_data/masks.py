"""The extra masks that train the integrity ISNet: each mask grown, shrunk, and the band between.

    python calib_data/masks.py DUTS-TR --output DUTS-TR-margins [--radius 5]

Writes dilated/, eroded/, envelope/ and expanded/, a PNG of each for every mask, at the mask's own size. Training makes
the same on the fly and needs no such folder; it serves other code, and eyes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Annotated

import cv2
import numpy as np
import typer

from sodeploy import artifacts, command_line, terminal
from sodeploy.calib_data.dataset import FileSample, Sample
from sodeploy.calib_data.images import write_picture
from sodeploy.calib_data.options import RootOption
from sodeploy.calib_data.sources import Source, open_dataset
from sodeploy.errors import UserError
from sodeploy.workers import parallel_map

KINDS = ("dilated", "eroded", "envelope", "expanded")
MARGIN = 5  # pixels, in a square neighbourhood, at the mask's own size
WIDEST = 1000  # pixels


def dilate(mask: np.ndarray, radius: int = MARGIN) -> np.ndarray:
    """`(H, W) uint8`, each pixel the greatest value within a square of `radius` pixels to each side."""
    return np.asarray(cv2.dilate(mask, _square(radius)))


def erode(mask: np.ndarray, radius: int = MARGIN) -> np.ndarray:
    """`(H, W) uint8`, each pixel the least value within that square; outside the image nothing counts."""
    return np.asarray(cv2.erode(mask, _square(radius)))


def _square(radius: int) -> np.ndarray:
    return np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)


@dataclass(frozen=True)
class Radii:
    """How far masks grow and shrink.

    Attributes:
        dilated, eroded: pixels, 1 to `WIDEST`.
        envelope: pixels to each side of the boundary; None: the band between the eroded and the dilated mask.
    """

    dilated: int = MARGIN
    eroded: int = MARGIN
    envelope: int | None = None


def margins(mask: np.ndarray, radii: Radii | None = None) -> dict[str, np.ndarray]:
    """The four masks of one, `(H, W) uint8` each.

    `envelope` is the band along the boundary, `expanded` the mask and the band together. The authors' script saves the
    dilated mask as the eroded one too; here it is eroded (G. Zhu et al., Pattern Recognition 2024).
    """
    radii = radii or Radii()
    dilated, eroded = dilate(mask, radii.dilated), erode(mask, radii.eroded)
    inner, outer = eroded, dilated
    if radii.envelope is not None:
        inner, outer = erode(mask, radii.envelope), dilate(mask, radii.envelope)
    envelope = outer - inner
    return {"dilated": dilated, "eroded": eroded, "envelope": envelope, "expanded": cv2.add(envelope, mask)}


def write_margins(
    data: Source | Sequence[Source], output: Path, workers: int | None = None, radii: Radii | None = None
) -> int:
    """Write the four masks of every sample of `data` below `output`; returns how many samples.

    Args:
        workers: processes; one per usable core by default.
        radii: how far masks grow and shrink; `MARGIN` by default.

    Raises:
        UserError: a mask is missing or cannot be read, a sample's name leads out of `output`, or `output` lies among
            the files of the data set; masks written before are whole.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers} does nothing; give 1 or more")
    artifacts.check_output_folder(output)
    dataset = open_dataset(data)
    targets = [_target(output, sample.name) for sample in dataset]
    samples = [sample for sample in dataset if isinstance(sample, FileSample)]
    files = [path for sample in samples for path in (sample.image_path, sample.mask_path) if path]
    artifacts.check_apart([_of_kind(target, kind) for target in targets for kind in KINDS], files)
    _require_outside(output, files)
    with parallel_map(workers) as mapped:
        for _ in terminal.progress(mapped(partial(_write, radii=radii), dataset, targets), "masks", total=len(dataset)):
            pass
    return len(dataset)


def _require_outside(output: Path, files: Iterable[Path]) -> None:
    """Refuse an output among the files of a data set, which would count as its masks from then on."""
    folders = {path.parent.resolve() for path in files}
    if within := folders.intersection([output.resolve(), *output.resolve().parents]):
        raise UserError(f"--output {output} lies in the data set, in {within.pop()}; choose a folder outside of it")


def _target(output: Path, name: str) -> tuple[Path, str]:
    """The folder and the name of a sample's files, which stay inside that folder."""
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise UserError(f"the sample {name} would be written outside {output}; give a list of names below one folder")
    return output, name


def _of_kind(target: tuple[Path, str], kind: str) -> Path:
    output, name = target
    return output / kind / f"{name}.png"


def _write(sample: Sample, target: tuple[Path, str], radii: Radii | None) -> None:
    for kind, mask in margins(sample.mask(), radii).items():
        write_picture(_of_kind(target, kind), mask)


def main(
    data: Annotated[list[str], typer.Argument(help="data sets with masks")],
    output: Annotated[Path, typer.Option(help="the folder that the four folders are made in")],
    root: RootOption = None,
    radius: Annotated[int, typer.Option(help="pixels by which masks grow and shrink", min=1, max=WIDEST)] = MARGIN,
    dilate_radius: Annotated[
        int | None, typer.Option(help="pixels by which dilated masks grow; --radius by default", min=1, max=WIDEST)
    ] = None,
    erode_radius: Annotated[
        int | None, typer.Option(help="pixels by which eroded masks shrink; --radius by default", min=1, max=WIDEST)
    ] = None,
    envelope_radius: Annotated[
        int | None,
        typer.Option(
            help="pixels of the envelope to each side of the boundary; by default it lies between eroded and dilated",
            min=1,
            max=WIDEST,
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="processes; one per core by default")] = None,
) -> None:
    """Write the masks that surround each mask of a data set."""
    radii = Radii(dilate_radius or radius, erode_radius or radius, envelope_radius)
    count = write_margins(open_dataset(data, root=root), output, workers, radii)
    terminal.note(f"wrote four masks for each of {count} samples to {output}")


if __name__ == "__main__":
    command_line.run(main)
