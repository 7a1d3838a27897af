"""The tables of a bench, for a terminal and as Markdown, from the same record that its JSON holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table as RichTable

from runtime.metrics import LABELS

Record = dict[str, Any]  # what bench.py documents

_DELTA_COLUMNS = 4  # as many as 120 characters hold


@dataclass(frozen=True)
class Table:
    """A title, a header and rows of text; numbers are right-aligned in every column but the first `text_columns`."""

    title: str
    header: list[str]
    rows: list[list[str]]
    text_columns: int = 1
    caption: str = ""


def bench_tables(record: Record) -> list[Table]:
    """Accuracy, deltas to the baseline, and cost: the three tables of a bench."""
    rows = record["rows"]
    names = dict(zip((row["model"] for row in rows), labels([row["model"] for row in rows]), strict=True))
    return [_accuracy(record, names), *_deltas(record, names), _cost(record, names)]


def to_markdown(table: Table) -> str:
    """A GitHub-flavoured Markdown table under its title, ending in a newline."""
    rule = [":--" if column < table.text_columns else "--:" for column in range(len(table.header))]
    lines = [f"| {' | '.join(cells)} |" for cells in (table.header, rule, *table.rows)]
    caption = f"\n{table.caption}\n" if table.caption else ""
    return f"**{table.title}**\n\n" + "\n".join(lines) + "\n" + caption


def to_rich(table: Table) -> RichTable:
    """The table for a terminal."""
    rendered = RichTable(
        title=table.title,
        caption=table.caption or None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        caption_style="dim",
    )
    for column, name in enumerate(table.header):
        if column < table.text_columns:
            rendered.add_column(name, overflow="fold")
        else:
            rendered.add_column(name, justify="right", overflow="fold")
    for cells in table.rows:
        rendered.add_row(*(cell.replace("[", r"\[") for cell in cells))
    return rendered


def decimal(value: float, signed: bool = False) -> str:
    """Four decimals as papers write them: .0373, +.0012, -.0003; a difference that rounds to nothing is 0."""
    text = f"{value:+.4f}" if signed else f"{value:.4f}"
    if signed and float(text) == 0:
        return "0"
    return text.replace("0.", ".", 1) if abs(value) < 0.99995 else text


def labels(models: Sequence[str]) -> list[str]:
    """What tables call each model file: its name without folder and suffix, as far as that tells them apart."""
    short = [model.rsplit("/", 1)[-1].rsplit(".", 1)[0] for model in models]
    return [model if short.count(name) > 1 else name for name, model in zip(short, models, strict=True)]


def _accuracy(record: Record, names: dict[str, str]) -> Table:
    rows = [
        [names[row["model"]], row["network"], row["precision"], *(decimal(row["metrics"][key]) for key in LABELS)]
        for row in record["rows"]
    ]
    return Table(
        f"Accuracy on {record['dataset']}, {record['images']} images",
        ["model", "network", "precision", *LABELS.values()],
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


def _deltas(record: Record, names: dict[str, str]) -> list[Table]:
    baseline, *others = record["rows"]
    tables = []
    for start in range(0, len(others), _DELTA_COLUMNS):
        shown = others[start : start + _DELTA_COLUMNS]
        tables.append(
            Table(
                f"Difference to {names[baseline['model']]}, with 95 % interval (paired bootstrap over images)",
                ["metric", "baseline", *(names[row["model"]] for row in shown)],
                [
                    [label, decimal(baseline["metrics"][key]), *(_interval(row["delta"][key]) for row in shown)]
                    for key, label in LABELS.items()
                ],
                caption="* the interval excludes zero: more than chance on images like these",
            )
        )
    return tables


def _interval(delta: Record) -> str:
    low, high = delta["ci95"]
    mark = "* " if low > 0 or high < 0 else ""
    return f"{mark}{decimal(delta['value'], signed=True)} [{decimal(low, signed=True)}, {decimal(high, signed=True)}]"


def _cost(record: Record, names: dict[str, str]) -> Table:
    stages = {"pre": "pre", "infer": "inference", "post": "post", "total": "total"}
    rows = []
    for row in record["rows"]:
        cost = [f"{row['params_m']:.3f}", f"{row['macs_g']:.3f}", "x".join(map(str, row["input_shape"]))]
        spread = [_spread(row["latency_ms"][stage]) for stage in stages]
        rows.append([names[row["model"]], *cost, f"{row['size_mib']:.2f}", *spread])
    threads = f"{record['threads']} thread{'s' if record['threads'] > 1 else ''}"
    return Table(
        f"Cost on {record['hardware']}, {record['device']}, {threads}",
        ["model", "params (M)", "MACs (G)", "input", "MiB", *stages.values()],
        rows,
        caption=f"p50 / p99 in ms per image over {record['images']} images, models interleaved, decoding not counted",
    )


def _spread(times: Record) -> str:
    return f"{times['p50']:.1f} / {times['p99']:.1f}"
