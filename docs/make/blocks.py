"""Rewrite everything in the documentation that is made from the code or from a command's record:

    python docs/make/blocks.py

That is every block between two marker lines (see marked.py) and the picture of the house. `make docs-text` runs it; a
test fails where a block is not what it would write. Nothing is measured here: docs/make/figures.py does that.
"""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import marked
import options
import picture
import recipe_keys
import records

from sodeploy import command_line, terminal
from sodeploy.artifacts import write_text
from sodeploy.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "images" / "house.svg"

sys.path.append(str(ROOT / "benchmarks"))  # whose records become tables

# The first word of a block's name -> what writes it, given the other words. A new kind of block costs one entry.
KINDS: dict[str, Callable[[str], str]] = {
    "options": options.tables,
    "recipe": lambda part: {
        "keys": recipe_keys.recipe,
        "augmentations": recipe_keys.augmentations,
        "optimizers": recipe_keys.optimizers,
        "schedules": recipe_keys.schedules,
        "losses": recipe_keys.losses,
    }[part](),
    "demo": records.demo,
    "methods": records.methods,
    "zoo": lambda _: records.zoo(),
    "networks": lambda _: records.networks(),
    "targets": lambda _: records.targets(),
    "metrics": lambda _: records.metrics(),
    "contract": lambda _: recipe_keys.contract(),
    "structure": lambda _: _structure(),
    "bound": lambda _: records.code_bound(),
    "performance": lambda part: _performance(whole=part == "all"),
    "cpu": lambda _: _benchmark("cpu_engines"),
    "rivals": lambda part: _benchmark("rivals", part or "tables"),
    "service": lambda part: _benchmark(part or "serve_load", module="serve_load"),
    "planning": lambda _: _benchmark("calibration_time"),
}


def pages() -> Iterator[Path]:
    """The Markdown files of the documentation."""
    yield from sorted(ROOT.glob("*.md"))
    yield from sorted((ROOT / "docs").rglob("*.md"))


def written(path: Path) -> str:
    """The text of a page with all its blocks as they should be.

    Raises:
        UserError: a block has an unknown name or no end.
    """
    return marked.rewritten(path.read_text(encoding="utf-8"), _write, path)


def _write(name: str) -> str:
    kind, _, rest = name.partition(" ")
    if kind not in KINDS:
        raise UserError(f"no block of the documentation is called {name!r}; known: {', '.join(KINDS)}")
    return KINDS[kind](rest)


def _performance(whole: bool) -> str:
    import performance_section

    return performance_section.section(whole=whole)


def _benchmark(name: str, part: str = "tables", module: str | None = None) -> str:
    """The tables that a benchmark makes of its record by the function `part`.

    Args:
        name: the record's name, without its suffix.
        module: the benchmark's name; by default the record's name.
    """
    path = records.RECORDS / f"{name}.json"
    if not path.exists():
        return records.NOT_MEASURED
    make = getattr(importlib.import_module(module or name), part)
    return records.tables(make(json.loads(path.read_text())))


def _structure() -> str:
    import structure

    from sodeploy.runtime.measure.report import to_markdown

    return to_markdown(structure.table(ROOT))


def main() -> None:
    """Bring every block and the picture up to date."""
    for path in pages():
        text = written(path)
        if text != path.read_text(encoding="utf-8"):
            write_text(path, text)
            terminal.note(f"wrote {path.relative_to(ROOT)}")
    drawn = picture.draw()
    if not PICTURE.exists() or PICTURE.read_text(encoding="utf-8") != drawn:
        write_text(PICTURE, drawn)
        terminal.note(f"wrote {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    command_line.run(main)
