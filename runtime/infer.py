"""A folder of images -> saliency maps, or pictures made with them.

python runtime/infer.py out/u2netp.onnx --images photos/ --output out/masks [--style rgba]
python runtime/infer.py out/u2netp.int8.engine --images photos/ --output out/masks --device cuda
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from sodeploy import command_line, terminal
from sodeploy.artifacts import check_apart, check_output, check_output_folder
from sodeploy.calib_data.images import MOST_PIXELS, read_image, write_picture
from sodeploy.calib_data.layouts import find_layout, image_files
from sodeploy.errors import UserError
from sodeploy.runtime.composition import Style, compose
from sodeploy.runtime.gpu.pipeline import Picture, pictures
from sodeploy.runtime.gpu.session import open_on_device
from sodeploy.runtime.gpu.timeline import Timeline
from sodeploy.runtime.processing import predict
from sodeploy.runtime.session import DeviceName, EngineName, Session, open_session
from sodeploy.workers import usable_cores


@dataclass(frozen=True)
class Outcome:
    """The result of `infer`.

    Attributes:
        written: pictures.
        failed: image file -> why it has no picture; one line each.
    """

    written: int
    failed: dict[Path, str]


def infer(
    model: str | Path,
    images: str | Path,
    output: str | Path,
    *,
    device: DeviceName = "cpu",
    style: Style = "map",
    batch: int = 8,
    timeline: str | Path | None = None,
    most_pixels: int = MOST_PIXELS,
    engine: EngineName = "onnxruntime",
) -> Outcome:
    """Write a PNG for every image file of a folder, named as the image.

    An image that fails is warned of and left out; the others are done.

    Args:
        model: an ONNX file; on cuda also an engine.
        style: the kind of picture (`sodeploy.runtime.composition`).
        batch: images in one run of the network on cuda; on the CPU it is always one.
        timeline: file for the timeline on cuda, JSON for Perfetto or chrome://tracing.
        most_pixels: the largest width x height of an image that is decoded; a larger one fails.
        engine: the runtime of an ONNX model on the CPU.

    Raises:
        UserError: there is no such folder, it has no images, two would become the same file, an output would overwrite
            an input, the model is unfit, or the device cannot be had; nothing is written then.
        OSError: a picture cannot be written, for example for want of space; pictures written before are whole.
    """
    if device == "cpu" and Path(model).suffix == ".engine":
        raise UserError(f"{model} runs on a GPU; choose the device cuda, or give the ONNX file it was built from")
    if device == "cpu" and timeline:
        raise UserError(f"the timeline {timeline} shows the GPU pipeline; choose the device cuda, or leave it out")
    targets = _targets(Path(images), Path(output))
    check_apart([*targets.values(), *([timeline] if timeline else [])], [*targets, model])
    if timeline:
        check_output(timeline)
    read = partial(read_image, most_pixels=most_pixels)
    if device == "cpu":
        with open_session(model, engine=engine) as session:
            return _write_all(_on_cpu(session, targets, style, read), targets)
    times = Timeline() if timeline else None
    with (
        open_on_device(model) as gpu,
        contextlib.closing(pictures(gpu, targets, read, batch=batch, style=style, timeline=times)) as made,
    ):
        outcome = _write_all(made, targets)
    if times and timeline:
        times.save(timeline)
    return outcome


def _targets(images: Path, output: Path) -> dict[Path, Path]:
    """Each image file and the picture it becomes."""
    if not images.is_dir():
        raise UserError(f"{images} is not a folder; give one with images")
    targets = {path: output / f"{path.stem}.png" for path in image_files(images)}
    if not targets:
        raise UserError(f"{images} has no images; give a folder with .jpg or .png files")
    check_output_folder(output)
    if output.is_dir() and any(output.samefile(folder) for folder in {images, *(path.parent for path in targets)}):
        raise UserError(
            f"--output {output} is the folder of the images, where pictures would replace them or stand among them; "
            "give another folder"
        )
    masks = _masks_beside(images)
    if masks is not None and output.is_dir() and output.samefile(masks):
        raise UserError(f"--output {output} holds the masks of these images; give another folder")
    owners: dict[str, Path] = {}
    for path, target in targets.items():
        if (other := owners.setdefault(str(target).casefold(), path)) != path:
            raise UserError(f"{other} and {path} would both become {target}; rename one")
    return targets


def _masks_beside(images: Path) -> Path | None:
    """The folder of masks of the data set that a folder of images belongs to, if it does."""
    with contextlib.suppress(UserError):  # the folders around it are no data set
        return find_layout(images.resolve().parent).mask_folder
    return None


def _on_cpu(
    session: Session, paths: Iterable[Path], style: Style, read: Callable[[Path], np.ndarray]
) -> Iterator[tuple[Path, Picture]]:
    for path in paths:
        try:
            image = read(path)
            yield path, compose(image, predict(image, session.contract, session.infer), style)
        except UserError as error:
            yield path, error
        except MemoryError:
            yield path, UserError(f"{path} needs more memory than there is; make it smaller or remove it")


def _write_all(made: Iterable[tuple[Path, Picture]], targets: dict[Path, Path]) -> Outcome:
    """Write pictures as they come, beside the making of the next."""
    written = 0
    failed: dict[Path, str] = {}
    writing: deque[Future[None]] = deque()
    with ThreadPoolExecutor(usable_cores(), "writer") as writers:
        try:
            for path, picture in terminal.progress(made, "images", total=len(targets)):
                if isinstance(picture, UserError):
                    failed[path] = str(picture) if str(path) in str(picture) else f"{path}: {picture}"
                    terminal.warn(failed[path])
                    continue
                writing.append(writers.submit(write_picture, targets[path], picture))
                written += 1
                if len(writing) > 4 * usable_cores():  # no more pictures in memory than the writers can soon take
                    writing.popleft().result()
            for future in writing:
                future.result()
        except BaseException:
            writers.shutdown(cancel_futures=True)
            raise
    return Outcome(written, failed)


def main(
    model: Annotated[Path, typer.Argument(help="an .onnx file; on cuda also an .engine", show_default=False)],
    images: Annotated[Path, typer.Option(help="folder of images", show_default=False)],
    output: Annotated[Path, typer.Option(help="folder for the pictures, PNG", show_default=False)],
    device: Annotated[DeviceName, typer.Option(help="where to run")] = "cpu",
    style: Annotated[Style, typer.Option(help="the kind of picture")] = "map",
    engine: Annotated[EngineName, typer.Option(help="runtime of an ONNX model on a CPU")] = "onnxruntime",
    batch: Annotated[int, typer.Option(help="cuda: images in one run of the network", min=1)] = 8,
    timeline: Annotated[
        Path | None, typer.Option(help="cuda: write a timeline for Perfetto or chrome://tracing")
    ] = None,
    max_megapixels: Annotated[
        float, typer.Option(help="larger images are refused before they are decoded", min=0.001)
    ] = MOST_PIXELS / 1e6,
) -> None:
    """Find the salient object in every image of a folder."""
    outcome = infer(
        model,
        images,
        output,
        device=device,
        style=style,
        batch=batch,
        timeline=timeline,
        most_pixels=int(max_megapixels * 1e6),
        engine=engine,
    )
    terminal.results.print(f"{outcome.written} pictures in {output}", soft_wrap=True)
    if outcome.failed:
        total = outcome.written + len(outcome.failed)
        first = "; ".join(list(outcome.failed.values())[:3]) + ("; ..." if len(outcome.failed) > 3 else "")
        raise UserError(f"{len(outcome.failed)} of {total} images have no picture: {first}")


if __name__ == "__main__":
    command_line.run(main)
