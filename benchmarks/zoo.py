"""Signal to noise of every graph for every kind of layer and opset of the zoo (tests/zoo), in one table.

    python benchmarks/zoo.py [KIND ...] [--json zoo.json]

Each small network is adopted, calibrated on drawn images and built; its graphs are compared with the original file on
other drawn images. A figure below 20 dB (fp16: 35 dB) stands with the reasons that the plan gives, and the command then
ends with exit status 1 if the plan gives none.
"""

import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the zoo is a part of the tests

from sodeploy import command_line, terminal
from sodeploy.artifacts import write_text
from sodeploy.errors import UserError
from sodeploy.runtime.measure.report import Table, show
from tests.zoo.kinds import KINDS
from tests.zoo.measure import LEAST_DB, TARGETS, Measured, measure


def table(found: dict[str, Measured | str]) -> Table:
    """A row per kind; the reasons of the plan where a figure is low."""
    rows = []
    for name, measured in found.items():
        if isinstance(measured, str):
            rows.append([name, *[""] * len(TARGETS), f"refused: {measured}"])
        else:
            figures = [f"{measured.decibels[target]:.1f}" for target in TARGETS]
            rows.append([name, *figures, "; ".join(measured.reasons) if measured.low else ""])
    least = ", ".join(f"{target} {value:.0f}" for target, value in LEAST_DB.items())
    return Table(
        f"Signal to noise of the map in dB, to the original file; {len(rows)} networks",
        ["kind", *TARGETS, "reasons in the plan"],
        rows,
        1,
        caption=f"Reasons stand where a figure is below the least of a healthy network: {least} dB.",
    )


def record(found: dict[str, Measured | str]) -> dict[str, Any]:
    """Kind -> its figures, and the reasons where one is low; or why it was refused."""
    kinds: dict[str, Any] = {}
    for name, measured in found.items():
        if isinstance(measured, str):
            kinds[name] = {"refused": measured}
        else:
            kinds[name] = {"decibels": measured.decibels, "reasons": measured.reasons if measured.low else []}
    return {"least": LEAST_DB, "kinds": kinds}


def main(
    kinds: Annotated[list[str] | None, typer.Argument(help="only these kinds; all by default")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures here too")] = None,
) -> None:
    """Print the signal to noise ratio of every graph of every network of the zoo."""
    unknown = sorted(set(kinds or ()) - KINDS.keys())
    if unknown:
        raise UserError(f"the zoo has no kind {unknown[0]!r}; it has: {'; '.join(KINDS)}")
    logging.getLogger("sodeploy").setLevel(logging.ERROR)  # the notes of the builds
    found: dict[str, Measured | str] = {}
    for name in terminal.progress(kinds or list(KINDS), "building the zoo"):
        with tempfile.TemporaryDirectory() as folder:
            try:
                found[name] = measure(KINDS[name], Path(folder))
            except UserError as reason:
                found[name] = str(reason).replace(folder, "")
    show([table(found)])
    if json_file is not None:
        write_text(json_file, json.dumps(record(found), indent=1, ensure_ascii=False) + "\n")
    if any(isinstance(one, str) or (one.low and not one.reasons) for one in found.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    command_line.run(main)
