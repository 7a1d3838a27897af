"""Tables keep every digit, whatever the width."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

from sodeploy.errors import UserError
from sodeploy.runtime.measure import report
from sodeploy.runtime.measure.metrics import default_metrics
from sodeploy.runtime.measure.record import (
    Advice,
    BenchRecord,
    Difference,
    GpuStates,
    Percentiles,
    Published,
    Row,
    bench_schema,
    read_bench,
    to_json,
)
from sodeploy.runtime.measure.report import Table, bench_tables, labels, show, to_markdown

TABLE = Table(
    "A title",
    ["model", *(f"score {letter}" for letter in "abcdef")],
    [[name, *(f"{name[0]}{index}234567" for index in range(6))] for name in ("first", "second")],
    caption="a caption",
)


@pytest.mark.parametrize("width", [200, 60, 40, 20, 10])
def test_a_narrow_terminal_loses_no_digit(monkeypatch, width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"), force_terminal=True)  # noqa: SIM115
    monkeypatch.setattr(report.terminal, "results", console)
    show([TABLE])
    text = console.export_text()
    for row in TABLE.rows:
        for cell in row[1:]:
            assert cell in text or width == 10
    if width >= 20:
        assert all(len(line) <= width for line in text.splitlines())
        assert "…" not in text


def test_markdown_is_a_table_under_a_title():
    lines = to_markdown(TABLE).splitlines()
    assert lines[0] == "**A title**"
    assert lines[2].startswith("| model | score a |")
    assert lines[3] == "| :-- | --: | --: | --: | --: | --: | --: |"
    assert len(lines) == 8
    assert lines[-1] == "a caption"


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (-0.002, -0.003, -0.001, "* -.0020 [-.0030, -.0010]"),
        (0.002, -0.001, 0.004, "+.0020 [-.0010, +.0040]"),
        (3e-7, 1e-8, 6e-7, "0 [0, 0]"),
    ],
)
def test_only_a_difference_that_shows_is_marked(value: float, low: float, high: float, shown: str) -> None:
    delta = dict.fromkeys(default_metrics(), Difference(value=value, ci95=(low, high)))
    (_, _, difference, _) = bench_tables(record_of(row("a.onnx"), row("b.onnx", delta=delta)))
    assert {cells[2] for cells in difference.rows} == {shown}


def row(model: str, **fields: object) -> Row:
    """A row of a record with figures as of U²-Netp."""
    once = Percentiles(p50=1, p90=1, p99=1)
    usual = {
        "name": labels([model])[0], "engine": "onnxruntime",
        "model": model, "network": "u2netp", "precision": "fp32", "method": None, "target": "", "device": "cpu",
        "published": Published(params_m=1.131181, flops_g=39.5121792, params_as="published"), "params_m": 1.125,
        "macs_g": 19.756, "input_shape": [1, 3, 320, 320], "size_mib": 4.5,
        "metrics": dict.fromkeys(default_metrics(), 0.8373),
        "delta": dict.fromkeys(default_metrics(), Difference(value=-0.0012, ci95=(-0.002, 0.001))),
        "latency_ms": dict.fromkeys(("pre", "infer", "post", "total"), once),
        "time_ratio": Difference(value=1, ci95=None), "stand_in": "", "images_per_s": None, "device_memory_mib": None,
        "calibrated_on": None, "images": 300, "dataset": "eval",
    }  # fmt: skip
    return Row.model_validate(usual | fields)


def record_of(*rows: Row) -> BenchRecord:
    return BenchRecord(
        rows=list(rows), dataset="eval", images=300, left_out=[], threads=2, batch=8, hardware="a CPU",
        gpu=GpuStates(before={}, after={}), versions={},
        recommendation=Advice(budget=None, model=None, engine=None, int8_pays=None, text=[]),
    )  # fmt: skip


def test_the_opening_table_is_what_deployers_know_and_fits_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    large = Published(params_m=44.04679, flops_g=31.1858, params_as="published")
    wide = {"network": "isnet_dis", "published": large, "input_shape": [1, 3, 1024, 1024]}
    rows = [row("a.onnx", **wide), row("a.fp16.sim.onnx", precision="fp16", target="sim", **wide)]
    for target in ("sim", "cpu"):
        rows.append(row(f"a.int8.{target}.onnx", precision="int8", method="kl", target=target, **wide))
    opening = bench_tables(record_of(*rows))[0]
    assert opening.header == ["network", "precision", "FLOPs (G)", "params (M)", "MAE", "mean F", "S", "input"]
    assert opening.rows[0] == ["isnet_dis", "fp32", "31.19", "44.05", ".8373", ".8373", ".8373", "3x1024x1024"]
    assert opening.rows[1][:2] == ["isnet_dis", "fp16"]
    assert opening.rows[1][4] == ".8373 -.0012"
    assert [cells[1] for cells in opening.rows[2:]] == ["int8 (kl) sim", "int8 (kl) cpu"]
    assert "difference to isnet_dis fp32" in opening.caption
    assert "2 x multiply-accumulates" in opening.caption
    console = Console(width=100, record=True, file=open("/dev/null", "w"), force_terminal=True)  # noqa: SIM115
    monkeypatch.setattr(report.terminal, "results", console)
    show([opening])
    lines = console.export_text().splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert sum("31.19" in line and "3x1024x1024" in line for line in lines) == len(rows)  # one table, not two parts
    plain = to_markdown(bench_tables(record_of(rows[0], rows[1], row("b", precision="int8", method="kl", **wide)))[0])
    assert all(len(line) <= 100 for line in plain.splitlines())


def test_the_opening_table_in_markdown_fits_100_columns_for_every_network(repository: Path) -> None:
    signatures = json.loads((repository / "training" / "signatures.json").read_text())
    longest = max(signatures, key=len)
    published = Published(params_m=90.72123, flops_g=1234.5678, params_as="published")
    wide = {"network": longest, "published": published, "input_shape": [1, 3, 1024, 1024]}
    rows = [
        row(f"{precision}.onnx", precision=precision, method=method, engine=engine, **wide)
        for engine in ("onnxruntime", "openvino", "openvino-bf16")
        for precision, method in (("fp32", None), ("int8", "kl"))
    ]
    lines = to_markdown(bench_tables(record_of(*rows))[0]).splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert lines[4].startswith(f"| {longest} | fp32 onnxruntime | 1235 | 90.72 | .8373")
    assert lines[9] == "|  | int8 (kl) openvino-bf16 |  |  | .8373 -.0012 | .8373 -.0012 | .8373 -.0012 |  |"
    assert lines[-1] == "empty cell: the value of the row above"


def test_rows_stay_distinguishable() -> None:
    same = [row("x/a.onnx"), row("x/b.onnx")]
    assert [cells[1] for cells in bench_tables(record_of(*same))[0].rows] == ["fp32 a", "fp32 b"]


def test_an_engine_alone_has_unknown_flops() -> None:
    unknown = Published(params_m=None, flops_g=None, params_as="graph")
    opening = bench_tables(record_of(row("a.engine", published=unknown)))[0]
    assert opening.rows[0][2:4] == ["-", "-"]
    assert "not known for an engine of u2netp alone" in opening.caption


def test_the_schema_in_the_docs_is_current(repository: Path) -> None:
    """Write it anew: python runtime/measure/record.py > docs/bench-record.schema.json"""
    written = json.loads((repository / "docs" / "bench-record.schema.json").read_text())
    assert written == bench_schema()


def test_a_record_is_read_back_or_refused(tmp_path: Path) -> None:
    record = record_of(row("a.onnx"))
    (tmp_path / "bench.json").write_text(to_json(record))
    assert read_bench(tmp_path / "bench.json") == record
    (tmp_path / "bench.json").write_text('{"format": 1}')
    with pytest.raises(UserError, match=r"bench\.json: record field rows: Field required"):
        read_bench(tmp_path / "bench.json")
    with pytest.raises(ValidationError):
        row("a.onnx", metrics={"mae": float("nan")})
