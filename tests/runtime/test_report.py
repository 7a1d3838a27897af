"""Tables keep every digit, whatever the width."""

import pytest
from rich.console import Console

from runtime import report
from runtime.report import Table, show, to_markdown

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
