"""Pick the images to calibrate on: few, and like the whole folder.

    python calib_data/subset.py DATA --count 100 --output calib.txt [--exclude EVAL]

Each image is described by how bright, how colourful and how busy it is, overall and place by place. The descriptions
are grouped by k-means into as many clusters as images are wanted, begun from the points farthest from one another so
that rare kinds of image get a cluster too, and of each cluster the image nearest its mean is taken. Images that occur
twice count once, and one that also stands in the evaluation set not at all.

The choice depends on the images' contents alone: not on their order, names, or a seed.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer

from sodeploy import artifacts, command_line, terminal
from sodeploy.calib_data.dataset import Dataset, FileSample
from sodeploy.calib_data.mask_sets import open_photographs
from sodeploy.calib_data.options import RootOption
from sodeploy.calib_data.sources import Source, open_dataset
from sodeploy.errors import UserError

_SIDE = 64  # an image is looked at as a thumbnail of so many pixels
_CELLS = 4  # the thumbnail's places: 4 x 4
_ITERATIONS = 50


def write_subset(
    data: Source | Sequence[Source], count: int, output: Path, exclude: Source | Sequence[Source] | None = None
) -> list[FileSample]:
    """Choose `count` images of `data` and list them in `output`, with their hashes in the manifest beside it.

    Raises:
        UserError: fewer images than wanted, an unreadable one, `data` not on disk, `output` not named .txt.
    """
    if output.suffix.lower() != ".txt":
        raise UserError(f"{output} must end with .txt to be opened as a data set; give for example --output calib.txt")
    if count < 1:
        raise UserError(f"--count {count} chooses nothing; give 1 or more")
    dataset = open_photographs(data)
    excluded = open_dataset(exclude, masks=False) if exclude else None
    files = _candidates(dataset, excluded)
    if len(files) < count:
        raise UserError(
            f"{dataset.name} has only {len(files)} usable images for --count {count}; ask for fewer, or add images"
        )
    chosen = sorted((files[i] for i in choose(_describe_all(files), count)), key=lambda sample: sample.name)
    artifacts.write_text(output, "".join(f"{_listed(sample, output)}\n" for sample in chosen))
    artifacts.write_manifest(
        output,
        inputs={},  # an input has a path, which would name folders of this machine
        images={sample.name: sample.digest() for sample in chosen},
        data=dataset.name,
        candidates=len(files),
        excluded=excluded.name if excluded else None,
    )
    return chosen


def describe(image: np.ndarray) -> np.ndarray:
    """A description of an image in 86 numbers of comparable size.

    Per cell of a 4 x 4 grid the mean of L*, a*, b* (48), of the gradient's magnitude (16) and the deviation of L* (16);
    of the whole image the six quantiles of L* at 1, 10, 30, 70, 90 and 99 %, for what is very dark or bright drives
    activations.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        (86,) float32, colours and gradients in shares of L*'s range.
    """
    thumbnail = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(thumbnail.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) / 100
    light = lab[..., 0]
    gradient = cv2.magnitude(cv2.Sobel(light, -1, 1, 0), cv2.Sobel(light, -1, 0, 1))
    planes = np.dstack([lab, gradient])
    cells = planes.reshape(_CELLS, _SIDE // _CELLS, _CELLS, _SIDE // _CELLS, 4)
    means, deviation = cells.mean(axis=(1, 3)), cells[..., 0].std(axis=(1, 3))
    quantiles = np.quantile(light, (0.01, 0.1, 0.3, 0.7, 0.9, 0.99))
    return np.concatenate([means.ravel(), deviation.ravel(), quantiles]).astype(np.float32)


def choose(descriptors: np.ndarray, count: int) -> list[int]:
    """The indices of `count` rows that represent all rows; ties go to the earlier row.

    k-means (S. Lloyd 1982) from farthest-first centres (T. Gonzalez 1985), then the medoid of each cluster.

    Args:
        descriptors: (N, D) float, N >= count.
    """
    points = descriptors.astype(np.float64)
    centres = points[_farthest_first(points, count, [])]
    owner = np.full(len(points), -1)
    for _ in range(_ITERATIONS):
        nearest = _squared_distances(points, centres).argmin(axis=1)
        if np.array_equal(nearest, owner):
            break
        owner = nearest
        for cluster in np.unique(owner):
            centres[cluster] = points[owner == cluster].mean(axis=0)
    distances = _squared_distances(points, centres)
    medoids = [int(np.where(owner == cluster, distances[:, cluster], np.inf).argmin()) for cluster in np.unique(owner)]
    return _farthest_first(points, count, medoids)  # alike images leave clusters empty; the next farthest fill up


def _farthest_first(points: np.ndarray, count: int, chosen: list[int]) -> list[int]:
    """`chosen` and more, each the point farthest from all before it; the very first is the one nearest the mean."""
    chosen = chosen or [int(_squared_distances(points, points.mean(axis=0, keepdims=True)).argmin())]
    gap = _squared_distances(points, points[chosen]).min(axis=1)
    while len(chosen) < count:
        gap[chosen] = -np.inf
        chosen = [*chosen, int(gap.argmax())]
        gap = np.minimum(gap, _squared_distances(points, points[chosen[-1:]])[:, 0])
    return chosen


def _squared_distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(N, D) and (K, D) -> (N, K)."""
    squares = (points**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1) - 2 * points @ centres.T
    return np.maximum(squares, 0)


