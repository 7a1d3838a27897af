"""Measure and draw what the documentation shows, minutes on two CPU cores:

    python docs/make/figures.py [--output out/demo]

Runs the demo, keeps its record (docs/records/demo.json), draws docs/images/strip.png from the demo's models, measures
the methods of calibration (docs/records/methods.json) and the zoo of layers (docs/records/zoo.json), and brings the
pages up to date. `make docs-figures` runs it.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import blocks
import cv2
import numpy as np
import records
import typer

from sodeploy import command_line, terminal
from sodeploy.artifacts import atomic_write, write_text
from sodeploy.calib_data import open_dataset
from sodeploy.demo import CALIBRATION, EVALUATION, NETWORK

STRIP = blocks.ROOT / "docs" / "images" / "strip.png"
SCENES = (3, 8)  # of the demo's evaluation set
SIDE, GAP, CAPTION = 176, 6, 26  # pixels of a panel, between panels, and above them


def strip(models: dict[str, Path]) -> np.ndarray:
    """Image, mask, and the map of each model, a scene per row.

    Args:
        models: caption -> ONNX file.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    data = open_dataset(EVALUATION)
    chosen = [data[index] for index in SCENES]
    panels = [[sample.image()[..., ::-1], cv2.cvtColor(sample.mask(), cv2.COLOR_GRAY2BGR)] for sample in chosen]
    with tempfile.TemporaryDirectory() as folder:
        for sample, (image, _) in zip(chosen, panels, strict=True):
            with atomic_write(Path(folder, "images", f"{sample.name}.png")) as path:
                cv2.imwrite(str(path), image)
        for caption, model in models.items():
            run("runtime/infer.py", model, "--images", f"{folder}/images", "--output", f"{folder}/{caption}")
            for sample, row in zip(chosen, panels, strict=True):
                row.append(cv2.imread(f"{folder}/{caption}/{sample.name}.png"))
    captions = ["image", "mask", *models]
    width = len(captions) * (SIDE + GAP) - GAP
    canvas = np.full((CAPTION + len(panels) * (SIDE + GAP) - GAP, width, 3), 255, np.uint8)
    for column, caption in enumerate(captions):
        left = column * (SIDE + GAP)
        cv2.putText(canvas, caption, (left + 2, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (60, 60, 60), 1, cv2.LINE_AA)
        for row, each in enumerate(panels):
            top = CAPTION + row * (SIDE + GAP)
            square = cv2.resize(each[column], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            canvas[top : top + SIDE, left : left + SIDE] = square
    return canvas


def run(script: str, *arguments: object) -> None:
    """Run a script of the repository, its notes shown.

    Raises:
        CalledProcessError: it failed.
    """
    command = [sys.executable, str(blocks.ROOT / script), *map(str, arguments)]
    terminal.note(f"$ python {script} {' '.join(command[2:])}")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main(
    output: Annotated[Path, typer.Option(help="folder of the demo, trained anew only where it is empty")] = Path(
        "out/demo"
    ),
) -> None:
    """Run the demo, the comparison of methods and the zoo of layers, and draw the pictures of the documentation."""
    network = output / f"{NETWORK}.onnx"
    kinds = {kind: output / f"{NETWORK}.{kind}.onnx" for kind in ("fp16.sim", "int8.cpu")}
    run("sodeploy/demo.py", "--output", output)
    write_text(records.RECORDS / "demo.json", (output / "delta.json").read_text())
    with atomic_write(STRIP) as path:
        cv2.imwrite(str(path), strip({"fp32": network, "int8": kinds["int8.cpu"]}), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    record = records.RECORDS / "methods.json"
    sources = ["--calib", CALIBRATION, "--data", EVALUATION, "--output-dir", output / "methods"]
    run("benchmarks/methods.py", network, *sources, "--json", record)
    run("benchmarks/zoo.py", "--json", records.RECORDS / "zoo.json")
    blocks.main()


if __name__ == "__main__":
    command_line.run(main)
