"""Records of several runs in one file: an entry per network, so that a long measurement is made in several runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sodeploy.artifacts import write_text
from sodeploy.errors import UserError


def add(entries: Sequence[dict[str, Any]], file: Path) -> None:
    """Write entries to a file, behind those that it holds. One of the same `model` (its file's name) is replaced.

    Raises:
        UserError: the file is no such record.
    """
    new = {_name(entry) for entry in entries}
    try:
        before = json.loads(file.read_text()) if file.exists() else []
        kept = [entry for entry in before if _name(entry) not in new]
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{file} is no record of this benchmark; give another --json, or remove it") from None
    write_text(file, json.dumps([*kept, *entries], indent=1, ensure_ascii=False) + "\n")


def _name(entry: dict[str, Any]) -> str:
    return Path(entry["model"]).name
