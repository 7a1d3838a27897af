"""Write the README's performance section from the reports in benchmarks/results, and from nothing else.

    python benchmarks/performance_section.py README.md

Replaces what stands between the two marker lines.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from gpu_check import RESULTS, table

from sodeploy import terminal
from sodeploy.artifacts import require_file, write_text
from sodeploy.errors import UserError

BEGIN, END = "<!-- performance: begin -->", "<!-- performance: end -->"
_NOTHING_YET = """\
No GPU has been measured yet. `make gpu-check` on a machine with an NVIDIA GPU times the kernels against copy bandwidth,
pre- and post-processing against OpenCV and PyTorch, and the pipeline against the usual way; this section is then
generated from its results."""
_PARTS = ("Kernels", "Pre- and post-processing", "End to end")


def section(results: Path = RESULTS) -> str:
    """The newest report of each GPU as Markdown; without any, what is still to be measured."""
    newest: dict[str, dict[str, Any]] = {}
    for path in sorted(results.glob("*.json")):
        record = json.loads(path.read_text())
        if record["date"] >= newest.get(record["gpu"], record)["date"]:
            newest[record["gpu"]] = record
    if not newest:
        return _NOTHING_YET
    return "\n\n".join(_report(record) for _, record in sorted(newest.items()))


def _report(record: dict[str, Any]) -> str:
    lines = [f"### {record['gpu']}, {record['date']}"]
    for part in record["parts"]:
        if part["name"] not in _PARTS:
            continue
        if part["rows"]:
            lines += [f"**{part['name']}**", table(part["rows"])]
        if part["status"] != "measured":
            lines.append(f"{part['name']}: {part['status']}, {part['reason']}.")
    return "\n\n".join(lines)


def main(readme: Annotated[Path, typer.Argument(help="file with the two marker lines")]) -> None:
    """Bring the performance section up to date."""
    text = require_file(readme, "give the README").read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{readme} lacks the lines {BEGIN} and {END}; put them where the section belongs")
    write_text(readme, f"{before}{BEGIN}\n{section()}\n{END}{after}")


if __name__ == "__main__":
    terminal.run(main)
