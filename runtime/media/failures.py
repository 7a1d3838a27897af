"""A list of the sources that have no output, for a program that tries them again."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

from sodeploy.artifacts import write_text
from sodeploy.errors import UserError

SUFFIXES = (".json", ".csv")


def check_failures(path: Path) -> None:
    """Refuse a file name whose suffix is none of `SUFFIXES`.

    Raises:
        UserError: that is so.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--failures {path}: the list is written as .json or .csv; give such a name")


def write_failures(path: Path, failed: Mapping[Path, str]) -> None:
    """Write source and reason of every failure; an empty list where there is none.

    Raises:
        UserError: the suffix is none of `SUFFIXES`.
        OSError: the file cannot be written.
    """
    check_failures(path)
    rows = [{"source": str(source), "reason": reason} for source, reason in failed.items()]
    if path.suffix.lower() == ".json":
        write_text(path, json.dumps(rows, indent=2) + "\n")
        return
    text = io.StringIO()
    table = csv.DictWriter(text, ["source", "reason"], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())
