"""Pictures of the salient objects in many images, by workers on one machine or many. Ray hands the work out.

sodeploy label photos --model out/u2netp.onnx --output labels
sodeploy label shards --ray auto --model out/u2netp.onnx --output /shared/labels --plan 10000000

An image has exactly one picture, however often a worker dies: the picture's name follows from the image's, and a
picture is whole or absent. The same command goes on where a run ended.
"""

import contextlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from sodeploy import artifacts, command_line, terminal
from sodeploy.calib_data.images import MOST_PIXELS
from sodeploy.errors import UserError, first_few
from sodeploy.folder_lock import locked
from sodeploy.runtime.fleet import HERE, Fleet, answers, require_ray
from sodeploy.runtime.infer import parse_device
from sodeploy.runtime.label.forecast import Measured, forecast, forecast_table, measure
from sodeploy.runtime.label.parts import Fields, Part, find_shards, parts_of_files, parts_of_shards
from sodeploy.runtime.label.worker import Job, Worker
from sodeploy.runtime.large_images import LargeImages
from sodeploy.runtime.media.failures import write_failures
from sodeploy.runtime.media.opening import ModelFile, open_mappers
from sodeploy.runtime.media.pictures import SYNTAX, parse_look
from sodeploy.runtime.media.sources import find_source
from sodeploy.runtime.media.still import Format, still_suffix
from sodeploy.runtime.media.targets import plan_targets
from sodeploy.runtime.options import BatchOption, EngineOption, NetworkOption
from sodeploy.runtime.session import EngineName

RECORD = "labels.json"
FAILURES = "failures.csv"


@dataclass
class Labelled:
    """The result of a run.

    Attributes:
        written: pictures of this run.
        skipped: pictures that stood there already.
        failed: source -> why it has no picture; one line each.
        measured: the speed of the workers; None where nothing was written.
        stopped: why the run ended early; empty if it did not.
    """

    written: int = 0
    skipped: int = 0
    failed: dict[Path, str] = field(default_factory=dict)
    measured: Measured | None = None
    stopped: str = ""


def label(
    model: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    fleet: Fleet = Fleet(),
    style: str = "map",
    threshold: float | None = None,
    format: Format = "png",
    fields: Fields = Fields(),
    device: str = "cpu",
    engine: EngineName = "onnxruntime",
    network: str | None = None,
    batch: int | None = None,
    most_pixels: int = MOST_PIXELS,
) -> Labelled:
    """Write a picture for every image of a source, with workers that Ray starts.

    `output`, `source` and `model` lie where every worker finds them under these names. Pictures that stand there are
    left as they are. `output` also gets `labels.json`, which says how the pictures were made, and `failures.csv`.

    Args:
        model: an ONNX file; a checkpoint; on cuda also an engine.
        source: files as of `sodeploy.runtime.infer.infer`; or shards: a .parquet or .tar file, or a folder of them.
        style, threshold, format, device, engine, network, batch, most_pixels: as of `sodeploy.runtime.infer.infer`.
        fields: of the samples in shards.

    Raises:
        ModuleNotFoundError: the extra "ray" is not installed.
        UserError: the source or the model is unfit, `output` holds pictures of another model or look, or there is no
            such cluster.
    """
    require_ray()
    output, model = Path(output), artifacts.require_file(model, "give an .onnx file, an .engine or a checkpoint")
    gpu = parse_device(device)
    opened = ModelFile(model.resolve(), gpu, engine, network, False, LargeImages(), fleet.threads)
    if gpu is None:
        if model.suffix == ".engine":
            raise UserError(f"{model} runs on a GPU; choose --device cuda, or give the ONNX file it was built from")
        with open_mappers(opened, batch, None):
            pass  # an unfit model is told before a worker starts
    look = parse_look(style, threshold)
    job = Job(opened, output.resolve(), look, still_suffix(format, look.channels), most_pixels, batch)
    artifacts.check_output_folder(output)
    with locked(output):
        result = Labelled()
        parts = _parts(Path(source), job, fields, result)
        settings = {
            "model": str(model),
            "sha256": artifacts.sha256(model),
            "network": network,
            "type": style,
            "threshold": threshold,
            "format": format,
        }
        _require_same(output, settings)
        _write_record(output, settings)
        _run(parts, job, fleet, result)
        write_failures(output / FAILURES, result.failed)
        _write_record(output, settings, result)
    return result


def _parts(source: Path, job: Job, fields: Fields, result: Labelled) -> list[Part]:
    """The parts that are to be labelled; files that have a picture are counted."""
    shards = find_shards(source, job.output)
    if shards:
        failed: dict[str, str] = {}
        parts = parts_of_shards(source, shards, fields, failed)
        result.failed.update({Path(path): reason for path, reason in failed.items()})
        return parts
    found = find_source(source, job.output)
    for item in list(found.items):
        if item.path is None:
            raise UserError(f"{source} is no file or folder; label takes files and shards, infer the rest")
        if item.kind != "image":
            result.failed[item.path] = f"{item} is a {item.kind}; make its pictures with infer"
            found.items.remove(item)
    found.folder = found.folder or source.parent  # the output is a folder, of a single file too
    targets = plan_targets(found, job.output, {"image": job.suffix}, inputs=[job.model.path])
    for note in found.notes:
        terminal.note(note)
    result.skipped = len(targets.skipped)
    result.failed.update({Path(path): reason for path, reason in found.failed.items()})
    result.failed.update({item.path or Path(item.name): reason for item, reason in targets.failed.items()})
    return parts_of_files(list(targets.todo))


