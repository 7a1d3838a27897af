"""The saliency maps of a model on data sets, as OUTPUT/SET/NAME.png, where the stage `evaluate` finds them.

    python runtime/maps.py out/u2netp.onnx --data DUTS-TE,ECSSD --root DATA --output maps/u2netp
    python runtime/maps.py u2netp.pth --network u2netp --data t,e,d,h,p,o --root DATA --output maps/u2netp

Maps that stand there already are not made again, so an interrupted run goes on where it ended. OUTPUT/maps.json says
which model made those of each set; another model is refused there.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sodeploy import artifacts, command_line, stages, terminal
from sodeploy.calib_data import open_datasets
from sodeploy.calib_data.options import LimitOption, RootOption
from sodeploy.calib_data.sources import Source
from sodeploy.errors import UserError, first_few
from sodeploy.folder_lock import locked
from sodeploy.runtime.infer import infer
from sodeploy.runtime.media.outcome import Outcome
from sodeploy.runtime.options import BatchOption, DeviceOption, EngineOption, NetworkOption
from sodeploy.runtime.session import EngineName

RECORD = "maps.json"


def write_maps(
    model: str | Path,
    data: Source | Sequence[Source],
    output: str | Path,
    *,
    root: str | Path | None = None,
    limit: int | None = None,
    network: str | None = None,
    device: str = "cpu",
    engine: EngineName = "onnxruntime",
    batch: int | None = None,
    overwrite: bool = False,
) -> dict[str, Outcome]:
    """Write the map of every image of every data set, as 8-bit PNG of the image's size.

    Args:
        model: an ONNX file; a checkpoint, which runs in PyTorch; on cuda also an engine.
        data: data sets, as `calib_data.open_datasets` takes them; masks are not needed.
        root: folder of the data sets that are given by name.
        limit: use only the first so many images of each data set.
        network: the registered network that a checkpoint belongs to; by default the one that fits.
        device, engine, batch: as of `sodeploy.runtime.infer.infer`.
        overwrite: make maps anew that stand there already.

    Returns:
        For each data set, the maps that were written, that stood there already, and that failed, with the reason.

    Raises:
        UserError: a data set or the model is unfit, or `output` holds the maps of another model.
    """
    output = Path(output)
    model = artifacts.require_file(model, "give an .onnx file, an .engine or a checkpoint")
    datasets = [one.first(limit) for one in open_datasets(data, masks=False, root=root)]
    artifacts.check_output_folder(output)
    with locked(output):
        made_by = {"model": str(model), "sha256": artifacts.sha256(model), "network": network}
        record = output / RECORD
        sets = _recorded_sets(output)
        if not overwrite:
            for dataset in datasets:
                _require_same_model(output / dataset.name, sets.get(dataset.name), made_by)
        outcomes = {}
        for dataset in datasets:
            sets[dataset.name] = {**made_by, "replacing": overwrite}  # maps of two models lie here while it is set
            _write_record(record, sets)
            outcome = infer(
                model,
                dataset,
                output / dataset.name,
                device=device,
                batch=batch,
                engine=engine,
                network=network,
                overwrite=overwrite,
            )
            outcomes[dataset.name] = outcome
            if outcome.stopped:
                break
            if not outcome.failed:
                sets[dataset.name]["replacing"] = False
                _write_record(record, sets)
    return outcomes


def holds_maps_of(folder: Path, model: Path) -> bool:
    """Whether all maps in an output folder are of this model, so that an interrupted run can go on with them.

    Raises:
        UserError: the record in the folder is broken.
    """
    digest = artifacts.sha256(model)
    return all(one.get("sha256") == digest and not one.get("replacing") for one in _recorded_sets(folder).values())


def _recorded_sets(folder: Path) -> dict[str, Any]:
    """The data sets whose maps lie in an output folder, with the model of each."""
    record = folder / RECORD
    sets: dict[str, Any] = {}
    if record.exists():
        sets = artifacts.read_json(record, "remove it, with the maps beside it").get("sets", {})
    return sets


def _write_record(path: Path, sets: dict[str, Any]) -> None:
    artifacts.write_text(path, json.dumps({"sets": sets, "versions": artifacts.versions()}, indent=2) + "\n")


def _require_same_model(folder: Path, before: Any, made_by: dict[str, Any]) -> None:
    if not isinstance(before, dict):
        return
    if any(before.get(key) != made_by[key] for key in ("sha256", "network")):
        raise UserError(
            f"{folder} holds maps of {before.get('model')}, which is another model or has changed since; choose "
            "another --output, or make the maps anew with --overwrite"
        )
    if before.get("replacing"):
        raise UserError(f"{folder} holds maps of two models, because replacing them did not end; repeat --overwrite")


def main(
    model: Annotated[Path, typer.Argument(help="an .onnx file, or a checkpoint; on cuda also an .engine")],
    data: Annotated[list[str], typer.Option(help="data sets: folders, lists, or names under --root; repeatable")],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the maps, in a folder for each data set")],
    root: RootOption = None,
    limit: LimitOption = None,
    network: NetworkOption = None,
    device: DeviceOption = "cpu",
    engine: EngineOption = "onnxruntime",
    batch: BatchOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="make maps anew that stand there already")] = False,
) -> None:
    """Make the saliency maps of data sets."""
    outcomes = write_maps(
        model,
        data,
        output,
        root=root,
        limit=limit,
        network=network,
        device=device,
        engine=engine,
        batch=batch,
        overwrite=overwrite,
    )
    for name, outcome in outcomes.items():
        there = f", {outcome.skipped} were there already" if outcome.skipped else ""
        terminal.results.print(
            f"{name}: {outcome.written} maps in {output / name}{there}", markup=False, soft_wrap=True
        )
    require_all(outcomes)
    sets = " ".join(f"--data {name}" for name in outcomes)
    terminal.note(f"score them: {stages.command('evaluate')} --pred {output} {sets}{f' --root {root}' if root else ''}")


def require_all(outcomes: dict[str, Outcome]) -> None:
    """Refuse a result in which maps are missing.

    Raises:
        UserError: there are such; names the first three.
    """
    stopped = next((outcome.stopped for outcome in outcomes.values() if outcome.stopped), "")
    if stopped:
        raise UserError(f"{stopped}; the run ended early: make room, then run it again, and it goes on")
    failed = [reason for outcome in outcomes.values() for reason in outcome.failed.values()]
    if failed:
        raise UserError(f"{len(failed)} images have no map: {first_few(failed, '; ')}")


if __name__ == "__main__":
    command_line.run(main)
