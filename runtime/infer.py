"""Pictures of the salient objects in images, folders, data sets, lists and videos.

python runtime/infer.py photo.jpg --model out/u2netp.onnx
python runtime/infer.py photos/ --model out/u2netp.int8.engine --output out/cutouts --device cuda --type rgba
"""

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from sodeploy import command_line, terminal
from sodeploy.artifacts import check_apart, check_output
from sodeploy.calib_data import Dataset
from sodeploy.calib_data.images import MOST_PIXELS
from sodeploy.calib_data.options import RootOption
from sodeploy.calib_data.sources import open_dataset
from sodeploy.errors import UserError, first_few
from sodeploy.runtime.composition import Style
from sodeploy.runtime.gpu.timeline import Timeline
from sodeploy.runtime.large_images import LARGEST_SIDE, LargeImages
from sodeploy.runtime.media.conversion import MotionOptions, Smoothing, VideoFormat, conversion
from sodeploy.runtime.media.failures import check_failures, write_failures
from sodeploy.runtime.media.items import STREAM, Found, Item
from sodeploy.runtime.media.kinds import MOVING
from sodeploy.runtime.media.opening import ModelFile, open_mappers
from sodeploy.runtime.media.outcome import Outcome, convert_one, write_all, write_one
from sodeploy.runtime.media.pictures import SYNTAX, Look, parse_look
from sodeploy.runtime.media.sources import find_source
from sodeploy.runtime.media.still import SUFFIXES, Format, require_channels, still_suffix
from sodeploy.runtime.media.targets import Targets, is_file_name, plan_targets
from sodeploy.runtime.options import BatchOption, DeviceOption, EngineOption, NetworkOption
from sodeploy.runtime.session import EngineName
from sodeploy.runtime.triton_server.client import DEADLINE, TritonServer

Edges = Literal["estimate", "keep"]
RESULTS = "results"  # the folder of the outputs, in the working folder


def infer(
    model: str | Path,
    source: str | Path | Dataset | Sequence[str | Path],
    output: str | Path = RESULTS,
    *,
    device: str = "cpu",
    style: Look | str = "map",
    format: Format | None = None,
    overwrite: bool = False,
    shard: tuple[int, int] = (1, 1),
    failures: str | Path | None = None,
    batch: int | None = None,
    timeline: str | Path | None = None,
    most_pixels: int = MOST_PIXELS,
    engine: EngineName = "onnxruntime",
    network: str | None = None,
    compiled: bool = False,
    large: LargeImages = LargeImages(),
    motion: MotionOptions = MotionOptions(),
    server: TritonServer | None = None,
) -> Outcome:
    """Write a picture for every image of a source, under the image's name; a video for every video.

    A source that fails is left out, with a warning, and the rest is done. An output is whole or absent. An output that
    exists is left as it is, so an interrupted run goes on where it ended.

    Args:
        model: an ONNX file; a checkpoint, which runs in PyTorch; on cuda also an engine.
        source: an image; a video; a folder, searched with its subfolders; a data set, open or not; a list; "-" for
            standard input; the number of a webcam, whose pictures are shown in a window until it is closed; or several
            files, images and videos.
        output: a folder; of one image also a file, or "-" for standard output.
        device: "cpu", "cuda", or "cuda:1" for the second GPU.
        style: the look of the pictures (`sodeploy.runtime.media.pictures`), or its type, such as "rgba".
        format: "png", "webp" or "jpg"; by default the suffix of `output`, or PNG.
        overwrite: replace outputs that stand there already.
        shard: (k, n): only the k-th of n parts of the source, for n machines; k from 1.
        failures: file for a list of the failures, .json or .csv.
        batch: images in one run of the network on cuda, chosen by the size of its input by default; on the CPU one.
        timeline: file for the timeline on cuda, JSON for Perfetto or chrome://tracing.
        most_pixels: the largest width x height of an image that is decoded; a larger one fails.
        engine: the runtime of an ONNX model on the CPU.
        network: the registered network that a checkpoint belongs to; by default the one that fits.
        compiled: a checkpoint's network goes through torch.compile.
        large: how an image that is larger than the network's input is seen; by default it is made smaller.
        motion: how videos are made; `most_pixels` counts for their frames too.
        server: a Triton server that runs the network; `model` is its name there, and images are prepared here.

    Raises:
        UserError: there is no such source, it has no images, an output would overwrite an input, the model is unfit, or
            the device cannot be had; nothing is written then.
    """
    gpu = parse_device(device)
    if server is not None and (gpu is not None or network is not None or compiled or engine != "onnxruntime"):
        raise UserError("--triton: the server decides how a network runs; leave --device, --engine and the like out")
    if server is None and gpu is None and Path(model).suffix == ".engine":
        raise UserError(f"{model} runs on a GPU; choose the device cuda, or give the ONNX file it was built from")
    if gpu is None and timeline:
        raise UserError(f"the timeline {timeline} shows the GPU pipeline; choose the device cuda, or leave it out")
    opened = ModelFile(Path(model), gpu, engine, network, compiled, large, server=server)
    if timeline and not opened.on_device:
        raise UserError(f"the timeline {timeline} shows the GPU pipeline, which patches and checkpoints do without")
    look = parse_look(style) if isinstance(style, str) else style
    output = Path(output)
    suffix = _suffix(output, format, look)
    motion = replace(motion.for_output(output), most_pixels=most_pixels)
    found = find_source(source, output)
    files = [model] if server is None else []
    targets = _targets(found, output, suffix, look, motion, overwrite, shard, files)
    extra = [file for file in (timeline, failures) if file]
    inputs = [item.path for item in found.items if item.path is not None]
    check_apart(extra, [*inputs, *targets.todo.values(), *files])
    for file in extra:
        check_output(file)
    if failures:
        check_failures(Path(failures))
    for note in found.notes:
        terminal.note(note)

    outcome = Outcome(skipped=len(targets.skipped))
    refused = found.failed if shard[0] == 1 else {}
    for name, reason in [*refused.items(), *((str(item), why) for item, why in targets.failed.items())]:
        outcome.fail(Path(name), reason)
    stills = {item: path for item, path in targets.todo.items() if item.kind not in MOVING}
    moving = {item: path for item, path in targets.todo.items() if item.kind in MOVING}
    times = Timeline() if timeline else None
    live = any(MOVING[item.kind].live for item in moving)
    with open_mappers(opened, batch, times, live) as ready:
        if stills:
            read = partial(Item.read, most_pixels=most_pixels, whole=look.whole_frame)
            kernel: Style = look.kernel if opened.on_device else "map"
            made = ready.mapper(kernel).maps(stills, read)
            with contextlib.closing(made):
                write_all(made, stills, partial(write_one, style=kernel, look=look, suffix=suffix), outcome)
        for item, target in moving.items():
            if not outcome.stopped:
                convert_one(item, target, ready.mapper("map"), look, motion, outcome)
    if times and timeline:
        times.save(timeline)
    if failures:
        write_failures(Path(failures), outcome.failed)
    return outcome


