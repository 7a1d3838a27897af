"""The training loop: what stops it must not change what comes out, and neither may how the work is divided."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from sodeploy import artifacts
from sodeploy.errors import UserError
from sodeploy.folder_lock import locked
from sodeploy.training.checkpoint import load_checkpoint
from sodeploy.training.models import build
from sodeploy.training.recipe import Validation
from sodeploy.training.splits import open_splits
from sodeploy.training.train import train

RECIPE = """
network: u2net_tiny
train: synthetic:train:12:40
validation: {data: "synthetic:val:2:40", every: 2, best: mae}
size: 32
augment:
  - {name: flip}
  - {name: random_crop, size: 32}
loss: {bce: 1}
optimizer: {name: adam, lr: 0.001}
batch: 4
steps: 6
workers: 0
log_every: 1
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


def command(recipe: Path, output: Path, *arguments: str) -> list[str]:
    script = str(Path(__file__).resolve().parents[2] / "training" / "train.py")
    return [script, "--config", str(recipe), "--output", str(output), *arguments]


def weights(folder: Path, name: str = "last.pth") -> dict[str, torch.Tensor]:
    content: dict[str, Any] = torch.load(folder / name, weights_only=True)
    return content.get("state_dict", content)


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert list(one) == list(other)
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def rows(
    path: Path, but: tuple[str, ...] = ("images_per_s", "waiting", "network_images_per_s")
) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [{key: value for key, value in row.items() if key not in but} for row in csv.DictReader(file)]


def test_data_sets_by_name_under_a_root(tmp_path: Path) -> None:
    rule = Validation(data="ECSSD", every=1)
    for name in ("DUTS-TR", "ECSSD", "HKU-IS"):
        for folder in ("images", "masks"):
            (tmp_path / name / folder).mkdir(parents=True)
            assert cv2.imwrite(str(tmp_path / name / folder / "a.png"), np.eye(8, dtype=np.uint8) * 255)
    splits = open_splits(rule, ["DUTS-TR", "HKU-IS"], 0, tmp_path)
    assert [sample.name for sample in splits.dataset] == ["DUTS-TR/a", "HKU-IS/a"]
    assert splits.validation_dataset.name == "ECSSD"


def test_a_run_leaves_what_it_says(recipe: Path, tmp_path: Path) -> None:
    best = train(recipe, output=tmp_path / "run")
    load_checkpoint(best, build("u2net_tiny"))
    scores = rows(tmp_path / "run" / "scores.csv")
    assert [row["step"] for row in scores] == ["2", "4", "6"]
    assert [row["step"] for row in rows(tmp_path / "run" / "loss.csv")] == list("123456")
    assert len(list((tmp_path / "run" / "pictures").glob("*.jpg"))) == 3
    manifest = artifacts.read_manifest(best)
    assert manifest["network"] == "u2net_tiny"
    assert manifest["contract"]["height"] == 32
    assert manifest["inputs"]["recipe"]["sha256"] == artifacts.sha256(recipe)
    lowest = min(scores, key=lambda row: float(row["mae"]))
    assert manifest["step"] == int(lowest["step"])
    assert manifest["scores"]["mae"] == pytest.approx(float(lowest["mae"]), rel=1e-4)


def test_one_run_at_a_time_in_a_folder(recipe: Path, tmp_path: Path) -> None:
    with (
        locked(tmp_path / "run"),
        pytest.raises(UserError, match=rf"another run \(process {os.getpid()}\) is writing into .*run; wait"),
    ):
        train(recipe, output=tmp_path / "run")


def test_a_best_checkpoint_without_its_run_is_kept(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "best.pth").write_text("trained for a week")
    for resume in (False, True):
        with pytest.raises(UserError, match=r"best\.pth would be replaced, and there is no last\.pth beside it"):
            train(recipe, output=tmp_path, resume=resume)
    assert (tmp_path / "best.pth").read_text() == "trained for a week"


