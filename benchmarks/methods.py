"""Compare the methods of calibration: the int8 accuracy of one network by every method.

    python benchmarks/methods.py out/u2netp.onnx --calib CALIB --data ECSSD --output-dir out/methods [--json FILE]

The images are counted once. Each method reads the ranges from the same counts; the rest of the plans is equal. Each row
is the simulation of an engine (`.int8.sim.onnx`), whose time means nothing.
"""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from sodeploy import command_line
from sodeploy.quant.calibration.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent


def simulations(model: Path, calib: str, output_dir: Path) -> list[Path]:
    """A simulation per method, `output_dir`/NAME.METHOD.int8.sim.onnx."""
    made = []
    for method in METHODS:
        build = ["quant/build_engine.py", str(model), "--int8", "--calib", calib, "--method", method]
        run([*build, "--no-engines", "--output-dir", str(output_dir)])
        simulation = output_dir / f"{model.stem}.int8.sim.onnx"
        made.append(simulation.replace(output_dir / f"{model.stem}.{method}.int8.sim.onnx"))
    return made


def run(arguments: list[str]) -> None:
    """Run a script of the repository; raises CalledProcessError if it fails."""
    subprocess.run([sys.executable, str(ROOT / arguments[0]), *arguments[1:]], check=True)


def main(
    model: Annotated[Path, typer.Argument(help="float32 ONNX with a contract")],
    calib: Annotated[str, typer.Option(help="images to calibrate on")],
    data: Annotated[str, typer.Option(help="images and masks to measure on, others than those of --calib")],
    output_dir: Annotated[Path, typer.Option(help="folder for the plans and graphs")],
    json_file: Annotated[Path | None, typer.Option("--json", help="file for the record of the bench")] = None,
) -> None:
    """Build one network's int8 by every method and compare the accuracy."""
    models = [str(path) for path in (model, *simulations(model, calib, output_dir))]
    record = [] if json_file is None else ["--json", str(json_file)]
    run(["runtime/bench.py", *models, "--data", data, *record])


if __name__ == "__main__":
    command_line.run(main)
