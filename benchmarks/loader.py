"""Is training bound by the network, or by reading and augmenting images? Both rates for one recipe and one data set.

    python benchmarks/loader.py --config u2netp --data DUTS-TR [--set workers=2] [--steps 20]

The loader alone is asked for batches as fast as it gives them; then the recipe trains for as many steps, loader and
network side by side, as they do in earnest. The loop's own figures are also in the loss.csv of every run.
"""

import csv
import tempfile
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer

from sodeploy import command_line, terminal
from sodeploy.errors import UserError
from sodeploy.training.processes import Process
from sodeploy.training.recipe import Recipe, load_recipe
from sodeploy.training.run import training_batches
from sodeploy.training.splits import open_splits
from sodeploy.training.train import train

_AHEAD = 4  # batches that each worker has ready: taken first, they would count as made in no time


class Rates(NamedTuple):
    """Images per second of the loader alone, of the loop, and of the network while it need not wait; the share of the
    loop's time spent waiting."""

    loader: float
    loop: float
    network: float
    waiting: float


def measure(config: Path, data: str | None, steps: int, overrides: list[str]) -> Rates:
    """The rates over so many steps, after the first ones, which start processes.

    Raises:
        UserError: recipe or data is at fault.
    """
    recipe = load_recipe(config, overrides)
    if recipe.teacher is not None and not recipe.teacher.endswith(".pth"):
        raise UserError(f"{config} trains a teacher first; give one that is trained: --set teacher=PATH.pth")
    loader = _loader_alone(recipe, data or recipe.train, steps)
    # Validation would need minutes: one sample of the training set, at the end.
    short = [f"steps={2 * steps}", "epochs=null", f"log_every={steps}", f"validation.every={2 * steps}"]
    with tempfile.TemporaryDirectory() as folder:
        train(config, data, folder, overrides=[*overrides, *short, "validation.data=null", "validation.hold_out=1"])
        with open(Path(folder) / "loss.csv", newline="") as file:
            last = list(csv.DictReader(file))[-1]
    return Rates(loader, *(float(last[key]) for key in ("images_per_s", "network_images_per_s", "waiting")))


def _loader_alone(recipe: Recipe, data: str, steps: int) -> float:
    warm_up = _AHEAD * recipe.workers + 1
    passes = range(warm_up + steps)
    splits = open_splits(recipe.validation, data, recipe.seed)
    loaded = training_batches(recipe, splits, passes, Process(0, 1, torch.device("cpu")))
    for _ in range(warm_up):
        next(loaded)
    start = time.perf_counter()
    images = sum(len(next(loaded)[0]) for _ in range(steps))
    return images / (time.perf_counter() - start)


def main(
    config: Annotated[Path, typer.Option(help="recipe")],
    data: Annotated[str | None, typer.Option(help="training data in the place of the recipe's")] = None,
    steps: Annotated[int, typer.Option(help="optimizer steps that count", min=1)] = 20,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="replace a key of the recipe; repeatable")
    ] = None,
) -> None:
    """Print how fast the loader and the network are."""
    rates = measure(config, data, steps, overrides or [])
    for name, value in (
        ("loader alone", f"{rates.loader:.1f} images/s"),
        ("network alone", f"{rates.network:.1f} images/s"),
        ("the loop, both side by side", f"{rates.loop:.1f} images/s"),
        ("waiting for data", f"{rates.waiting:.1%} of the loop's time"),
    ):
        terminal.results.print(f"{name:30}{value}")


if __name__ == "__main__":
    command_line.run(main)