def _candidates(dataset: Dataset, excluded: Dataset | None) -> list[FileSample]:
    """The files to choose from, each content once, in an order that depends on content alone."""
    forbidden = {sample.digest() for sample in terminal.progress(excluded, "reading excluded")} if excluded else set()
    files: dict[str, FileSample] = {}
    samples = sorted(dataset, key=lambda sample: sample.name)
    for sample in terminal.progress(samples, "hashing"):
        if not isinstance(sample, FileSample):
            raise UserError(f"{dataset.name} is drawn, not stored; open it with as many images as you want instead")
        files.setdefault(sample.digest(), sample)
    if len(files) < len(samples):
        terminal.note(f"{len(samples) - len(files)} of {len(samples)} images are copies of others and were left out")
    if excluded and (clashes := files.keys() & forbidden):
        terminal.note(f"{len(clashes)} images also stand in {excluded.name} and were left out")
    return [files[digest] for digest in sorted(files.keys() - forbidden)]


def _describe_all(samples: list[FileSample]) -> np.ndarray:
    """(N, 86) float32; images are decoded in parallel, OpenCV lets other threads run meanwhile."""
    with ThreadPoolExecutor() as pool:
        described = pool.map(lambda sample: describe(sample.image()), samples)
        return np.stack(list(terminal.progress(described, "looking at images", total=len(samples))))


def _listed(sample: FileSample, output: Path) -> str:
    """The image's path as it stands in the list: relative to the list's folder where both lie in one folder."""
    path, folder = sample.image_path.resolve(), output.resolve().parent
    if path.parts[1:2] != folder.parts[1:2]:  # they share the root of the file system alone
        return path.as_posix()
    return Path(os.path.relpath(path, folder)).as_posix()


def main(
    data: Annotated[list[str], typer.Argument(help="folders of images, data sets, or lists")],
    output: Annotated[Path, typer.Option(help="the .txt list to write; its manifest stands beside it")],
    count: Annotated[int, typer.Option(help="how many images to pick")] = 100,
    exclude: Annotated[
        list[str] | None, typer.Option(help="evaluation set, none of whose images may be picked; repeatable")
    ] = None,
    root: RootOption = None,
) -> None:
    """Pick a representative calibration set from a large folder."""
    excluded = open_dataset(exclude, masks=False, root=root) if exclude else None
    chosen = write_subset(open_dataset(data, masks=False, root=root), count, output, excluded)
    terminal.note(f"wrote {len(chosen)} images to {output}")


if __name__ == "__main__":
    command_line.run(main)
