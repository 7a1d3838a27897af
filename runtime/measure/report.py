"""The tables of a bench or an evaluation, for a terminal and as Markdown, from its record."""

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from sodeploy import terminal
from sodeploy.runtime.measure.differences import FEWEST_IMAGES
from sodeploy.runtime.measure.metrics import METRICS, left_out_in_words
from sodeploy.runtime.measure.record import BenchRecord, Difference, EvaluationRecord, Percentiles, Row


@dataclass(frozen=True)
class Table:
    """A title, a header and rows of text.

    Attributes:
        text_columns: the first so many columns hold text; the others hold numbers and are right-aligned.
        caption: lines under the table.
        fold_text: in a narrow terminal, fold long text cells before the table is split.
        repeated: columns whose cells Markdown of more than 100 characters leaves empty where they equal the cell above.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    text_columns: int = 1
    caption: str = ""
    fold_text: bool = False
    repeated: tuple[int, ...] = ()


def bench_tables(record: BenchRecord) -> list[Table]:
    """The opening table, all metrics, differences to the baseline, cost, and the cost on the GPU.

    The table of differences needs a second model, the table of the GPU a model that ran there.
    """
    rows = record.rows
    deltas = [_deltas(record)] if len(rows) > 1 else []
    on_gpu = [_on_gpu(record)] if any(row.device == "cuda" for row in rows) else []
    return [_opening(record), _accuracy(record), *deltas, _cost(record), *on_gpu]


def evaluation_table(record: EvaluationRecord) -> Table:
    """All metrics of each method on each data set."""
    rows = [
        [row.dataset, row.method, str(row.images), *(decimal(value) for value in row.metrics.values())]
        for row in record.rows
    ]
    return Table(
        "Accuracy", ["data set", "method", "images", *_labels_of(record.rows[0].metrics)], rows, text_columns=2
    )


def to_markdown(table: Table) -> str:
    """A GitHub-flavoured Markdown table under its title, ending in a newline."""
    rule = [":--" if column < table.text_columns else "--:" for column in range(len(table.header))]
    lines, caption = _piped([table.header, rule, *table.rows]), table.caption
    if table.repeated and max(map(len, lines)) > _WIDE:
        lines = _piped([table.header, rule, *_without_repeats(table)])
        caption += "\nempty cell: the value of the row above"
    caption = f"\n{caption}\n" if caption else ""
    return f"**{table.title}**\n\n" + "\n".join(lines) + "\n" + caption


_WIDE = 100  # characters


def _piped(rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in rows]


def _without_repeats(table: Table) -> list[list[str]]:
    """The rows, with an empty cell in the columns `repeated` where the cell above is the same."""
    rows = [table.rows[0]]
    for above, row in zip(table.rows, table.rows[1:], strict=False):
        rows.append(["" if i in table.repeated and cell == above[i] else cell for i, cell in enumerate(row)])
    return rows


def show(tables: Sequence[Table]) -> None:
    """Print tables on stdout; one that is too wide goes on below itself rather than losing digits."""
    wide = not terminal.results.is_terminal and "COLUMNS" not in os.environ
    console = Console(width=160, highlight=False, emoji=False) if wide else terminal.results
    for table in tables:
        console.print(table.title, style="bold", markup=False)
        for part in _fitting_parts(table, console.width):
            console.print(_rich(part))
        if table.caption:
            console.print(table.caption, style="dim", markup=False)
        console.print()


_FOLDED = 9  # characters: the shortest line of a text cell that is folded


def _fitting_parts(table: Table, width: int) -> Iterator[Table]:
    """The table in parts at most `width` wide, each with the text columns and at least one more."""
    widths = [
        max(len(line) for text in (_stacked(name), *(row[column] for row in table.rows)) for line in text.split("\n"))
        for column, name in enumerate(table.header)
    ]
    if table.fold_text:
        widths = [
            min(needed, _FOLDED) if column < table.text_columns else needed for column, needed in enumerate(widths)
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
    header = [table.header[column] for column in columns]
    return Table(table.title, header, rows, table.text_columns, fold_text=table.fold_text)


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
    """The name of each model or folder in tables: without a model's suffix, or the path where two would be equal."""
    short = [re.sub(r"\.(onnx|engine|plan)$", "", path.rsplit("/", 1)[-1]) for path in paths]
    return [path if short.count(name) > 1 else name for name, path in zip(short, paths, strict=True)]