def _suffix(output: Path, format: Format | None, look: Look) -> str:
    """The suffix of the pictures: of the format, else of an output that names a file, else PNG's."""
    if format is not None:
        suffix = still_suffix(format, look.channels)
        same = (".jpg", ".jpeg") if suffix == ".jpg" else (suffix,)
        if is_file_name(output, SUFFIXES) and output.suffix.lower() not in same:
            raise UserError(f"--output {output} is no {format}; give it the suffix {suffix}, or drop --format")
        return suffix
    if is_file_name(output, SUFFIXES):
        require_channels(output.suffix.lower(), look.channels)
        return output.suffix.lower()
    return still_suffix("png", look.channels)


def _targets(
    found: Found,
    output: Path,
    suffix: str,
    look: Look,
    motion: MotionOptions,
    overwrite: bool,
    shard: tuple[int, int],
    inputs: list[str | Path],
) -> Targets:
    if str(output) == STREAM:
        if len(found.items) != 1 or found.items[0].kind in MOVING:
            raise UserError("--output - is standard output, which takes the picture of one image; give a folder")
        return Targets({found.items[0]: output})
    kinds = {item.kind for item in found.items}
    if any(MOVING[kind].live for kind in kinds if kind in MOVING):
        if output != Path(RESULTS):
            raise UserError("a webcam is shown in a window and not written; leave --output out")
        return Targets(dict.fromkeys(found.items, output))
    suffixes = {kind: conversion(kind).output_suffix(look, motion) if kind in MOVING else suffix for kind in kinds}
    return plan_targets(found, output, suffixes, overwrite=overwrite, inputs=inputs, shard=shard)


def parse_device(text: str) -> int | None:
    """The index of the GPU that a text such as "cuda:1" names; None for "cpu".

    Raises:
        UserError: it names neither.
    """
    if text == "cpu":
        return None
    name, _, index = text.partition(":")
    if name != "cuda" or not (index.isdecimal() or text == "cuda"):
        raise UserError(f"--device {text}: there is no such device; choose cpu, cuda, or cuda:1 for the second GPU")
    return int(index or 0)


def parse_shard(text: str) -> tuple[int, int]:
    """(k, n) of a text such as "1/8".

    Raises:
        UserError: it is none, or k is not within 1 to n.
    """
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise UserError(f"--shard {text}: write it as K/N with K from 1 to N, for example 1/8")
    return int(first), int(second)


