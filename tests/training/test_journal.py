"""The record of a run."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from sodeploy.training.journal import Journal, Meter
from sodeploy.training.processes import Process

PICTURE = np.zeros((4, 4, 3), np.uint8)


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    first = Journal(tmp_path, 0)
    for step in (1, 2, 3):
        first.losses(step, {"loss": step / 2})
    first.scores(2, {"s": 0.5}, PICTURE)
    with open(tmp_path / "loss.csv", "a") as file:
        file.write("4,0.")  # cut short by a kill
    again = Journal(tmp_path, 2)
    again.losses(3, {"loss": 9.0})
    assert (tmp_path / "loss.csv").read_text().split() == ["step,loss", "1,0.5", "2,1", "3,9"]
    assert (tmp_path / "scores.csv").read_text().split() == ["step,s", "2,0.5"]
    assert (tmp_path / "pictures" / "step-0000002.jpg").stat().st_size > 0


def test_tensorboard_gets_the_same_numbers_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[Any, ...]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            written.append((folder, purge_step))

        def add_scalar(self, *values: Any) -> None:
            written.append(values)

        def close(self) -> None:
            written.append(("closed",))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    record = Journal(tmp_path, 5)
    record.losses(6, {"loss": 0.5})
    record.scores(6, {"s": 0.75}, PICTURE)
    record.close()
    expected = [("loss/loss", 0.5, 6), ("scores/s", 0.75, 6), ("closed",)]
    assert written == [(str(tmp_path / "tensorboard"), 6), *expected]


def test_meter_means_over_passes() -> None:
    meter = Meter(Process(0, 1, torch.device("cpu")))
    batches = meter.timed(iter([1, 2]))
    for value in batches:
        meter.add({"loss": torch.tensor(float(value))})
    means = meter.flush(images_per_pass=8)
    assert means["loss"] == 1.5
    assert means["images_per_s"] > 0
    assert 0 <= means["waiting"] <= 1
    assert means["images_per_s"] == pytest.approx(means["network_images_per_s"] * (1 - means["waiting"]))
    meter.add({"loss": torch.tensor(5.0)})
    assert meter.flush(8)["loss"] == 5
