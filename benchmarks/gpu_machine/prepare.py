"""Collect what a GPU machine without a network lacks: wheels for its Python, at most 64 MiB in all.

python benchmarks/gpu_machine/prepare.py [--output out/gpu_machine] [--python 3.12]
"""

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from sodeploy import command_line, terminal
from sodeploy.artifacts import check_output_folder
from sodeploy.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pydantic", "pysodmetrics")  # and all that they need
THERE = ("numpy", "scipy", "opencv_python_headless")  # the machine has its own
MOST_BYTES = 64 << 20


def prepare(output: Path, python: str) -> list[Path]:
    """Download the wheels, in the versions of constraints.txt; returns them.

    Args:
        python: the version of the other machine's Python, for example "3.12".

    Raises:
        UserError: a wheel is not to be had for that Python, or they are larger than what can be carried.
    """
    check_output_folder(output)
    folder = output / "whl"
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in PACKAGES]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--constraint", str(ROOT / "constraints.txt")]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    command += ["--platform=manylinux2014_x86_64", "--platform=manylinux_2_28_x86_64", "--dest", str(folder), *wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"pip found no wheels for Python {python}: {' '.join(done.stderr.split())[-300:]}")
    for wheel in folder.glob("*.whl"):
        if wheel.name.split("-")[0] in THERE:
            wheel.unlink()
    wheels = sorted(folder.glob("*.whl"))
    short = f"cp{python.replace('.', '')}"
    for wheel in wheels:
        tags = wheel.stem.split("-")[2]
        if not ({short, "py3"} & set(tags.split("."))):
            raise UserError(
                f"{wheel} is for {tags}, not for Python {python}; remove the folder {folder} and start again"
            )
    size = sum(wheel.stat().st_size for wheel in wheels)
    if size > MOST_BYTES:
        raise UserError(
            f"{folder} has {size / 2**20:.1f} MiB, more than the {MOST_BYTES >> 20} MiB that can be carried"
        )
    return wheels


def main(
    output: Annotated[Path, typer.Option(help="folder for the wheels")] = ROOT / "out/gpu_machine",
    python: Annotated[str, typer.Option(help="version of Python on the GPU machine")] = "3.12",
) -> None:
    """Collect the wheels for a GPU machine that has no network."""
    wheels = prepare(output, python)
    size = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    terminal.results.print(
        f"{len(wheels)} wheels for Python {python}, {size:.1f} MiB: {output / 'whl'}", soft_wrap=True
    )


if __name__ == "__main__":
    command_line.run(main)
