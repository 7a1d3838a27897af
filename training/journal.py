"""The records of a run: losses and scores as CSV, pictures, and TensorBoard files if TensorBoard is installed."""

import csv
import importlib.util
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from sodeploy import artifacts, terminal
from sodeploy.calib_data.images import write_picture
from sodeploy.training.processes import Process

T = TypeVar("T")
Sums = tuple[dict[str, torch.Tensor], int]  # the sum of each loss term, and the passes that were added up

_SHOW_EVERY_S = 1.0


class Journal:
    """The record of one run in `folder`: loss.csv, scores.csv, pictures/.

    A run that resumes at `step` removes the lines after that step, so that the files show no interruption.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("loss.csv", "scores.csv"):
            _forget_after(folder / name, step)
        self._board: Any = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def losses(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line of loss.csv: the means since the last line."""
        terminal.debug(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        self._write("loss", step, values)

    def scores(self, step: int, values: Mapping[str, float], picture: np.ndarray) -> None:
        """Write one line of scores.csv, the metrics of a validation, and its picture, (H, W, 3) uint8 RGB."""
        self._write("scores", step, values)
        write_picture(self.folder / "pictures" / f"step-{step:07}.jpg", picture)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    def _write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        path = self.folder / f"{kind}.csv"
        is_new = not path.exists()
        with open(path, "a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")  # as a resumed run rewrites it
            if is_new:
                writer.writerow(["step", *values])
            writer.writerow([step, *(f"{value:.6g}" for value in values.values())])
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)


def _forget_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    header, *lines = path.read_text().splitlines(keepends=True)
    # An unfinished line of a killed run belongs to a step after the last checkpoint, too.
    kept = [line for line in lines if line.endswith("\n") and int(line.partition(",")[0]) <= step]
    artifacts.write_text(path, "".join([header, *kept]))


class Meter:
    """The means of the losses over some steps, and the speed of these steps."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._shown, self._shown_at = "", -math.inf
        self.restart()

    def restart(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._passes = 0
        self._waited = 0.0
        self._start = time.perf_counter()

    def timed(self, loaded: Iterator[T]) -> Iterator[T]:
        """Yield the batches of `loaded`, and count the time that is spent waiting for them."""
        while True:
            start = time.perf_counter()
            batch = next(loaded, None)
            self._waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def add(self, terms: Mapping[str, torch.Tensor]) -> None:
        """Add the terms of one pass. They stay on the device, because reading them would wait for it."""
        for name, term in terms.items():
            self._sums[name] = self._sums[name] + term.detach() if name in self._sums else term.detach()
        self._passes += 1

    def sums(self) -> Sums:
        """The sums since the last flush or restart, so that a resumed run can go on with them."""
        return {name: total.cpu() for name, total in self._sums.items()}, self._passes

    def go_on_with(self, sums: Sums) -> None:
        """Start with the sums of a run that stopped between two flushes."""
        totals, self._passes = sums
        self._sums = {name: total.to(self._process.device) for name, total in totals.items()}

    def loss_in_words(self) -> str:
        """The mean loss of this process since the last flush, for a progress bar.

        It is computed every few seconds only, because reading a loss waits for the device.
        """
        now = time.perf_counter()
        if self._passes and now - self._shown_at >= _SHOW_EVERY_S:
            self._shown, self._shown_at = f"loss {float(self._sums['loss']) / self._passes:.4g}", now
        return self._shown

    def flush(self, images_per_pass: int) -> dict[str, float]:
        """The means over all processes since the last flush or restart, and the speed.

        `images_per_s` counts all processes together; `waiting` is the share of time spent waiting for data;
        `network_images_per_s` is the speed without that time.
        """
        own = {name: float(total) / self._passes for name, total in self._sums.items()}
        elapsed = time.perf_counter() - self._start
        images = self._passes * images_per_pass
        speed = {
            "images_per_s": images / elapsed,
            "waiting": self._waited / elapsed,
            "network_images_per_s": images / (elapsed - self._waited),
        }
        everyone = self._process.gather(own)
        self.restart()
        return {name: float(np.mean([means[name] for means in everyone])) for name in own} | speed
