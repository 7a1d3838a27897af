"""What is printed is what was meant."""

import pytest

from sodeploy import terminal


def test_names_of_data_sets_are_not_taken_for_emoji_or_markup(capsys: pytest.CaptureFixture) -> None:
    terminal.note("synthetic:train:64 [bold]")
    terminal.results.print("synthetic:train:64")
    printed = capsys.readouterr()
    assert printed.err == "synthetic:train:64 [bold]\n"
    assert printed.out == "synthetic:train:64\n"
