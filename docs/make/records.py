"""Tables made from what commands recorded in docs/records, and from the tables of the code."""

import json
from dataclasses import replace
from pathlib import Path

from sodeploy.quant.emit.targets import TARGETS
from sodeploy.runtime.measure.metrics import METRICS
from sodeploy.runtime.measure.record import read_bench
from sodeploy.runtime.measure.report import Table, bench_tables, to_markdown
from sodeploy.training import networks as network_table

NOT_MEASURED = "Not measured yet."
RECORDS = Path(__file__).resolve().parents[1] / "records"


def demo(part: str) -> str:
    """The measurements of the demo: `delta`, its first table; `tables`, all; `advice`, the sentences below them."""
    return _bench("demo.json", part)


def methods(part: str) -> str:
    """The measurements of benchmarks/methods.py; parts as in `demo`."""
    return _bench("methods.json", part)


def zoo() -> str:
    """The measurements of benchmarks/zoo.py: a row per kind of layer, and the plan's reasons for low figures."""
    path = RECORDS / "zoo.json"
    if not path.exists():
        return NOT_MEASURED
    record = json.loads(path.read_text())
    header = ["kind", *record["least"], "reasons in the plan"]
    rows = []
    for name, found in record["kinds"].items():
        figures = [f"{found['decibels'][target]:.1f}" if "decibels" in found else "" for target in record["least"]]
        rows.append(
            [name, *figures, f"refused: {found['refused']}" if "refused" in found else "; ".join(found["reasons"])]
        )
    text = _plain(header, rows)
    least = ", ".join(f"{target} {value:.0f}" for target, value in record["least"].items())
    return f"{text.rstrip()}\n\n- reasons stand where a figure is below the least of a healthy network: {least} dB"


def code_bound() -> str:
    """The figures of benchmarks/code_bound.py: a row per chain of kernels, microseconds for an image."""
    path = RECORDS / "code_bound.json"
    if not path.exists():
        return NOT_MEASURED
    record = json.loads(path.read_text())
    header = ["kernels", "network", "floor", "issue before", "issue", "issue allows %", "busiest unit allows %"]
    rows = []
    for row in record["rows"]:
        figures = [f"{row[name]:.2f}" if name in row else "" for name in ("floor us", "issue us before", "issue us")]
        rows.append([row["kernels"], row["network"], *figures, str(row["issue allows %"]), str(row["unit allows %"])])
    model = record["model"]
    return (
        f"{_plain(header, rows).rstrip()}\n\n- us for one image of 1920x1080, of a model for {model['code']} at "
        f"{model['clock Hz'] / 1e9:g} GHz with {model['multiprocessors']} multiprocessors and a copy bandwidth of "
        f"{model['copy bytes/s'] / 1e12:g} TB/s; goal: {record['goal %']} %; code by {record['compiler']}"
    )


def networks() -> str:
    """Every network with its size, parameters and multiply-accumulates."""
    rows = [
        [row.name, f"{row.height}x{row.width}", f"{row.parameters / 1e6:.3f}", f"{row.macs / 1e9:.3f}"]
        for row in network_table.table()
    ]
    return _plain(["network", "input", "parameters (M)", "MACs (G)"], rows)


def targets() -> str:
    """The graphs that a build writes."""
    rows = [[f"`NAME{target.suffix}`", target.precision, target.runs_on] for target in TARGETS]
    return _plain(["file", "precision", "runs on"], rows, 3)


def metrics() -> str:
    """Every metric with its name in options, records and recipes."""
    rows = [
        [metric.label, f"`{key}`", "lower" if metric.lower_is_better else "higher", "yes" if metric.by_default else ""]
        for key, metric in METRICS.items()
    ]
    return _plain(["name in tables", "key", "better is", "by default"], rows, 4)


def _bench(name: str, part: str) -> str:
    if not (RECORDS / name).exists():
        return NOT_MEASURED
    record = read_bench(RECORDS / name)
    if part == "advice":
        return "\n".join(f"- {sentence}" for sentence in record.recommendation.text)
    made = bench_tables(record)
    return tables(made if part == "tables" else made[:1])


def tables(made: list[Table]) -> str:
    """Tables as Markdown, a line of a caption per list item."""
    return "\n".join(to_markdown(replace(table, caption=_as_list(table.caption))) for table in made)


def _as_list(caption: str) -> str:
    """A line of a caption per item; a star at its beginning stays a star."""
    return "\n".join(f"- {line.replace('*', chr(92) + '*')}" for line in caption.splitlines() if line)


def _plain(header: list[str], rows: list[list[str]], text_columns: int = 1) -> str:
    """A Markdown table without its title."""
    return to_markdown(Table("", header, rows, text_columns)).partition("\n\n")[2]
