"""The tables of a bench or an evaluation, for a terminal and as Markdown, from the record that the JSON holds."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from sodeploy import terminal
from sodeploy.runtime.measure.differences import FEWEST_IMAGES
from sodeploy.runtime.measure.metrics import METRICS

Record = dict[str, Any]  # what bench.py and evaluate.py document


@dataclass(frozen=True)
class Table:
    """A title, a header and rows of text; numbers are right-aligned in every column but the first `text_columns`."""

    title: str
    header: list[str]
    rows: list[list[str]]
    text_columns: int = 1
    caption: str = ""


def bench_tables(record: Record) -> list[Table]:
    """Accuracy, differences to the baseline if there is anything to compare with it, cost, and the GPU's part of it."""
    rows = record["rows"]
    names = dict(zip((row["model"] for row in rows), labels([row["model"] for row in rows]), strict=True))
    deltas = [_deltas(record, names)] if len(rows) > 1 else []
    on_gpu = [_on_gpu(record, names)] if any(row["device"] == "cuda" for row in rows) else []
    return [_accuracy(record, names), *deltas, _cost(record, names), *on_gpu]


def evaluation_table(record: Record) -> Table:
    """The nine metrics of each method on each data set, from the record that evaluate.py writes."""
    rows = [
        [row["dataset"], row["method"], str(row["images"]), *(decimal(row["metrics"][key]) for key in METRICS)]
        for row in record["rows"]
    ]
    return Table(
        "Accuracy",
        ["data set", "method", "images", *(metric.label for metric in METRICS.values())],
        rows,
        text_columns=2,
    )


def to_markdown(table: Table) -> str:
    """A GitHub-flavoured Markdown table under its title, ending in a newline."""
    rule = [":--" if column < table.text_columns else "--:" for column in range(len(table.header))]
    lines = [f"| {' | '.join(cells)} |" for cells in (table.header, rule, *table.rows)]
    caption = f"\n{table.caption}\n" if table.caption else ""
    return f"**{table.title}**\n\n" + "\n".join(lines) + "\n" + caption


def show(tables: Sequence[Table]) -> None:
    """Print tables on stdout; one that is too wide goes on below itself rather than losing digits."""
    wide = not terminal.results.is_terminal and "COLUMNS" not in os.environ
    console = Console(width=160, highlight=False) if wide else terminal.results
    for table in tables:
        console.print(table.title, style="bold", markup=False)
        for part in _fitting_parts(table, console.width):
            console.print(_rich(part))
        if table.caption:
            console.print(table.caption, style="dim", markup=False)
        console.print()


def _fitting_parts(table: Table, width: int) -> Iterator[Table]:
    """The table in parts at most `width` wide, each with the text columns and at least one more."""
    widths = [
        max(len(line) for text in (_stacked(name), *(row[column] for row in table.rows)) for line in text.split("\n"))
        for column, name in enumerate(table.header)
    ]
    text = list(range(table.text_columns))
    part = text.copy()
    for column in range(table.text_columns, len(table.header)):
        if part != text and sum(widths[shown] + 2 for shown in (*part, column)) + 1 > width:
            yield _select(table, part)
            part = text.copy()
        part.append(column)
    yield _select(table, part)


def _select(table: Table, columns: list[int]) -> Table:
    rows = [[row[column] for column in columns] for row in table.rows]
    return Table(table.title, [table.header[column] for column in columns], rows, table.text_columns)


def _rich(table: Table) -> RichTable:
    rendered = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column, name in enumerate(table.header):
        if column < table.text_columns:
            rendered.add_column(name, overflow="fold")
        else:
            rendered.add_column(_stacked(name), justify="right", no_wrap=True)
    for cells in table.rows:
        rendered.add_row(*map(escape, cells))
    return rendered


def _stacked(header: str) -> str:
    """A header of two words on two lines, which costs no width."""
    return header.replace(" ", "\n", 1)


def decimal(value: float, signed: bool = False) -> str:
    """Four decimals as papers write them: .0373, +.0012, -.0003; a difference that rounds to nothing is 0."""
    text = f"{value:+.4f}" if signed else f"{value:.4f}"
    if signed and float(text) == 0:
        return "0"
    return text.replace("0.", ".", 1) if abs(value) < 0.99995 else text


def labels(paths: Sequence[str]) -> list[str]:
    """What tables call each model or folder: its name without a model's suffix, as far as that tells them apart."""
    short = [re.sub(r"\.(onnx|engine|plan)$", "", path.rsplit("/", 1)[-1]) for path in paths]
    return [path if short.count(name) > 1 else name for name, path in zip(short, paths, strict=True)]


