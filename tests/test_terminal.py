"""What is printed is what was meant."""

import pickle

import pytest

from sodeploy import terminal
from sodeploy.command_line import application_of, errors_in_one_line
from sodeploy.errors import Stopped, UserError, first_few
from sodeploy.runtime.measure.report import Table, show
from sodeploy.terminal import Step


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


def test_lines_name_the_state_and_the_time_that_is_left(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.0, 0.0, 6.0, 7.0, 12.0, 12.5])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    lines = terminal._Lines()
    lines(Step("calibrating", 10, 30))
    lines(Step("training", 0, None))
    lines(Step("calibrating", 11, 30))
    lines(Step("calibrating", 13, 30, remark="loss 0.5"))
    lines(Step("training", 1, None))
    lines(Step("calibrating", 30, 30))
    lines(Step("calibrating", 30, 30, finished=True))
    assert capsys.readouterr().err.splitlines() == [
        "calibrating: 13/30, loss 0.5, 0:00:34 left",
        "training: 1",
        "calibrating: 30/30, 0:00:00 left",
        "calibrating: 30/30",
    ]


def test_progress_counts_on_from_an_earlier_run_and_asks_for_remarks_only_when_watched() -> None:
    asked, steps = [], []
    before = terminal.on_progress(None)
    try:
        list(terminal.progress("ab", "silent", remark=lambda: asked.append(1) or ""))
        assert not asked
        terminal.on_progress(steps.append)
        list(terminal.progress(iter("ab"), "again", 5, done=3, remark=lambda: "loss 1"))
    finally:
        terminal.on_progress(before)
    assert [(step.done, step.total, step.finished, step.remark) for step in steps] == [
        (3, 5, False, "loss 1"),
        (4, 5, False, "loss 1"),
        (5, 5, False, "loss 1"),
        (5, 5, True, "loss 1"),
    ]


@pytest.mark.parametrize(("options", "expected"), [((), "a note\n"), (("-q",), ""), (("-v",), "a note\nmore\n")])
def test_how_much_a_command_prints(options: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture) -> None:
    def main() -> None:
        terminal.note("a note")
        terminal.debug("more")

    before = terminal.on_progress(None)
    printers = terminal.logger.handlers[1:]  # of the tests themselves
    for printer in printers:
        terminal.logger.removeHandler(printer)
    application_of(main)(options, standalone_mode=False)
    for printer in printers:
        terminal.logger.addHandler(printer)
    terminal.on_progress(before)
    assert capsys.readouterr().err == expected


def test_quiet_and_verbose_exclude_each_other() -> None:
    with pytest.raises(UserError, match="--quiet and --verbose exclude each other"):
        application_of(lambda: None)(("-q", "-v"), standalone_mode=False)


def test_work_that_was_saved_says_how_to_go_on_in_one_line(capsys: pytest.CaptureFixture) -> None:
    def main() -> None:
        raise Stopped("terminated after step 3; --resume continues", 143)

    with pytest.raises(SystemExit) as end, errors_in_one_line():
        application_of(main)(())
    assert end.value.code == 143
    assert capsys.readouterr().err == "error: terminated after step 3; --resume continues\n"


def test_a_table_does_not_take_names_for_emoji(capsys: pytest.CaptureFixture) -> None:
    show([Table("data", ["set"], [["synthetic:train:64"]])])
    assert "synthetic:train:64" in capsys.readouterr().out


def test_the_first_of_many_reasons() -> None:
    assert first_few(["a", "b", "c"], "; ") == "a; b; c"
    assert first_few(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
