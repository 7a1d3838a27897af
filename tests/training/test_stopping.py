"""A run that a signal stops, or that becomes longer, ends on the bytes of a run that was never stopped."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sodeploy import artifacts
from sodeploy.errors import Stopped, UserError
from sodeploy.terminal import Step, on_progress
from sodeploy.training.train import train

RECIPE = """
network: u2net_tiny
train: synthetic:train:12:40
validation: {data: "synthetic:val:2:40", every: 4, best: mae}
size: 32
augment: [{name: flip}, {name: random_crop, size: 32}]
loss: {bce: 1}
optimizer: {name: adam, lr: 0.001}
batch: 4
steps: 6
workers: 0
log_every: 3
"""
SPEEDS = 3  # the last columns of loss.csv


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def _survivor() -> Iterator[None]:
    """A process that does not die of SIGTERM."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


def press(number: int, label: str, done: int, times: int = 1) -> None:
    """Send a signal to this process when the work of this label has done so many items."""

    def watch(step: Step) -> None:
        if (step.label, step.done, step.finished) == (label, done, False):
            for _ in range(times):
                os.kill(os.getpid(), number)

    on_progress(watch)


@pytest.fixture(autouse=True)
def _unwatched() -> Iterator[None]:
    before = on_progress(None)
    yield
    on_progress(before)


def losses(folder: Path) -> list[list[str]]:
    return [line.split(",")[:-SPEEDS] for line in (folder / "loss.csv").read_text().splitlines()]


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("last.pth", "best.pth", "scores.csv"):
        assert artifacts.sha256(one / name) == artifacts.sha256(other / name), name
    assert losses(one) == losses(other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "small.yaml").write_text(RECIPE)
    train(folder / "small.yaml", output=folder / "run")
    return folder / "run"


@pytest.mark.usefixtures("_survivor")
@pytest.mark.parametrize(
    ("number", "label", "done", "saved"),
    [
        (signal.SIGINT, "u2net_tiny", 1, 2),  # before the first validation, between two lines of loss.csv
        (signal.SIGTERM, "u2net_tiny", 3, 4),  # after a step, whose validation waits for the resumed run
        (signal.SIGTERM, "validating", 1, 4),
        (signal.SIGINT, "u2net_tiny", 4, 5),
    ],
)
def test_stopped_and_resumed_it_ends_on_the_same_bytes(
    recipe: Path, tmp_path: Path, whole: Path, number: int, label: str, done: int, saved: int
) -> None:
    press(number, label, done)
    how = rf"after step {saved}, which \S+last.pth holds; the same command with --resume continues from there"
    with pytest.raises(Stopped, match=how) as end:
        train(recipe, output=tmp_path / "run")
    assert end.value.status == 128 + number
    on_progress(None)
    assert torch.load(tmp_path / "run" / "last.pth", weights_only=True)["step"] == saved
    train(recipe, output=tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)


def test_the_second_ctrl_c_ends_at_once(recipe: Path, tmp_path: Path) -> None:
    press(signal.SIGINT, "u2net_tiny", 3, times=2)
    with pytest.raises(Stopped, match=r"^interrupted; \S+last.pth is intact; the same command with --resume") as end:
        train(recipe, output=tmp_path / "run", save_every=2)
    assert end.value.status == 130
    assert torch.load(tmp_path / "run" / "last.pth", weights_only=True)["step"] == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_library_call_leaves_the_end_by_sigterm_to_the_system(recipe: Path, tmp_path: Path) -> None:
    code = f"""
import os, signal
from sodeploy import on_progress, train
on_progress(lambda step: step.done == 1 and not step.finished and os.kill(os.getpid(), signal.SIGTERM))
train({str(recipe)!r}, output={str(tmp_path / "run")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, b"", b"")
    assert torch.load(tmp_path / "run" / "last.pth", weights_only=True)["step"] == 2


def test_the_state_is_saved_between_validations(recipe: Path, tmp_path: Path, whole: Path) -> None:
    found = []

    def watch(step: Step) -> None:
        last = tmp_path / "run" / "last.pth"
        if step.label == "u2net_tiny" and last.exists():
            found.append(torch.load(last, weights_only=True)["step"])

    on_progress(watch)
    train(recipe, output=tmp_path / "run", save_every=2)
    assert sorted(set(found)) == [2, 4, 6]
    assert_same_run(tmp_path / "run", whole)


def test_a_finished_run_becomes_longer(recipe: Path, tmp_path: Path, whole: Path) -> None:
    train(recipe, output=tmp_path / "run", steps=4)
    train(recipe, output=tmp_path / "run", resume=True, epochs=2)  # 12 images twice, 4 in a step: 6 steps
    for name in ("best.pth", "scores.csv"):  # last.pth also says how long the run is, in epochs here
        assert artifacts.sha256(tmp_path / "run" / name) == artifacts.sha256(whole / name)
    ours, theirs = (torch.load(run / "last.pth", weights_only=True) for run in (tmp_path / "run", whole))
    assert all(torch.equal(ours["state_dict"][key], theirs["state_dict"][key]) for key in theirs["state_dict"])
    with pytest.raises(UserError, match=r"holds step 6, beyond the 5 steps of the run; .*--steps 12"):
        train(recipe, output=tmp_path / "run", resume=True, steps=5)
    with pytest.raises(UserError, match="--steps and --epochs are both the length"):
        train(recipe, output=tmp_path / "run", resume=True, steps=5, epochs=1)


def test_a_schedule_spans_the_new_length(recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    schedule = ["schedule={name: polynomial, power: 1}"]
    train(recipe, output=tmp_path / "run", steps=2, overrides=schedule)
    with caplog.at_level(logging.INFO, "sodeploy"):
        train(recipe, output=tmp_path / "run", steps=4, overrides=schedule, resume=True)
    assert "now spans 4 steps, not 2: the learning rate" not in caplog.text  # 1 - 1/2 then, 1 - 2/4 now
    assert (tmp_path / "run" / "loss.csv").read_text().splitlines()[-1].startswith("4,0.00025,")
    with caplog.at_level(logging.INFO, "sodeploy"):
        train(recipe, output=tmp_path / "run", steps=8, overrides=schedule, resume=True)
    assert "polynomial now spans 8 steps, not 4: the learning rate goes on with 0.0005 after 0.00025" in caplog.text


def test_a_run_that_lost_its_patience_goes_on_with_more(recipe: Path, tmp_path: Path) -> None:
    still = ["optimizer={name: sgd, lr: 1e-30}", "batch_norm=frozen", "validation.every=1"]
    for patience, last in ((1, 2), (3, 4)):
        train(recipe, output=tmp_path / "run", resume=True, overrides=[*still, f"validation.patience={patience}"])
        assert torch.load(tmp_path / "run" / "last.pth", weights_only=True)["step"] == last