def _run(parts: list[Part], job: Job, fleet: Fleet, result: Labelled) -> None:
    """Label the parts."""
    done = Counter[str]()

    def remark() -> str:
        return f"{done['written']} images"

    kept: list[dict[str, Any]] = []
    with contextlib.closing(answers(Worker, parts, fleet, on_gpu=job.model.gpu is not None, job=job)) as rows:
        for _, row in terminal.progress(rows, "parts", len(parts), remark=remark):
            if isinstance(row, UserError):
                result.stopped = str(row)
                break
            kept.append(row)
            done.update(written=row["written"])
            result.skipped += row["skipped"]
            for path, reason in row["failed"].items():
                result.failed[path] = reason
                terminal.warn(reason)
            if row["stopped"]:
                result.stopped = row["stopped"]
                break
    result.written = done["written"]
    result.measured = measure(kept)


def _require_same(output: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder with the pictures of another model or look."""
    path = output / RECORD
    if not path.exists():
        return
    if all(file.name in (RECORD, FAILURES) for file in output.rglob("*") if file.is_file()):
        return  # a run that ended before its first picture
    before = artifacts.read_json(path, "remove it, with the pictures beside it")
    for key, value in settings.items():
        if key != "model" and before.get(key) != value:
            raise UserError(
                f"{output} holds pictures with the {key} {before.get(key)} of {before.get('model')}, not {value}; "
                "choose another --output"
            )


def _write_record(output: Path, settings: dict[str, Any], result: Labelled | None = None) -> None:
    record: dict[str, Any] = {**settings, "versions": artifacts.versions()}
    if result is not None:
        record["pictures"] = result.written + result.skipped
        record["failed"] = len(result.failed)
        record["measured"] = asdict(result.measured) if result.measured else None
    artifacts.write_text(output / RECORD, json.dumps(record, indent=2) + "\n")


def main(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="images: a folder, a data set, a list; .parquet or .tar shards")
    ],
    model: Annotated[Path, typer.Option(help="an .onnx file, or a checkpoint; on cuda also an .engine")],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the pictures, which every worker reaches")],
    ray: Annotated[
        str, typer.Option(metavar="[ADDRESS]", help="a Ray cluster: HOST:PORT, or auto; by default Ray starts here")
    ] = HERE,
    workers: Annotated[
        int | None, typer.Option(help="workers at most; as many as the cluster has room for by default", min=1)
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU cores of a worker", min=1)] = 1,
    gpus: Annotated[
        float, typer.Option(help="cuda: share of a GPU of a worker; 0.25 puts four on each", min=0.01, max=1)
    ] = 1.0,
    type: Annotated[str, typer.Option(metavar="TYPE", help=f"the kind of picture: {', '.join(SYNTAX)}")] = "map",
    threshold: Annotated[
        float | None, typer.Option(help="make the map 255 from this value on, else 0", min=0, max=1)
    ] = None,
    format: Annotated[Format, typer.Option(help="format of the pictures")] = "png",
    image_field: Annotated[
        str | None, typer.Option(help="shards: column, or ending such as jpg, of the images; by default the only one")
    ] = None,
    name_field: Annotated[
        str | None, typer.Option(help="Parquet: column of the names; the number of the row by default")
    ] = None,
    device: Annotated[str, typer.Option(help="where to run: cpu, or cuda")] = "cpu",
    engine: EngineOption = "onnxruntime",
    network: NetworkOption = None,
    batch: BatchOption = None,
    max_megapixels: Annotated[
        float, typer.Option(help="larger images are refused before they are decoded", min=0.001)
    ] = MOST_PIXELS / 1e6,
    plan: Annotated[
        int | None, typer.Option(help="print time, traffic and cost of so many images, from this run", min=1)
    ] = None,
    price: Annotated[float | None, typer.Option(help="plan: price of one worker for an hour", min=0)] = None,
) -> None:
    """Make a picture of the salient object in each of many images, with Ray's workers."""
    result = label(
        model,
        source,
        output,
        fleet=Fleet(ray, workers, threads, gpus),
        style=type,
        threshold=threshold,
        format=format,
        fields=Fields(image_field, name_field),
        device=device,
        engine=engine,
        network=network,
        batch=batch,
        most_pixels=int(max_megapixels * 1e6),
    )
    there = f", {result.skipped} were there already" if result.skipped else ""
    terminal.results.print(f"{result.written} pictures in {output}{there}", markup=False, soft_wrap=True)
    if result.stopped:
        raise UserError(f"{result.stopped}; the run ended early, and the same command goes on from there")
    if plan is not None:
        if result.measured is None:
            raise UserError("--plan: this run made no picture, so it has no speed; choose another --output")
        terminal.results.print(forecast_table(forecast(result.measured, plan, price)))
    if result.failed:
        total = result.written + result.skipped + len(result.failed)
        raise UserError(
            f"{len(result.failed)} of {total} images have no picture ({output / FAILURES}): "
            f"{first_few(list(result.failed.values()), '; ')}"
        )


if __name__ == "__main__":
    command_line.run(main)
