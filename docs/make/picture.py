"""The picture of the house: the demo's stages from left to right, and below them the rooms with their imports.

Everything in it is read from the code: the stages and their descriptions from the front door's table, the way through
them from the demo's own calls, the arrows between rooms from the import statements.
"""

import ast
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from sodeploy.stages import STAGES, stage_named

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("sodeploy", "calib_data", "runtime", "quant", "training", "export")
FRONT_DOOR = {
    "__init__.py",
    "__main__.py",
    "demo.py",
    "run.py",
    "experiment.py",
    "experiment_summary.py",
    "verify.py",
}  # they import every room, as a front door does

_COLORS = {
    "sodeploy": "#eceff1",
    "calib_data": "#e8f5e9",
    "runtime": "#e3f2fd",
    "quant": "#fff3e0",
    "training": "#f3e5f5",
    "export": "#fce4ec",
}
_WIDTH, _MARGIN = 1180, 20
_LETTER = 6.3  # width of a letter of 12 px, in px, on average


def room_of(stage: str) -> str:
    """The room that a stage's module lies in."""
    return STAGES[stage].script.partition("/")[0]


def imports() -> dict[str, set[str]]:
    """Room -> the other rooms that its files import."""
    found = {}
    for room in ROOMS:
        modules: set[str] = set()
        for path in (ROOT / room).rglob("*.py"):
            if not (room == "sodeploy" and path.name in FRONT_DOOR):
                modules |= _modules(path)
        parts = [module.split(".") for module in modules if module.split(".")[0] == "sodeploy"]
        rooms = {part[1] if len(part) > 1 and part[1] in ROOMS else "sodeploy" for part in parts}
        found[room] = rooms - {room}
    return found


def nearest_imports() -> dict[str, list[str]]:
    """`imports` without the rooms that an imported room imports itself."""
    every = imports()
    return {
        room: [one for one in ROOMS if one in those and not any(one in every[other] for other in those)]
        for room, those in every.items()
    }


def demo_stages() -> list[str]:
    """The stages that the demo goes through, in its order: the first word of each command that it prints."""
    tree = ast.parse((ROOT / "sodeploy" / "demo.py").read_text(encoding="utf-8"))
    words = [
        (node.lineno, stage_named(str(node.elts[0].value)))
        for node in ast.walk(tree)
        if isinstance(node, ast.List) and node.elts and isinstance(node.elts[0], ast.Constant)
    ]
    return [stage for _, stage in sorted(words, key=lambda found: found[0]) if stage is not None]


def draw() -> str:
    """The picture as SVG."""
    parts: list[str] = []
    bottom = _way(parts, demo_stages(), top=_MARGIN)
    bottom = _house(parts, top=bottom + 34)
    return _document(parts, bottom + _MARGIN)


def _way(parts: list[str], stages: Sequence[str], top: float) -> float:
    """The demo's stages in a row; returns where the row ends."""
    parts.append(_text(_MARGIN, top + 16, "The way of the data, as the demo walks it", "title"))
    gap = 34.0
    width = (_WIDTH - 2 * _MARGIN - gap * (len(stages) - 1)) / len(stages)
    texts = [_wrapped(STAGES[stage].does, width - 20) for stage in stages]
    height = 42 + 16 * max(map(len, texts))
    y = top + 30
    for index, (stage, lines) in enumerate(zip(stages, texts, strict=True)):
        x = _MARGIN + index * (width + gap)
        parts.append(_box(x, y, width, height, _COLORS[room_of(stage)]))
        parts.append(_text(x + 10, y + 22, stage, "stage"))
        parts.append(_text(x + width - 10, y + 22, f"{room_of(stage)}/", "room", anchor="end"))
        parts += [_text(x + 10, y + 44 + 16 * row, line) for row, line in enumerate(lines)]
        if index:
            parts.append(_arrow(x - gap + 4, y + height / 2, x - 6, y + height / 2))
    return y + height


def _house(parts: list[str], top: float) -> float:
    """The rooms in the order of their imports; returns where they end."""
    title = "The rooms and their stages; an arrow runs from a room to what it imports"
    parts.append(_text(_MARGIN, top + 16, title, "title"))
    gap = 16.0
    width = (_WIDTH - 2 * _MARGIN - gap * (len(ROOMS) - 1)) / len(ROOMS)
    places = {room: _MARGIN + index * (width + gap) for index, room in enumerate(ROOMS)}
    y = top + 96
    heights: dict[str, float] = {}
    contents: list[str] = []
    for room, x in places.items():
        rows: list[str] = []
        inside = y + 46
        for stage in (stage for stage in STAGES if room_of(stage) == room):
            rows.append(_text(x + 10, inside, stage, "stage"))
            for line in _wrapped(STAGES[stage].does, width - 20):
                inside += 15
                rows.append(_text(x + 10, inside, line))
            inside += 24
        heights[room] = inside - y - 8
        contents += [_text(x + width / 2, y + 22, f"{room}/", "name", anchor="middle"), *rows]
    tallest = max(heights.values())
    parts += [_box(x, y, width, tallest, _COLORS[room]) for room, x in places.items()]
    parts += contents
    order = {room: index for index, room in enumerate(ROOMS)}
    for room, those in nearest_imports().items():
        for one in those:
            start, end = places[room] + width * 0.4, places[one] + width * 0.6
            rise = 18 + 14 * (order[room] - order[one])
            parts.append(_arc(start, end, y - 4, rise))
    return y + tallest


def _document(parts: Iterable[str], height: float) -> str:
    style = (
        "text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:#37474f}"
        ".title{font-size:14px;font-weight:600;fill:#263238}.stage{font-size:13px;font-weight:600;fill:#0d47a1}"
        ".room{font-size:11px;fill:#78909c}.name{font-size:14px;font-weight:700;fill:#263238}"
    )
    arrow = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#546e7a"/></marker></defs>'
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" '
        f'height="{height:.0f}" role="img" aria-label="The stages of the demo, and the rooms with their imports">'
    )
    white = f'<rect width="{_WIDTH}" height="{height:.0f}" rx="8" fill="#ffffff"/>'
    return "\n".join([head, f"<style>{style}</style>", arrow, white, *parts, "</svg>", ""])


def _modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _wrapped(text: str, width: float) -> list[str]:
    return textwrap.wrap(text.replace("->", "→").replace(" x ", " × "), int(width / _LETTER))


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.0f}" y="{y:.0f}"{named} text-anchor="{anchor}">{escape(text)}</text>'


def _box(x: float, y: float, width: float, height: float, color: str) -> str:
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="7" fill="{color}" '
        'stroke="#b0bec5"/>'
    )


def _arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    return _path(f"M{x:.0f} {y:.0f}L{to_x:.0f} {to_y:.0f}")


def _arc(x: float, to_x: float, y: float, rise: float) -> str:
    return _path(f"M{x:.0f} {y:.0f}C{x:.0f} {y - rise:.0f} {to_x:.0f} {y - rise:.0f} {to_x:.0f} {y:.0f}")


def _path(line: str) -> str:
    return f'<path d="{line}" fill="none" stroke="#546e7a" stroke-width="1.4" marker-end="url(#head)"/>'
