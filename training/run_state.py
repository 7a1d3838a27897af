"""The whole state of a run between two steps: saved to last.pth, and loaded again."""

import copy
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sodeploy.errors import UserError
from sodeploy.training.checkpoint import read_checkpoint, write_checkpoint
from sodeploy.training.journal import Sums
from sodeploy.training.models.network import SaliencyNetwork
from sodeploy.training.recipe import Recipe

LAST = "last.pth"
BEST = "best.pth"

# Keys of the recipe that say when a run ends. A run may be continued with others.
_ENDS = ("steps", "epochs", "validation.patience", "validation.stop_above")


@dataclass
class RunState:
    """The state that changes from step to step.

    Data order, augmentation, random numbers and the learning rate follow from the recipe and the step; they are not
    saved.

    Attributes:
        step: optimizer steps done.
        validated: the step of the last validation; 0 before the first one.
        best: the best value of the metric so far; None before the first validation.
        validations_since_best: validations without improvement, for the recipe's patience.
        sums: the losses since the last line of loss.csv, one entry for each process.
        facts: the recipe without paths and options of speed, and the number of training samples.
    """

    network: SaliencyNetwork
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    validated: int = 0
    best: float | None = None
    validations_since_best: int = 0
    sums: Sequence[Sums] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def save_state(state: RunState, folder: Path) -> None:
    """Write last.pth. The earlier file stays until the new one is complete."""
    content = {
        "state_dict": state.network.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "step": state.step,
        "validated": state.validated,
        "best": state.best,
        "validations_since_best": state.validations_since_best,
        "sums": list(state.sums),
        "facts": json.dumps(state.facts),
    }
    write_checkpoint(_interned(content), folder / LAST)


def _interned(content: Any) -> Any:
    """The same content with one object for equal keys: pickle writes a key again that comes as another object.

    Without this the keys of a loaded optimizer would give a resumed run's file other bytes.
    """
    if isinstance(content, dict):
        return {sys.intern(key) if type(key) is str else key: _interned(value) for key, value in content.items()}
    return [_interned(value) for value in content] if isinstance(content, list) else content


def load_state(state: RunState, folder: Path) -> dict[str, Any]:
    """Load last.pth. The run then continues as if it had not stopped.

    Returns:
        The facts in the file. Only what ends the run may differ from the facts of `state`.

    Raises:
        UserError: the file is broken, or belongs to a run with another recipe or training set.
    """
    path = folder / LAST
    content = read_checkpoint(path)
    if not isinstance(content, Mapping) or not {"state_dict", "optimizer", "step", "facts"} <= set(content):
        raise UserError(f"{path} is not the state of a training run; choose another --output")
    facts: dict[str, Any] = json.loads(content["facts"])
    before, now = _that_must_stay(facts), _that_must_stay(state.facts)
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if changed:
        key = changed[0]
        raise UserError(
            f"{path} was trained with {key} {json.dumps(before.get(key))}, which is now "
            f"{json.dumps(now.get(key))}; put it back to resume, or choose another --output"
        )
    state.network.load_state_dict(content["state_dict"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.scaler.load_state_dict(content["scaler"])
    state.step = content["step"]
    state.validated = content.get("validated", state.step)  # older files were written at validations only
    state.best = content["best"]
    state.validations_since_best = content["validations_since_best"]
    state.sums = content.get("sums", ())
    return facts


def facts_of(recipe: Recipe, samples: int) -> dict[str, Any]:
    """The facts of a run for its file: the recipe without the paths of files and the options of speed."""
    facts = recipe.model_dump(mode="json", exclude={"init", "teacher", "train", "workers", "log_every", "save_every"})
    facts["validation"].pop("data")
    return {**facts, "samples": samples}


def _that_must_stay(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that a continued run must keep."""
    kept: dict[str, Any] = copy.deepcopy(dict(facts))
    for key in _ENDS:
        *sections, last = key.split(".")
        inner = kept
        for section in sections:
            inner = inner.get(section, {})
        inner.pop(last, None)
    return kept


def is_finished(state: RunState, recipe: Recipe) -> bool:
    """Whether the run is complete: all steps are done and validated, or a rule of the recipe ended it."""
    rule = recipe.validation
    reached = rule.stop_above is not None and state.best is not None and rule.better(state.best, rule.stop_above)
    patience_is_lost = rule.patience is not None and state.validations_since_best >= rule.patience
    is_through = state.step >= recipe.total_steps(state.facts["samples"]) and state.validated == state.step
    return reached or patience_is_lost or is_through