def test_killed_and_resumed_it_ends_on_the_same_bits(recipe: Path, tmp_path: Path) -> None:
    steps = ("--set", "steps=8", "--set", "workers=1")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, *command(recipe, whole, *steps)], check=True, capture_output=True)
    process = subprocess.Popen(
        [sys.executable, *command(recipe, killed, *steps)], stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(killed / "last.pth", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert torch.load(killed / "last.pth", weights_only=True)["step"] < 8
    (killed / "loss.csv").write_text((killed / "loss.csv").read_text() + "7,0.1")  # a line cut short
    subprocess.run([sys.executable, *command(recipe, killed, "--resume", *steps)], check=True, capture_output=True)
    assert_same_bits(weights(killed), weights(whole))
    assert_same_bits(weights(killed, "best.pth"), weights(whole, "best.pth"))
    for name in ("loss.csv", "scores.csv"):
        assert rows(killed / name) == rows(whole / name)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, "training ended early"
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_stopped_it_saves_the_step_and_says_how_to_go_on(
    recipe: Path, tmp_path: Path, number: int, status: int, word: str
) -> None:
    endless = ("--set", "validation.every=100000", "--set", "workers=1", "--save-every", "1")
    arguments = command(recipe, tmp_path / "run", "--steps", "100000", *endless)
    process = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(tmp_path / "run" / "last.pth", process)
    os.killpg(process.pid, number)  # as a terminal does, and torchrun: to the process that loads data, too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    step = torch.load(tmp_path / "run" / "last.pth", weights_only=True)["step"]
    last = tmp_path / "run" / "last.pth"
    assert errors.splitlines()[-1] == (
        f"error: {word} after step {step}, which {last} holds; the same command with --resume continues from there"
    )
    assert errors.count("error") == 1
    assert "Traceback" not in errors
    assert not list(tmp_path.rglob("*.partial*"))


def test_two_processes_stop_at_one_step(recipe: Path, tmp_path: Path) -> None:
    arguments = command(recipe, tmp_path / "run", "--set", "validation.every=100000", "--save-every", "1")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *arguments]
    process = subprocess.Popen([*torchrun, "--steps", "100000"], stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "run" / "last.pth", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    step = torch.load(tmp_path / "run" / "last.pth", weights_only=True)["step"]
    assert errors.count(f"error: terminated after step {step}, which ") == 1, errors
    assert errors.count("error: ") == 1
    done = in_two_processes(
        recipe, tmp_path / "run", "--resume", "--set", "validation.every=100000", "--steps", f"{step + 1}"
    )
    assert done.returncode == 0, done.stderr
    assert [int(row["step"]) for row in rows(tmp_path / "run" / "loss.csv")] == list(range(1, step + 2))


def test_passes_accumulate_to_the_whole_batch(recipe: Path, tmp_path: Path) -> None:
    # Frozen batch norm: a batch's own statistics are what the division does change.
    fixed = ["batch_norm=frozen", "steps=3", "optimizer={name: sgd, lr: 0.01}"]
    train(recipe, output=tmp_path / "whole", overrides=fixed)
    train(recipe, output=tmp_path / "passes", overrides=[*fixed, "accumulate=4"])
    assert_close(weights(tmp_path / "passes"), weights(tmp_path / "whole"))


def test_two_processes_are_one_with_the_doubled_batch(recipe: Path, tmp_path: Path) -> None:
    fixed = ["batch_norm=frozen", "steps=3", "optimizer={name: sgd, lr: 0.01}"]
    settings = [part for override in fixed for part in ("--set", override)]
    done = in_two_processes(recipe, tmp_path / "two", *settings)
    assert done.returncode == 0, done.stderr
    train(recipe, output=tmp_path / "one", overrides=fixed)
    assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"))
    one, two = (rows(tmp_path / name / "loss.csv") for name in ("one", "two"))
    assert [row["step"] for row in two] == ["1", "2", "3"]
    assert [float(row["loss"]) for row in two] == pytest.approx([float(row["loss"]) for row in one], rel=1e-4)


def in_two_processes(recipe: Path, output: Path, *arguments: str) -> subprocess.CompletedProcess:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [*torchrun, *command(recipe, output, *arguments)], capture_output=True, text=True, timeout=300
    )


def test_two_processes_train_a_network_that_does_not_use_all_its_parameters(recipe: Path, tmp_path: Path) -> None:
    text = RECIPE.replace("u2net_tiny", "isnet_integrity")
    recipe.write_text(text.replace("bce: 1", "hierarchical_difference: 1, expanded_region: 1"))
    done = in_two_processes(recipe, tmp_path / "run", "--set", "steps=2")  # the second waits for the first's gradients
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "run" / "loss.csv")) == 2


def test_parameters_that_no_loss_reaches_are_named(recipe: Path, tmp_path: Path) -> None:
    """One process would leave them as they are; several would wait for their gradients."""
    recipe.write_text(RECIPE.replace("u2net_tiny", "csnet_x1_unpruned").replace("bce: 1", "activity_decay: 1"))
    message = r"\d+ of \d+ parameters of csnet_x1_unpruned get no gradient from the loss activity_decay, the first "
    with pytest.raises(UserError, match=message):
        train(recipe, output=tmp_path / "run")


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    moved = False
    torch.manual_seed(0)
    start = build("u2net_tiny").state_dict()
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-6)
        moved |= not torch.allclose(one[key], start[key], atol=1e-4)
    assert moved  # not two networks that never trained


