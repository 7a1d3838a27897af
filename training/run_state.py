"""The whole state of a run between two steps: saved to last.pth, and loaded again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sodeploy.errors import UserError
from sodeploy.training.checkpoint import read_checkpoint, write_checkpoint
from sodeploy.training.models.network import SaliencyNetwork
from sodeploy.training.recipe import Recipe

LAST = "last.pth"
BEST = "best.pth"


@dataclass
class RunState:
    """The state that changes from step to step.

    Data order, augmentation, random numbers and the learning rate follow from the recipe and the step; they are not
    saved.

    Attributes:
        step: optimizer steps done.
        best: the best value of the metric so far; None before the first validation.
        validations_since_best: validations without improvement, for the recipe's patience.
        finished: the run is complete.
    """

    network: SaliencyNetwork
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    best: float | None = None
    validations_since_best: int = 0
    finished: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


def save_state(state: RunState, folder: Path) -> None:
    """Write last.pth. The earlier file stays until the new one is complete."""
    content = {
        "state_dict": state.network.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "step": state.step,
        "best": state.best,
        "validations_since_best": state.validations_since_best,
        "finished": state.finished,
        "facts": json.dumps(state.facts),
    }
    write_checkpoint(content, folder / LAST)


def load_state(state: RunState, folder: Path) -> None:
    """Load last.pth. The run then continues as if it had not stopped.

    Raises:
        UserError: the file is broken, or belongs to a run with another recipe or training set.
    """
    path = folder / LAST
    content = read_checkpoint(path)
    if not isinstance(content, Mapping) or not {"state_dict", "optimizer", "step", "facts"} <= set(content):
        raise UserError(f"{path} is not the state of a training run; choose another --output")
    before = json.loads(content["facts"])
    changed = [key for key in sorted({*before, *state.facts}) if before.get(key) != state.facts.get(key)]
    if changed:
        key = changed[0]
        raise UserError(
            f"{path} was trained with {key} {json.dumps(before.get(key))}, which is now "
            f"{json.dumps(state.facts.get(key))}; put it back to resume, or choose another --output"
        )
    state.network.load_state_dict(content["state_dict"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.scaler.load_state_dict(content["scaler"])
    state.step = content["step"]
    state.best = content["best"]
    state.validations_since_best = content["validations_since_best"]
    state.finished = content["finished"]


def facts_of(recipe: Recipe, samples: int) -> dict[str, Any]:
    """The facts that a continued run must keep: the recipe without the paths of files and the options of speed."""
    facts = recipe.model_dump(mode="json", exclude={"init", "teacher", "train", "workers", "log_every"})
    facts["validation"].pop("data")
    return {**facts, "samples": samples}
