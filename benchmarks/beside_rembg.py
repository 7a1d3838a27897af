"""Ours beside rembg and transparent-background, on one machine: start-up, seconds per image, memory.

    python benchmarks/beside_rembg.py out/u2netp.onnx --photos photos [--checkpoint ckpt_fast.pth] [--images 1,200]

Each tool is a command in a process of its own and cuts out the same photographs. rembg takes the same ONNX file
(u2net_custom). transparent-background takes no ONNX file, only a checkpoint of InSPyReNet (Swin-B): it and ours run
that one in PyTorch, at 384 x 384. Without --checkpoint its network has random weights: the time does not depend on
them, but the maps are noise. The others get an environment of their own from beside-requirements.txt. Writes
beside_rembg.json and beside_rembg.md. Times mean something on a machine that does nothing else.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from environments import python_of
from process_cost import CommandFailed, Cost, measure

from sodeploy import command_line, terminal
from sodeploy.artifacts import write_text
from sodeploy.calib_data.layouts import image_files
from sodeploy.errors import UserError
from sodeploy.runtime.measure.report import Table, show, to_markdown
from sodeploy.runtime.session import open_session

HERE = Path(__file__).resolve().parent
CLOCKED_REMOVER = HERE / "clocked_remover.py"
REQUIREMENTS = HERE / "beside-requirements.txt"
INSPYRENET = "inspyrenet_swinb"  # the network of CLOCKED_REMOVER
REPEATS = 5  # runs of the network alone


@dataclass
class Measured:
    """A tool's cost by the number of images, or why it has none.

    Attributes:
        network_s: seconds of the network alone for one image; None where it was not measured.
    """

    tool: str
    network_s: float | None = None
    costs: dict[int, Cost] = field(default_factory=dict)
    failure: str = ""

    def per_image(self) -> float | None:
        """Seconds for one more image, from the smallest and the largest number of images."""
        few, many = min(self.costs, default=0), max(self.costs, default=0)
        return (self.costs[many].seconds - self.costs[few].seconds) / (many - few) if many > few else None


def compare(
    model: Path, photos: Path, output: Path, counts: Sequence[int], checkpoint: Path | None, environment: Path
) -> list[Measured]:
    """Measure every tool.

    Args:
        counts: numbers of images; photographs are used again where there are fewer.
        checkpoint: weights of InSPyReNet; None for random ones.

    Raises:
        UserError: there are no photographs, or our own command fails.
    """
    found = image_files(photos)
    if not found:
        raise UserError(f"{photos} holds no images; give a folder of photographs")
    folders = {count: _folder_of(found, count, output / f"photos-{count}") for count in counts}
    ours = [sys.executable, "-m", "sodeploy", "infer"]

    def sodeploy(network: Path, *more: str) -> Callable[[Path, Path], list[str | Path]]:
        return lambda source, target: [*ours, source, "--model", network, "--type", "rgba", "--output", target, *more]

    seconds = _network_seconds(model)
    measured = [
        _measured("sodeploy", sodeploy(model), folders, output, seconds),
        _measured("sodeploy, edges kept", sodeploy(model, "--edges", "keep"), folders, output, seconds),
    ]
    if measured[0].failure:
        raise UserError(f"our own command failed: {measured[0].failure}")
    python = python_of(environment, REQUIREMENTS, output / "install.log")
    if isinstance(python, CommandFailed):
        return [
            *measured,
            Measured("rembg", failure=str(python)),
            Measured("transparent-background", failure=str(python)),
        ]
    options = json.dumps({"model_path": str(model.resolve())})
    rembg = ["env", f"REMBG_HOME={model.resolve().parent}", Path(python).with_name("rembg"), "p"]  # it reads no other

    def rembg_on(source: Path, target: Path) -> list[str | Path]:
        return [*rembg, "-m", "u2net_custom", "-x", options, source, target]

    measured.append(_measured("rembg", rembg_on, folders, output, seconds))
    weights = checkpoint or output / "random_weights.pth"
    name = "checkpoint" if checkpoint else "random weights"
    clock = output / "clock.json"
    if checkpoint is None:
        measure([python, CLOCKED_REMOVER, weights], output / "random_weights.log")

    def remover(source: Path, target: Path) -> list[str | Path]:
        return [
            python, CLOCKED_REMOVER, weights, clock,
            "--source", source, "--dest", target, "--type", "rgba", "--mode", "fast",
        ]  # fmt: skip

    theirs = _measured(f"transparent-background, {name}", remover, folders, output)
    if not theirs.failure:
        theirs.network_s = float(np.median(json.loads(clock.read_text())))
    seconds = _network_seconds(weights, INSPYRENET)
    mine = _measured(f"sodeploy, {name}", sodeploy(weights, "--network", INSPYRENET), folders, output, seconds)
    return [*measured, theirs, mine]


def _folder_of(photos: Sequence[Path], count: int, folder: Path) -> Path:
    """A folder with `count` photographs, under names of their own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(count):
        photo = photos[number % len(photos)]
        shutil.copy(photo, folder / f"{number:05}{photo.suffix}")
    return folder