_HEADLINE = 3  # scores in the opening table where none of the usual ones was computed


def _opening(record: BenchRecord) -> Table:
    """The table that deployers know: each model with its cost, its accuracy, and the difference to the baseline."""
    baseline = record.rows[0]
    measured = [METRICS[key] for key in baseline.metrics]
    headline = [metric for metric in measured if metric.is_headline] or measured[:_HEADLINE]
    precisions = _precisions(record.rows)
    rows = []
    for row, precision in zip(record.rows, precisions, strict=True):
        costs = [_digits(row.published.flops_g), _digits(row.published.params_m)]
        scores = [decimal(row.metrics[metric.key]) for metric in headline]
        if row is not baseline:
            changes = (decimal(row.delta[metric.key].value, signed=True) for metric in headline)
            scores = [f"{score} {change}" for score, change in zip(scores, changes, strict=True)]
        rows.append([row.network, precision, *costs, *scores, "x".join(map(str, row.input_shape[1:]))])
    difference = [f"second number: difference to {baseline.network} {precisions[0]}"] if len(rows) > 1 else []
    caption = [
        *difference,
        "FLOPs: 2 x multiply-accumulates of the network as published (batch norms not folded), for one image",
        *_parameters_in_words(record.rows),
        *([left_out_in_words(record.left_out)] if record.left_out else []),
    ]
    return Table(
        f"{record.dataset}, {record.images} images",
        ["network", "precision", "FLOPs (G)", "params (M)", *(metric.label for metric in headline), "input"],
        rows,
        text_columns=2,
        caption="\n".join(caption),
        fold_text=True,
        repeated=(0, 2, 3, 4 + len(headline)),
    )


def _precisions(rows: Sequence[Row]) -> list[str]:
    """The precision and calibration method of each row, and its target, engine or file where two would be equal."""
    texts = [f"{row.precision} ({row.method})" if row.method else row.precision for row in rows]
    for further in ([row.engine for row in rows], [row.target for row in rows], [row.name for row in rows]):
        if len(set(further)) == 1:
            continue
        keys = [(row.network, *row.input_shape[1:], text) for row, text in zip(rows, texts, strict=True)]
        texts = [
            f"{text} {more}".rstrip() if keys.count(key) > 1 else text
            for text, more, key in zip(texts, further, keys, strict=True)
        ]
    return texts


def _parameters_in_words(rows: Sequence[Row]) -> Iterator[str]:
    """How the parameters in the opening table were counted, where they are known."""
    for how, words in (
        ("published", "as published, batch norms included"),
        ("graph", "counted in the graph, where batch norms may be folded into convolutions"),
    ):
        networks = dict.fromkeys(
            row.network for row in rows if row.published.params_as == how and row.published.params_m is not None
        )
        if networks:
            yield f"params of {', '.join(networks)}: {words}"
    if unknown := dict.fromkeys(row.network for row in rows if row.published.flops_g is None):
        yield f"-: not known for an engine of {', '.join(unknown)} alone; give its ONNX file too"


def _digits(value: float | None) -> str:
    """Four significant digits; - for an unknown value."""
    if value is None:
        return "-"
    if value < 0.001:
        return f"{value:.1e}" if value else "0"
    return f"{value:.{max(0, 3 - math.floor(math.log10(value)))}f}"


def _labels_of(keys: Iterable[str]) -> list[str]:
    return [METRICS[key].label for key in keys]


def _accuracy(record: BenchRecord) -> Table:
    rows = [
        [row.name, row.network, row.precision, *(decimal(value) for value in row.metrics.values())]
        for row in record.rows
    ]
    return Table(
        f"Accuracy on {record.dataset}, {record.images} images",
        ["model", "network", "precision", *_labels_of(record.rows[0].metrics)],
        rows,
        text_columns=3,
        caption="\n".join(_calibration_warnings(record)),
    )


