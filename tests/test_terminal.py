"""What is printed is what was meant."""

import pickle

import pytest

from sodeploy import terminal
from sodeploy.errors import UserError


def test_names_of_data_sets_are_not_taken_for_emoji_or_markup(capsys: pytest.CaptureFixture) -> None:
    terminal.note("synthetic:train:64 [bold]")
    terminal.results.print("synthetic:train:64")
    printed = capsys.readouterr()
    assert printed.err == "synthetic:train:64 [bold]\n"
    assert printed.out == "synthetic:train:64\n"


def test_control_characters_in_a_users_error_are_escaped() -> None:
    error = UserError("a\x1b[31m\nb.onnx is broken")
    assert str(error) == "a\\x1b[31m b.onnx is broken"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
