"""Tables keep every digit, whatever the width."""

import pytest
from rich.console import Console

from sodeploy.runtime.measure import report
from sodeploy.runtime.measure.metrics import METRICS
from sodeploy.runtime.measure.report import Table, bench_tables, show, to_markdown

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
    row = {"model": "a.onnx", "metrics": dict.fromkeys(METRICS, 0.5), "calibrated_on": None}
    delta = {key: {"value": value, "ci95": [low, high]} for key in METRICS}
    record = {"rows": [{**row, "delta": delta}, {**row, "model": "b.onnx", "delta": delta}]}
    for row in record["rows"]:
        row |= {"network": "n", "precision": "fp32", "device": "cpu", "params_m": 1, "macs_g": 1, "size_mib": 1}
        row |= {
            "input_shape": [1],
            "latency_ms": {stage: {"p50": 1, "p90": 1, "p99": 1} for stage in ("pre", "infer", "post", "total")},
        }
    (_, difference, _) = bench_tables({**record, "dataset": "d", "images": 3, "threads": 1, "hardware": "h"})
    assert {cells[2] for cells in difference.rows} == {shown}
