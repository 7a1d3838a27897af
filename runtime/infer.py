"""A folder of images -> saliency maps, or pictures made with them.

python runtime/infer.py out/u2netp.onnx --images photos/ --output out/masks [--style rgba]
python runtime/infer.py out/u2netp.int8.engine --images photos/ --output out/masks --device cuda
"""

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer

from sodeploy import terminal
from sodeploy.artifacts import atomic_write
from sodeploy.calib_data.images import read_image
from sodeploy.calib_data.layouts import image_files
from sodeploy.errors import UserError
from sodeploy.runtime.composition import Style, compose
from sodeploy.runtime.gpu.pipeline import Picture, pictures
from sodeploy.runtime.gpu.session import open_on_device
from sodeploy.runtime.gpu.timeline import Timeline
from sodeploy.runtime.measure.metrics import usable_cores
from sodeploy.runtime.processing import predict
from sodeploy.runtime.session import Device, Session, open_session


def infer(
    model: str | Path,
    images: str | Path,
    output: str | Path,
    *,
    device: Device = "cpu",
    style: Style = "map",
    batch: int = 8,
    profile: str | Path | None = None,
) -> int:
    """Write a PNG for every image file of a folder, named as the image; returns how many.

    An image that fails is warned of and left out.

    Args:
        model: an ONNX file; on cuda also an engine.
        style: what the pictures are (`sodeploy.runtime.composition`).
        batch: images to one run of the network on cuda; on the CPU it is always one.
        profile: on cuda, where to write the timeline, as JSON for Perfetto or chrome://tracing.

    Raises:
        UserError: there is no such folder, it has no images, two would become the same file, the model is unfit, or
            the device cannot be had.
    """
    if device == "cpu" and Path(model).suffix == ".engine":
        raise UserError(f"{model} runs on a GPU; choose the device cuda, or give the ONNX file it was built from")
    if device == "cpu" and profile:
        raise UserError(f"the timeline {profile} shows the GPU pipeline; choose the device cuda, or leave it out")
    targets = _targets(Path(images), Path(output))
    if device == "cpu":
        with open_session(model) as session:
            return _write_all(_on_cpu(session, targets, style), targets)
    timeline = Timeline() if profile else None
    with (
        open_on_device(model) as gpu,
        contextlib.closing(pictures(gpu, targets, read_image, batch=batch, style=style, timeline=timeline)) as made,
    ):
        written = _write_all(made, targets)
    if timeline and profile:
        timeline.save(profile)
    return written


def _targets(images: Path, output: Path) -> dict[Path, Path]:
    """Each image file and the picture it becomes."""
    if not images.is_dir():
        raise UserError(f"{images} is not a folder; give one with images")
    targets = {path: output / f"{path.stem}.png" for path in image_files(images)}
    if not targets:
        raise UserError(f"{images} has no images; give a folder with .jpg or .png files")
    owners: dict[Path, Path] = {}
    for path, target in targets.items():
        if owners.setdefault(target, path) != path:
            raise UserError(f"{owners[target]} and {path} would both become {target}; rename one")
    return targets


def _on_cpu(session: Session, paths: Iterable[Path], style: Style) -> Iterator[tuple[Path, Picture]]:
    for path in paths:
        try:
            image = read_image(path)
            yield path, compose(image, predict(image, session.contract, session.infer), style)
        except UserError as error:
            yield path, error


def _write_all(made: Iterable[tuple[Path, Picture]], targets: dict[Path, Path]) -> int:
    """Write pictures as they come, beside the making of the next; returns how many."""
    written = 0
    writing: deque[Future[None]] = deque()
    with ThreadPoolExecutor(usable_cores(), "writer") as writers:
        for path, picture in terminal.progress(made, "images", total=len(targets)):
            if isinstance(picture, UserError):
                terminal.warn(f"{path}: {picture}")
                continue
            writing.append(writers.submit(_write, targets[path], picture))
            written += 1
            if len(writing) > 4 * usable_cores():  # no more pictures in memory than the writers are about to take
                writing.popleft().result()
        for future in writing:
            future.result()
    return written


def _write(path: Path, picture: np.ndarray) -> None:
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA if picture.shape[2] == 4 else cv2.COLOR_RGB2BGR)
    with atomic_write(path) as temporary:
        if not cv2.imwrite(str(temporary), picture):
            raise UserError(f"{path} cannot be written; is the disk full?")


def main(
    model: Annotated[Path, typer.Argument(help="an .onnx file; on cuda also an .engine")],
    images: Annotated[Path, typer.Option(help="folder of images")],
    output: Annotated[Path, typer.Option(help="folder for the pictures, PNG")],
    device: Annotated[Device, typer.Option(help="where to run")] = "cpu",
    style: Annotated[Style, typer.Option(help="what to make")] = "map",
    batch: Annotated[int, typer.Option(help="cuda: images to one run of the network", min=1)] = 8,
    profile: Annotated[
        Path | None, typer.Option(help="cuda: write a timeline for Perfetto or chrome://tracing")
    ] = None,
) -> None:
    """Find the salient object in every image of a folder."""
    written = infer(model, images, output, device=device, style=style, batch=batch, profile=profile)
    terminal.results.print(f"{written} pictures in {output}", soft_wrap=True)


if __name__ == "__main__":
    terminal.run(main)
