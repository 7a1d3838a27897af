"""Count import arrows: how many files a reader must follow inside one room, and where imports run in a circle.

    python benchmarks/structure.py [--repository DIR] [--circles]

An arrow runs from a file to another file of the same room that it imports. A folder counts as one place to look: an
arrow between two folders counts once however many files it joins, and an arrow inside a folder is listed apart.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from sodeploy import command_line, terminal
from sodeploy.errors import UserError
from sodeploy.runtime.measure.report import Table, show, to_markdown

ROOMS = ("calib_data", "runtime", "quant", "training", "export")
HERE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Structure:
    """One room's imports; a file is named by its path below the room, without .py."""

    room: str
    arrows: frozenset[tuple[str, str]]  # file -> file

    @property
    def between_places(self) -> set[tuple[str, str]]:
        """Arrows between the room's files at the top and its folders, each folder as one."""
        places = {(one.partition("/")[0], other.partition("/")[0]) for one, other in self.arrows}
        return {(one, other) for one, other in places if one != other}

    @property
    def most_inside(self) -> int:
        """The most arrows inside one folder."""
        inside = [one.partition("/")[0] for one, other in self.arrows if _together(one, other)]
        return max((inside.count(folder) for folder in inside), default=0)


def structure(repository: Path, room: str) -> Structure:
    """Read the imports of every file of a room.

    Raises:
        UserError: there is no such folder.
    """
    root = repository / room
    if not root.is_dir():
        raise UserError(f"{root} does not exist; give the root of a checkout with --repository")
    files = {path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.py")}
    arrows = set()
    for name in files:
        for module in _imported(root / f"{name}.py"):
            parts = module.removeprefix("sodeploy.").split(".")
            target = "/".join(parts[1:])
            if parts[0] == room and target in files and target != name:
                arrows.add((name, target))
    return Structure(room, frozenset(arrows))


def circles(arrows: set[tuple[str, str]] | frozenset[tuple[str, str]]) -> list[list[str]]:
    """The groups of names that reach one another by arrows (strongly connected components of two and more)."""
    names = sorted({name for arrow in arrows for name in arrow})
    reach = {name: _reachable(name, arrows) for name in names}
    found = {tuple(sorted({name, *(o for o in reach[name] if name in reach[o])})) for name in names}
    return [list(group) for group in sorted(found) if len(group) > 1]


def _reachable(start: str, arrows: set[tuple[str, str]] | frozenset[tuple[str, str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        following = {other for one, other in arrows if one == name} - seen
        seen |= following
        waiting += following
    return seen


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _together(one: str, other: str) -> bool:
    return "/" in one and one.partition("/")[0] == other.partition("/")[0]


def table(repository: Path) -> Table:
    """A row per room."""
    rows = []
    for room in ROOMS:
        found = structure(repository, room)
        numbers = (
            len(found.arrows),
            len(found.between_places),
            found.most_inside,
            len(circles(found.arrows)),
            len(circles(found.between_places)),
        )
        rows.append([room, *map(str, numbers)])
    header = [
        "room",
        "arrows between files",
        "between places",
        "most inside a folder",
        "circles of files",
        "circles of places",
    ]
    return Table("Imports inside each room", header, rows)


def main(
    repository: Annotated[Path, typer.Option(help="root of the checkout to count in")] = HERE,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the table as Markdown")] = False,
    show_circles: Annotated[bool, typer.Option("--circles", help="name the members of each circle")] = False,
) -> None:
    """Count import arrows and circles in every room."""
    counted = table(repository)
    if markdown:
        terminal.results.print(to_markdown(counted), markup=False, soft_wrap=True, end="")
    else:
        show([counted])
    if show_circles:
        for room in ROOMS:
            for places in circles(structure(repository, room).between_places):
                terminal.results.print(f"{room}: {', '.join(places)}", markup=False)


if __name__ == "__main__":
    command_line.run(main)