def test_a_run_is_not_overwritten_nor_continued_otherwise(recipe: Path, tmp_path: Path) -> None:
    train(recipe, output=tmp_path / "run", overrides=["steps=2"])
    with pytest.raises(UserError, match=r"run already holds a run; continue it with --resume, or choose another"):
        train(recipe, output=tmp_path / "run", overrides=["steps=2"])
    with pytest.raises(UserError, match=r"last.pth was trained with batch 4, which is now 2; put it back"):
        train(recipe, output=tmp_path / "run", resume=True, overrides=["steps=2", "batch=2"])
    before = artifacts.sha256(tmp_path / "run" / "last.pth")
    train(recipe, output=tmp_path / "run", resume=True, overrides=["steps=2"])  # finished: nothing to do
    assert artifacts.sha256(tmp_path / "run" / "last.pth") == before


def test_a_loss_that_is_no_number_ends_the_run(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss is no longer finite by step \d; lower optimizer.lr"):
        train(recipe, output=tmp_path / "run", overrides=["optimizer={name: sgd, lr: 1e30}"])


def test_training_ends_when_the_aim_is_reached_or_patience_is_lost(recipe: Path, tmp_path: Path) -> None:
    train(recipe, output=tmp_path / "aim", overrides=["validation.stop_above=1.1", "steps=4"])  # any MAE is below
    assert len(rows(tmp_path / "aim" / "scores.csv")) == 1
    no_progress = ["optimizer={name: sgd, lr: 1e-30}", "batch_norm=frozen", "validation.patience=1", "steps=100"]
    train(recipe, output=tmp_path / "patience", overrides=no_progress)
    assert len(rows(tmp_path / "patience" / "scores.csv")) == 2


def test_held_out_samples_do_not_train(recipe: Path, tmp_path: Path) -> None:
    held_out = ["validation.data=null", "validation.hold_out=3", "steps=2"]
    train(recipe, output=tmp_path / "run", overrides=held_out)
    assert '"samples": 9' in torch.load(tmp_path / "run" / "last.pth", weights_only=True)["facts"]
    with pytest.raises(UserError, match=r"has 12 samples, of which the recipe holds out 12"):
        train(recipe, output=tmp_path / "no", overrides=[*held_out, "validation.hold_out=12"])


def test_it_starts_from_given_weights(recipe: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    network = build("u2net_tiny")
    torch.save(network.state_dict(), tmp_path / "w.pth")
    still = ["optimizer={name: sgd, lr: 1e-30}", "batch_norm=frozen", "steps=1", f"init={tmp_path / 'w.pth'}"]
    loaded = weights(train(recipe, output=tmp_path / "run", overrides=still).parent)
    for key, tensor in network.state_dict().items():
        torch.testing.assert_close(loaded[key], tensor, rtol=0, atol=1e-20)


def test_two_stages_by_one_command(recipe: Path, tmp_path: Path) -> None:
    small = RECIPE.replace("steps: 6", "steps: 2").replace("batch: 4", "batch: 2")
    (tmp_path / "first.yaml").write_text(small.replace("u2net_tiny", "isnet_gt_encoder"))
    second = small.replace("u2net_tiny", "isnet_dis\nteacher: first.yaml")
    (tmp_path / "second.yaml").write_text(second.replace("bce: 1", "bce: 1, feature_sync: 1"))
    best = train(tmp_path / "second.yaml", output=tmp_path / "run")
    load_checkpoint(best, build("isnet_dis"))
    load_checkpoint(tmp_path / "run" / "teacher" / "best.pth", build("isnet_gt_encoder"))
    last = rows(tmp_path / "run" / "loss.csv")[-1]
    assert float(last["feature_sync"]) > 0
    assert float(last["loss"]) == pytest.approx(float(last["bce"]) + float(last["feature_sync"]), rel=1e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("precision=fp16", r"training in fp16 needs a GPU; here: --set precision=auto"),
        ("init=absent.pth", r"absent.pth does not exist"),
        ("train=absent", r"absent does not exist"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 trains on a GPU")
def test_what_cannot_start(recipe: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(recipe, output=tmp_path / "run", overrides=[override])
    assert not (tmp_path / "run").exists()
