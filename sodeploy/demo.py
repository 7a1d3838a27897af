"""The whole way, from images to the table that says what fp16 and INT8 cost, on a data set drawn as it goes.

    sodeploy demo [--output out/demo]

Nothing is downloaded. Each step is the command that is printed before it, and can be repeated by hand with other data
and another network. A demo that was interrupted goes on where it stood.
"""

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from sodeploy import command_line, terminal
from sodeploy.calib_data import open_dataset
from sodeploy.export.to_onnx import export
from sodeploy.quant import build_engine
from sodeploy.quant.sources import Images
from sodeploy.runtime.bench import bench, publish
from sodeploy.runtime.measure.budget import parse_budget
from sodeploy.training.recipe import RECIPES, load_recipe
from sodeploy.training.train import train

NETWORK = "u2net_tiny"
RECIPE = RECIPES / "demo.yaml"
CALIBRATION, EVALUATION = "synthetic:calib:64", "synthetic:eval:100"
MAX_DROP = "s=0.005,mae=0.002"

T = TypeVar("T")


def demo(output: Path) -> Path:
    """Train, export, quantize, measure; every artifact lies in `output`.

    Returns:
        The Markdown file with the tables.
    """
    size = load_recipe(RECIPE).size
    onnx = output / f"{NETWORK}.onnx"
    models = [output / f"{NETWORK}{kind}.onnx" for kind in ("", ".fp16.sim", ".int8.cpu")]
    budget = parse_budget(MAX_DROP)
    table, record = output / "delta.md", output / "delta.json"

    weights = _step(
        ["train", "--config", RECIPE, "--output", output / "training"],
        lambda: train(RECIPE, output=output / "training", resume=True),
    )
    _step(
        ["export", "--model", NETWORK, "--checkpoint", weights, "--size", size, "--output", onnx],
        lambda: export(NETWORK, weights, onnx, size=(size, size)),
    )
    _step(
        ["build", onnx, "--int8", "--calib", CALIBRATION, "--output-dir", output],
        lambda: build_engine.build(onnx, output, Images(open_dataset(CALIBRATION, masks=False))),
    )
    _step(
        ["bench", *models, "--data", EVALUATION, "--max-drop", MAX_DROP, "--markdown", table, "--json", record],
        lambda: publish(bench(models, EVALUATION, budget=budget), json_file=record, markdown=table),
    )
    terminal.note(
        "The fp16 row has an engine's roundings, simulated; the int8 row ran on integer kernels of this CPU, and "
        f".int8.sim.onnx beside it computes what an engine will. Plan: {output / NETWORK}.plan.json; tables: {table}"
    )
    return table


def _step(command: list[object], work: Callable[[], T]) -> T:
    """Print the command that does the same, do it, say how long it took."""
    terminal.notes.rule(style="dim")
    terminal.note(f"$ sodeploy {shlex.join(map(str, command))}")
    started = time.monotonic()
    result = work()
    terminal.note(f"({time.monotonic() - started:.0f} s)")
    return result


def main(output: Annotated[Path, typer.Option(help="folder for everything that is made")] = Path("out/demo")) -> None:
    """Walk the whole way on the synthetic data set."""
    demo(output)


if __name__ == "__main__":
    command_line.run(main)
