"""Write the README's performance section, between two marker lines, and the page benchmarks/results/README.md, which
says what has not been measured on a GPU. Both come from the reports in benchmarks/results and from nothing else.

    python benchmarks/performance_section.py README.md
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from gpu_check import PARTS, RESULTS, table
from kernel_times import JUDGED

from sodeploy import command_line
from sodeploy.artifacts import require_file, write_text

sys.path.append(str(Path(__file__).resolve().parent.parent / "docs" / "make"))
import marked

BEGIN, END = marked.markers("performance")
_HOW = (
    "`make gpu-check` on a machine with an NVIDIA GPU measures all of it; this text is generated from what it writes."
)
_IN_README = ("Accuracy", "End to end")


def section(results: Path = RESULTS, whole: bool = False) -> str:
    """The newest report of each GPU as Markdown, and what no GPU has been measured on yet.

    Args:
        whole: all parts, not only those that the README shows.
    """
    reports = _newest(results)
    lacking = [f"- {name}: {shows}" for name, shows in PARTS.items() if not _measured(reports, name)]
    waiting = ["Awaiting a GPU:\n\n" + "\n".join(lacking), _HOW] if lacking else []
    return "\n\n".join([*(_report(record, tuple(PARTS) if whole else _IN_README) for record in reports), *waiting])


def page(results: Path = RESULTS) -> str:
    """The page of the results folder: measurements per GPU, and those still missing."""
    reports = _newest(results)
    rows = [
        {"part": name, "what it shows": shows, "measured on": ", ".join(_measured(reports, name)) or "**awaits a GPU**"}
        for name, shows in PARTS.items()
    ]
    return f"# Measured on GPUs\n\n{table(rows)}\n\n{_HOW}\n"


def _newest(results: Path) -> list[dict[str, Any]]:
    """The newest report of each GPU, by its name."""
    newest: dict[str, dict[str, Any]] = {}
    for path in sorted(results.glob("*.json")):
        record = json.loads(path.read_text())
        if record["date"] >= newest.get(record["gpu"], record)["date"]:
            newest[record["gpu"]] = record
    return [record for _, record in sorted(newest.items())]


def _measured(reports: list[dict[str, Any]], name: str) -> list[str]:
    """The GPUs on which a part has been measured."""
    measured = [{part["name"] for part in record["parts"] if part["status"] == "measured"} for record in reports]
    return [record["gpu"] for record, parts in zip(reports, measured, strict=True) if name in parts]


def _report(record: dict[str, Any], shown: Sequence[str]) -> str:
    lines = [
        f"### {record['gpu']}, {record['date']}",
        ", ".join(f"{k} {v}" for k, v in record["versions"].items()) + ".",
    ]
    for part in record["parts"]:
        if part["name"] not in shown:
            continue
        if rows := [row for row in part["rows"] if _judged(row)]:
            lines += [f"**{part['name']}**", table(rows), *part["notes"]]
        if part["status"] != "measured":
            lines.append(f"{part['name']}: {part['status']}, {part['reason']}.")
    return "\n\n".join(lines)


def _judged(row: dict[str, Any]) -> bool:
    """Of the kernels, those that the goal is for; the report beside the record has all."""
    (height, width), count = JUDGED
    return "kernels" not in row or (row["image"], row["batch"]) == (f"{width}x{height}", count)


def main(readme: Annotated[Path, typer.Argument(help="file with the two marker lines")]) -> None:
    """Bring the performance section and the page of the results up to date."""
    text = require_file(readme, "give the README").read_text()
    write_text(readme, marked.replace(text, "performance", section(), readme))
    write_text(RESULTS / "README.md", page())


if __name__ == "__main__":
    command_line.run(main)
