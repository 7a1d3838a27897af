"""The cost of planning beside plain inference: the calibration pass, the whole build, the layer report.

    python benchmarks/calibration_time.py out/u2netp.onnx --calib CALIB [--limit 100] [--json record.json]

Every work runs in a process of its own on the same images, with all cores, one after the other; `--rounds` takes turns
and keeps the fastest of each. Inference means: the float32 network in onnxruntime with its default threads. Seconds are
from the start of a process to its end. Nothing else may run meanwhile if they are to mean something; CPU seconds and
peak memory depend less on the rest of the machine.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from by_network import add
from process_cost import CommandFailed, Cost, measure

from sodeploy import command_line, terminal
from sodeploy.artifacts import sha256
from sodeploy.calib_data import open_dataset
from sodeploy.errors import UserError
from sodeploy.memory import free_large_blocks_at_once
from sodeploy.quant.equalize import needs_equalization
from sodeploy.quant.graph import load_network
from sodeploy.runtime.contract import contract_of
from sodeploy.runtime.cpu import processor_name
from sodeploy.runtime.measure.report import Table, show
from sodeploy.runtime.onnx_session import start_session
from sodeploy.runtime.processing import preprocess
from sodeploy.workers import usable_cores

HERE = Path(__file__).resolve().parent
INFERENCE = "inference"
_REPORTED = 1  # images of the layer report


def works(model: Path, calib: str, limit: int, folder: Path) -> dict[str, list[str | Path]]:
    """Name -> command. Each can run again: what a run before left in `folder` is written anew."""
    quant, python = HERE.parent / "quant", sys.executable
    images = ["--calib", calib]
    built = folder / "built"
    equalized = needs_equalization(load_network(model))  # then the plan is for what the build made of the model
    planned = built / f"{model.stem}.equalized.onnx" if equalized else model
    return {
        INFERENCE: [python, __file__, model, *images, "--limit", str(limit), "--only-inference"],
        "calibration": [python, __file__, model, *images, "--limit", str(limit), "--only-calibration"],
        "build --int8": [
            *(python, quant / "build_engine.py", model, "--int8", *images, "--limit", str(limit)),
            *("--no-engines", "--output-dir", built),
        ],
        f"layers, {_REPORTED} image": [
            *(python, quant / "layer_report.py", planned, built / f"{model.stem}.plan.json", "--data", calib),
            *("--limit", str(_REPORTED)),
        ],
    }


def compare(model: Path, calib: str, limit: int, rounds: int) -> dict[str, Any]:
    """The cost of each work, in the rounds' fastest process.

    Raises:
        UserError: the model or the images are unfit.
    """
    costs: dict[str, Cost] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(rounds):
            for file in folder.glob("built/*"):
                file.unlink()  # counts that are there are not made again
            for work, command in terminal.progress(works(model, calib, limit, folder).items(), "measuring"):
                try:
                    cost = measure(command, folder / "log")
                except CommandFailed as failure:
                    raise UserError(f"{work} of {model}: {failure}") from None
                costs[work] = min(cost, costs.get(work, cost))
    return {
        "model": model.name,
        "sha256": sha256(model),
        "images": limit,
        "hardware": f"{processor_name()}, {usable_cores()} cores",
        "works": {work: cost._asdict() for work, cost in costs.items()},
    }


def tables(records: Sequence[dict[str, Any]]) -> list[Table]:
    """One table: a row per network and work, beside plain inference of the same images."""
    rows = []
    for record in records:
        plain = record["works"][INFERENCE]
        for work, cost in record["works"].items():
            rows.append(
                [
                    Path(record["model"]).stem,
                    str(record["images"]),
                    work,
                    f"{cost['seconds']:.1f}",
                    f"{cost['seconds'] / plain['seconds']:.2f}",
                    f"{cost['cpu_seconds']:.1f}",
                    f"{cost['cpu_seconds'] / plain['cpu_seconds']:.2f}",
                    f"{cost['peak_mib']:.0f}",
                    f"{cost['peak_mib'] - plain['peak_mib']:+.0f}",
                ]
            )
    made = Table(
        f"Planning beside plain inference, on {records[0]['hardware']}",
        ["network", "images", "work", "s", "ratio", "CPU s", "CPU ratio", "peak MiB", "more MiB"],
        rows,
        3,
        caption="inference: the float32 network in onnxruntime, on the same images with the same threads\n"
        "s, CPU s, peak MiB: the cost of the whole process in its fastest round\n"
        "ratio, CPU ratio: to inference; more MiB: than inference",
    )
    return [made]


def infer_all(model: Path, calib: str, limit: int) -> None:
    """Run the float32 network over the images, as a user of onnxruntime does."""
    session = start_session(model)
    contract = contract_of(session.get_modelmeta().custom_metadata_map, model)
    for sample in open_dataset(calib, masks=False).first(limit):
        session.run(None, {contract.input_name: preprocess(sample.image(), contract)[None]})


def main(
    model: Annotated[Path, typer.Argument(help="float32 ONNX with a contract, of batch 1")],
    calib: Annotated[str, typer.Option(help="images: folder, list, or synthetic:calib[:N]")],
    limit: Annotated[int, typer.Option(help="use only the first N images", metavar="N", min=1)] = 100,
    rounds: Annotated[int, typer.Option(help="turns, of which the fastest counts", min=1)] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="add the figures to this file")] = None,
    only_inference: Annotated[bool, typer.Option(hidden=True)] = False,
    only_calibration: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Measure planning beside plain inference."""
    if only_inference:
        infer_all(model, calib, limit)
        return
    if only_calibration:
        from sodeploy.quant.calibration.observer import calibrate

        free_large_blocks_at_once()  # as the stage does
        calibrate(load_network(model), open_dataset(calib, masks=False).first(limit))
        return
    record = compare(model, calib, limit, rounds)
    if json_file is not None:
        add([record], json_file)
    show(tables([record]))


if __name__ == "__main__":
    command_line.run(main)