def main(
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            show_default=False,
            help="images or videos; or a folder, a data set, a list, the number of a webcam, or - for standard input",
        ),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="an .onnx file, or a checkpoint; on cuda also an .engine")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="a folder, results by default; of one image also a file, or -")
    ] = None,
    type: Annotated[str, typer.Option(metavar="TYPE", help=f"the kind of picture: {', '.join(SYNTAX)}")] = "map",
    edges: Annotated[
        Edges, typer.Option(help="colors of a cut-out's edge: estimated without the old background, or kept")
    ] = "estimate",
    threshold: Annotated[
        float | None, typer.Option(help="make the map 255 from this value on, else 0", min=0, max=1)
    ] = None,
    format: Annotated[Format | None, typer.Option(help="format of the pictures, PNG by default")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace files that stand there already")] = False,
    shard: Annotated[str, typer.Option(help="K/N: only the K-th of N parts of the source, for N machines")] = "1/1",
    failures: Annotated[Path | None, typer.Option(help="write a list of the failures, .json or .csv")] = None,
    device: DeviceOption = "cpu",
    engine: EngineOption = "onnxruntime",
    network: NetworkOption = None,
    compile: Annotated[bool, typer.Option("--compile", help="a checkpoint: run it through torch.compile")] = False,
    patches: Annotated[bool, typer.Option("--patches", help="large images: merge overlapping patches")] = False,
    two_scales: Annotated[
        bool, typer.Option("--two-scales", help="large images: details of a large scale on the map of a small one")
    ] = False,
    largest_side: Annotated[
        int, typer.Option(help="shorter side of the large scale, in pixels, at most", min=32)
    ] = LARGEST_SIDE,
    smooth: Annotated[Smoothing, typer.Option(help="videos: smooth the maps in time, against flicker")] = "none",
    video_format: Annotated[
        VideoFormat | None, typer.Option(help="format of videos; mp4 by default, webm with transparency")
    ] = None,
    batch: BatchOption = None,
    timeline: Annotated[
        Path | None, typer.Option(help="cuda: write a timeline for Perfetto or chrome://tracing")
    ] = None,
    max_megapixels: Annotated[
        float, typer.Option(help="larger images are refused before they are decoded", min=0.001)
    ] = MOST_PIXELS / 1e6,
    triton: Annotated[
        str | None, typer.Option(metavar="HOST[:PORT]", help="run the network of that name on a Triton server")
    ] = None,
    deadline: Annotated[
        float, typer.Option(help="triton: longest wait for one answer, in seconds", min=0.001)
    ] = DEADLINE,
    root: RootOption = None,
    images: Annotated[Path | None, typer.Option(hidden=True, help="the source, where MODEL comes first")] = None,
) -> None:
    """Make a picture of the salient object in every image of a source."""
    if images is not None:  # infer MODEL --images DIR, or --model MODEL --images DIR
        words = [*(source or []), *([str(model)] if model else [])]
        if len(words) != 1:
            raise UserError("--images stands in the place of SOURCE; give one of them, and one model")
        source, model = [str(images)], Path(words[0])
    assert source is not None
    assert model is not None
    output = output or Path(STREAM if source == [STREAM] else RESULTS)
    if str(output) == STREAM and sys.stdout.isatty():
        raise UserError("standard output is a terminal; send it into a file or a pipe, or give --output")
    outcome = infer(
        model,
        source if root is None else open_dataset(source, masks=False, root=root),
        output,
        device=device,
        style=parse_look(type, threshold, edges == "estimate"),
        format=format,
        overwrite=overwrite,
        shard=parse_shard(shard),
        failures=failures,
        batch=batch,
        timeline=timeline,
        most_pixels=int(max_megapixels * 1e6),
        engine=engine,
        network=network,
        compiled=compile,
        large=LargeImages(patches, two_scales, largest_side),
        motion=MotionOptions(smooth, video_format),
        server=None if triton is None else TritonServer(triton, deadline),
    )
    skipped = f", {outcome.skipped} were there already (--overwrite replaces them)" if outcome.skipped else ""
    if str(output) != STREAM:
        made = f"{outcome.written} picture{'s' * (outcome.written != 1)}"
        terminal.results.print(f"{made} in {output}{skipped}", soft_wrap=True)
    if outcome.stopped:
        raise UserError(f"{outcome.stopped}; the run ended early, and the same command goes on from there")
    if outcome.failed:
        total = outcome.written + outcome.skipped + len(outcome.failed)
        reasons = first_few(list(outcome.failed.values()), "; ")
        raise UserError(f"{len(outcome.failed)} of {total} images have no picture: {reasons}")


if __name__ == "__main__":
    command_line.run(main)