def _accuracy(record: Record, names: dict[str, str]) -> Table:
    rows = [
        [names[row["model"]], row["network"], row["precision"], *(decimal(row["metrics"][key]) for key in METRICS)]
        for row in record["rows"]
    ]
    return Table(
        f"Accuracy on {record['dataset']}, {record['images']} images",
        ["model", "network", "precision", *(metric.label for metric in METRICS.values())],
        rows,
        text_columns=3,
        caption="\n".join(_calibration_warnings(record, names)),
    )


def _calibration_warnings(record: Record, names: dict[str, str]) -> list[str]:
    return [
        f"{names[row['model']]} was calibrated on {row['calibrated_on']} of these images: its scores flatter it"
        for row in record["rows"]
        if row["calibrated_on"]
    ]


def _deltas(record: Record, names: dict[str, str]) -> Table:
    baseline, *others = record["rows"]
    rows = [
        [metric.label, decimal(baseline["metrics"][key]), *(interval(row["delta"][key]) for row in others)]
        for key, metric in METRICS.items()
    ]
    has_interval = all(delta["ci95"] for row in others for delta in row["delta"].values())
    how = "with 95 % interval (paired bootstrap over images)" if has_interval else "without interval"
    return Table(
        f"Difference to {names[baseline['model']]}, {how}",
        ["metric", "baseline", *(names[row["model"]] for row in others)],
        rows,
        caption="* the interval excludes zero: the difference is more than chance on images like these"
        if has_interval
        else f"an interval needs {FEWEST_IMAGES} or more images",
    )


def interval(delta: Record) -> str:
    """A difference {value, ci95} as `+.0012 [-.0003, +.0027]`, with a * before it if the interval excludes zero."""
    if delta["ci95"] is None:
        return decimal(delta["value"], signed=True)
    value, low, high = (decimal(number, signed=True) for number in (delta["value"], *delta["ci95"]))
    mark = "* " if low.startswith("+") or high.startswith("-") else ""  # as shown: what rounds to 0 is no difference
    return f"{mark}{value} [{low}, {high}]"


def _cost(record: Record, names: dict[str, str]) -> Table:
    stages = {"pre": "pre", "infer": "inference", "post": "post", "total": "total"}
    rows = []
    for row in record["rows"]:
        counts = ["-" if row[key] is None else f"{row[key]:.3f}" for key in ("params_m", "macs_g")]
        shape = "x".join(map(str, row["input_shape"]))
        spread = [_spread(row["latency_ms"][stage]) for stage in stages]
        rows.append([names[row["model"]], row["device"], *counts, shape, f"{row['size_mib']:.2f}", *spread])
    threads = f"{record['threads']} CPU thread{'s' if record['threads'] > 1 else ''}"
    caption = f"p50 / p90 / p99 in ms per image over {record['images']} images, models in turn, decoding not counted"
    batches = [
        f"{names[row['model']]} computes {row['input_shape'][0]} images whenever it is given one"
        for row in record["rows"]
        if row["input_shape"][0] not in (1, "N")
    ]
    return Table(
        f"Cost on {record['hardware']}, {threads}",
        ["model", "device", "params (M)", "MACs (G)", "input", "size (MiB)", *stages.values()],
        rows,
        text_columns=2,
        caption="\n".join([caption, *batches]),
    )


def _on_gpu(record: Record, names: dict[str, str]) -> Table:
    """What the cost table has no room for: copies, the CPU's share, and all images in batches."""
    stages = ("host", "upload", "download")
    rows = [
        [
            names[row["model"]],
            *(_spread(row["latency_ms"][stage]) for stage in stages),
            f"{row['images_per_s']:.1f}",
            f"{row['device_memory_mib']:.0f}",
        ]
        for row in record["rows"]
        if row["device"] == "cuda"
    ]
    caption = [
        "upload, pre, inference, post and download are GPU time; host is the CPU's, copying and enqueueing; total is "
        "from an image in memory to its map there",
        f"images/s are those of the pipeline in batches of {record['batch']}, reading counted",
    ]
    before, after = record["gpu"]["before"], record["gpu"]["after"]
    if before:
        caption.append("; ".join(f"{key} {value} -> {after.get(key, '?')}" for key, value in before.items()))
    return Table(
        "On the GPU",
        ["model", "host", "upload", "download", "images/s", "memory (MiB)"],
        rows,
        caption="\n".join(caption),
    )


def _spread(times: Record) -> str:
    values = (times[key] for key in ("p50", "p90", "p99"))
    return " / ".join(f"{value:.2f}" if value < 10 else f"{value:.1f}" for value in values)
