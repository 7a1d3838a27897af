"""Count the values of a network's tensors over the calibration images: the statistics that every plan is made from.

One streaming pass: memory does not grow with the number of images. Counts are integers and channel means are summed in
fixed point, so sums are exact; the result depends neither on the order of the images nor on the number of processes.
Many images can be divided over processes or machines:

    python quant/calibrate.py out/u2netp.onnx --calib DATA --shard 1/4 --output part1.npz     (2/4, 3/4, 4/4 elsewhere)
    python quant/calibrate.py --merge part1.npz part2.npz part3.npz part4.npz --output all.npz
    python quant/build_engine.py out/u2netp.onnx --int8 --statistics all.npz

With --ray, Ray's workers do so, and the one file has the same bytes.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sodeploy.artifacts import write_manifest
from sodeploy.calib_data import Sample, open_photographs
from sodeploy.calib_data.options import RootOption
from sodeploy.command_line import run
from sodeploy.errors import UserError
from sodeploy.memory import free_large_blocks_at_once
from sodeploy.quant.calibration.divided import calibrate_divided
from sodeploy.quant.calibration.observer import calibrate, gather, select_shard
from sodeploy.quant.calibration.statistics import Statistics, load_statistics
from sodeploy.quant.graph import load_network
from sodeploy.runtime.fleet import Fleet, RayOption, require_ray
from sodeploy.terminal import note


def main(
    files: Annotated[list[Path], typer.Argument(help="float32 ONNX with a contract; with --merge the parts, .npz")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the .npz to write; an interrupted one is completed")],
    calib: Annotated[
        list[str] | None, typer.Option(help="images: folder, list or synthetic:calib[:N]; repeatable")
    ] = None,
    root: RootOption = None,
    shard: Annotated[str | None, typer.Option(help="count only this part of the images, such as 1/4")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="add up the counts of several parts")] = False,
    ray: RayOption = None,
    workers: Annotated[
        int | None, typer.Option(help="ray: workers at most, of one core each; one per core by default", min=1)
    ] = None,
) -> None:
    """Count the values of a network's tensors over images, or add up such counts.

    The stage `build_engine` reads them.
    """
    free_large_blocks_at_once()
    if merge:
        if calib or shard is not None or ray is not None:
            raise UserError("--merge adds up files of statistics; leave --calib, --shard and --ray out")
        statistics = load_statistics(files[0])
        for part in files[1:]:
            statistics.merge(load_statistics(part))
        statistics.save(output)
        parts = {f"part {number}": part for number, part in enumerate(files, start=1)}
        write_manifest(output, parts, images=len(statistics.images))
    else:
        if len(files) > 1 or not calib:
            raise UserError("give one ONNX file and --calib DATA, or files of statistics and --merge")
        count: Callable[..., Statistics] = calibrate
        if ray is not None:
            require_ray()
            count = partial(calibrate_divided, fleet=Fleet(ray, workers))
        images: Iterable[Sample] = open_photographs(calib, root)
        statistics = gather(load_network(files[0]), select_shard(images, shard) if shard else images, output, count)
    note(f"wrote {output}: {len(statistics.images)} images, {len(statistics.histograms)} tensors")


if __name__ == "__main__":
    run(main)