def _calibration_warnings(record: BenchRecord) -> list[str]:
    return [
        f"{row.name} was calibrated on {row.calibrated_on} of these images: its scores flatter it"
        for row in record.rows
        if row.calibrated_on
    ]


def _deltas(record: BenchRecord) -> Table:
    baseline, *others = record.rows
    rows = [
        [METRICS[key].label, decimal(value), *(interval(row.delta[key]) for row in others)]
        for key, value in baseline.metrics.items()
    ]
    has_interval = all(delta.ci95 for row in others for delta in row.delta.values())
    how = "with 95 % interval (paired bootstrap over images)" if has_interval else "without interval"
    return Table(
        f"Difference to {baseline.name}, {how}",
        ["metric", "baseline", *(row.name for row in others)],
        rows,
        caption="* the interval excludes zero: the difference is more than chance on images like these"
        if has_interval
        else f"an interval needs {FEWEST_IMAGES} or more images",
    )


def interval(delta: Difference) -> str:
    """A difference {value, ci95} as `+.0012 [-.0003, +.0027]`, with a * before it if the interval excludes zero."""
    if delta.ci95 is None:
        return decimal(delta.value, signed=True)
    value, low, high = (decimal(number, signed=True) for number in (delta.value, *delta.ci95))
    mark = "* " if low.startswith("+") or high.startswith("-") else ""  # as shown: what rounds to 0 is no difference
    return f"{mark}{value} [{low}, {high}]"


def _cost(record: BenchRecord) -> Table:
    stages = {"pre": "pre", "infer": "inference", "post": "post", "total": "total"}
    rows = []
    for row in record.rows:
        counts = ["-" if count is None else f"{count:.3f}" for count in (row.params_m, row.macs_g)]
        shape = "x".join(map(str, row.input_shape))
        spread = [_spread(row.latency_ms[stage]) for stage in stages]
        rows.append([row.name, row.engine, *counts, shape, f"{row.size_mib:.2f}", *spread])
    threads = f"{record.threads} CPU thread{'s' if record.threads > 1 else ''}"
    timed = record.images if record.timed is None else f"the first {record.timed}"
    caption = f"p50 / p90 / p99 in ms per image over {timed} images, models in turn, decoding not counted"
    batches = [
        f"{row.name} computes {row.input_shape[0]} images whenever it is given one"
        for row in record.rows
        if row.input_shape[0] not in (1, "N")
    ]
    return Table(
        f"Cost on {record.hardware}, {threads}",
        ["model", "engine", "params (M)", "MACs (G)", "input", "size (MiB)", *stages.values()],
        rows,
        text_columns=2,
        caption="\n".join([caption, *batches]),
    )


def _on_gpu(record: BenchRecord) -> Table:
    """Further costs on a GPU: copies, CPU time, and throughput in batches."""
    stages = ("host", "upload", "download")
    rows = [
        [
            row.name,
            *(_spread(row.latency_ms[stage]) for stage in stages),
            f"{row.images_per_s:.1f}",
            f"{row.device_memory_mib:.0f}",
        ]
        for row in record.rows
        if row.device == "cuda"
    ]
    caption = [
        "upload, pre, inference, post and download are GPU time; host is the CPU's, copying and enqueueing; total is "
        "from an image in memory to its map there",
        f"images/s are those of the pipeline in batches of {record.batch}, reading counted",
    ]
    before, after = record.gpu.before, record.gpu.after
    if before:
        caption.append("; ".join(f"{key} {value} -> {after.get(key, '?')}" for key, value in before.items()))
    return Table(
        "On the GPU",
        ["model", "host", "upload", "download", "images/s", "memory (MiB)"],
        rows,
        caption="\n".join(caption),
    )


def _spread(times: Percentiles) -> str:
    values = (times.p50, times.p90, times.p99)
    return " / ".join(f"{value:.2f}" if value < 10 else f"{value:.1f}" for value in values)