def _network_seconds(model: Path, network: str | None = None) -> float:
    """The median time of the network alone for one image, in this process.

    Args:
        network: the registered network of a checkpoint.
    """
    with open_session(model, network=network) as session:
        batch = np.zeros((1, 3, session.contract.height, session.contract.width), np.float32)
        session.infer(batch)
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            session.infer(batch)
            times.append(time.perf_counter() - start)
    return float(np.median(times))


def _measured(
    tool: str,
    command: Callable[[Path, Path], list[str | Path]],
    folders: dict[int, Path],
    output: Path,
    network_s: float | None = None,
) -> Measured:
    found = Measured(tool, network_s)
    for count, source in folders.items():
        target = output / "cutouts"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        terminal.note(f"{tool}, {count} images ...")
        try:
            found.costs[count] = measure(command(source, target), output / f"{tool.replace(' ', '_')}.{count}.log")
        except (CommandFailed, OSError) as failure:
            found.failure = str(failure)
            break
        if (written := len(list(target.rglob("*.png")))) != count:
            found.failure = f"it wrote {written} pictures of {count}"
            break
    return found


def table(measured: Sequence[Measured], counts: Sequence[int]) -> Table:
    """One row for each tool."""
    rows = []
    for one in measured:
        if one.failure:
            rows.append([f"{one.tool}: {one.failure}", *[""] * (2 * len(counts) + 2)])
            continue
        each = one.per_image()
        outside = each - one.network_s if each is not None and one.network_s is not None else None
        costs = [text for n in counts for text in (f"{one.costs[n].seconds:.2f}", f"{one.costs[n].peak_mib:.0f}")]
        rows.append([one.tool, *costs, *("" if value is None else f"{value:.3f}" for value in (each, outside))])
    header = ["", *(f"{what}, {n}" for n in counts for what in ("s", "MiB")), "s per image", "outside the network"]
    caption = (
        "s: seconds of the whole process, start included; MiB: its peak memory; s per image: seconds for one more "
        "image; outside the network: s per image less the time of the network alone"
    )
    return Table("Cut-outs of photographs, on the CPU", header, rows, caption=caption)


def main(
    model: Annotated[Path, typer.Argument(help="ONNX file with a contract, which rembg's u2net_custom can run too")],
    photos: Annotated[Path, typer.Option(help="folder of photographs")],
    images: Annotated[str, typer.Option(help="numbers of images, with commas between them")] = "1,200",
    checkpoint: Annotated[
        Path | None, typer.Option(help="weights of InSPyReNet (Swin-B, 384) for the last two rows; random by default")
    ] = None,
    output: Annotated[Path, typer.Option(help="folder for the record, the tables and the logs")] = Path("out/beside"),
    environment: Annotated[Path, typer.Option(help="environment of the other tools; made where it is missing")] = Path(
        "out/beside/environment"
    ),
) -> None:
    """Measure ours beside rembg and transparent-background."""
    try:
        counts = sorted({int(part) for part in images.split(",")})
    except ValueError:
        raise UserError(f"--images {images}: write numbers with commas between them, for example 1,200") from None
    if counts[0] < 1:
        raise UserError(f"--images {images}: the least is 1")
    output.mkdir(parents=True, exist_ok=True)
    measured = compare(model, photos, output, counts, checkpoint, environment)
    made = table(measured, counts)
    record = [asdict(one) | {"costs": {n: cost._asdict() for n, cost in one.costs.items()}} for one in measured]
    write_text(output / "beside_rembg.json", json.dumps(record, indent=1) + "\n")
    write_text(output / "beside_rembg.md", to_markdown(made))
    show([made])


if __name__ == "__main__":
    command_line.run(main)
