"""A recipe: everything that decides what a training run does, read from a YAML file and checked before it starts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sodeploy import artifacts
from sodeploy.errors import UserError
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.measure.metrics import METRICS
from sodeploy.training.augment import Augmentation
from sodeploy.training.losses import LOSSES, ForwardLoss, teacher_of
from sodeploy.training.models import NETWORKS, entry
from sodeploy.training.optimizers import Constant, Optimizer, Schedule

RECIPES = Path(__file__).parent / "configs"  # the recipes of the product


class Validation(BaseModel):
    """On what, and how often, the network is scored while it trains."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str | None = Field(
        default=None, description="a data set; without one, `hold_out` samples of the training set"
    )
    hold_out: int = Field(default=0, ge=0, description="training samples kept for validation, drawn by the seed")
    every: int = Field(ge=1, description="steps; a checkpoint is saved as often")
    best: str = Field(default="max_f", description=f"the metric that best.pth is chosen by: {', '.join(METRICS)}")
    stop_above: float | None = Field(default=None, description="training ends once `best` is better than this")
    patience: int | None = Field(default=None, ge=1, description="or after so many validations without improvement")

    @model_validator(mode="after")
    def _is_consistent(self) -> "Validation":
        if (self.data is None) == (self.hold_out == 0):
            raise ValueError("give either data or hold_out")
        if self.best not in METRICS:
            raise ValueError(f"no metric is called {self.best}; known: {', '.join(METRICS)}")
        return self

    def better(self, value: float, other: float) -> bool:
        """Whether one value of the metric `best` is better than another."""
        return METRICS[self.best].is_better(value, other)


class Backbone(BaseModel):
    """Of a network that has one: what it starts from, and how fast it learns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    init: str | None = Field(default=None, description="its authors' file of ImageNet weights")
    lr: float = Field(default=1, gt=0, description="its share of the learning rate")


class Recipe(BaseModel):
    """The keys of a recipe file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: str
    init: str | None = Field(default=None, description="a checkpoint of the network to start from")
    backbone: Backbone = Backbone()
    freeze: tuple[str, ...] = Field(
        default=(), description="regular expressions: parameters whose names begin with a match are not trained"
    )
    undecayed: tuple[str, ...] = Field(
        default=(), description="regular expressions: such parameters are trained without weight decay"
    )
    teacher: str | None = Field(
        default=None,
        description="of feature synchronisation: a recipe, beside this one, that is trained first, or a checkpoint",
    )
    train: str = Field(description="the training data set; --data replaces it")
    validation: Validation
    size: int = Field(ge=32, description="side of the square input at validation and deployment")
    augment: tuple[Augmentation, ...]
    multi_scale: tuple[int, ...] = Field(
        default=(), description="sides, one of which each step's batch is resized to, drawn by the seed"
    )
    loss: dict[str, float] = Field(min_length=1, description="weight of each term")
    optimizer: Optimizer
    schedule: Schedule = Constant(name="constant")
    batch: int = Field(ge=1, description="samples in one optimizer step, over all processes and accumulated passes")
    accumulate: int = Field(default=1, ge=1, description="passes that one step's samples are divided into")
    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    batch_norm: Literal["local", "synced", "frozen"] = Field(
        default="local", description="statistics of the own process, of all processes, or the running ones, unchanged"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: on a GPU bf16, or fp16 with loss scaling where it has no bf16; else fp32"
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of the network, per training process; PyTorch's choice by default"
    )
    workers: int = Field(default=4, ge=0, description="processes that load data, per training process")
    log_every: int = Field(default=50, ge=1, description="steps")
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _is_consistent(self) -> "Recipe":
        if self.network not in NETWORKS:
            raise ValueError(f"no network is called {self.network}; known: {', '.join(sorted(NETWORKS))}")
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if unknown := [term for term in self.loss if term not in LOSSES]:
            raise ValueError(f"no loss is called {unknown[0]}; known: {', '.join(LOSSES)}")
        with torch.device("meta"):
            network = NETWORKS[self.network].make()
        for term in self.loss:
            if not isinstance(network, LOSSES[term].network):
                raise ValueError(f"the loss {term} is for {LOSSES[term].network.__name__}, not for {self.network}")
        forward = [term for term in self.loss if isinstance(LOSSES[term], ForwardLoss)]
        if len(forward) > 1:
            raise ValueError(f"the losses {' and '.join(forward)} exclude each other; leave one out")
        if (teacher_of(self.loss) is None) != (self.teacher is None):
            with_teacher = [name for name, loss in LOSSES.items() if isinstance(loss, ForwardLoss) and loss.teacher]
            raise ValueError(f"the loss {' or '.join(with_teacher)} needs a teacher, and a teacher needs that loss")
        for side in (self.size, *self.multi_scale):
            try:
                network.check_size(side, side)
            except UserError as error:
                raise ValueError(str(error)) from None
        if not network.backbone_name and self.backbone != Backbone():
            raise ValueError(f"{self.network} has no backbone")
        if self.batch % self.accumulate:
            raise ValueError(f"a batch of {self.batch} cannot be divided into {self.accumulate} passes")
        return self

    def contract(self) -> Contract:
        """What the trained network expects: the published contract at this recipe's size."""
        return entry(self.network).contract.model_copy(update={"height": self.size, "width": self.size})

    def total_steps(self, samples: int) -> int:
        """Optimizer steps of the whole run over a training set of so many samples."""
        return self.steps if self.steps is not None else max(1, round((self.epochs or 0) * samples / self.batch))


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe file.

    Args:
        overrides: `key=value` or `key.key=value`, values as YAML, replacing what the file says.

    Raises:
        UserError: no such file, not YAML, a key that no recipe has, or a value that makes no sense.
    """
    path = artifacts.require_file(path, "give a recipe, for example training/configs/u2netp.yaml")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML ({' '.join(str(error).split())}); mend it") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no recipe: keys and values are expected, as in training/configs/u2netp.yaml")
    for override in overrides:
        _override(content, override)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UserError(f"{path}: no recipe has a key {where}; remove it or correct its name") from None
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: {where + ': ' if where else ''}{message}; correct it") from None


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: write KEY=VALUE, for example --set batch=4 or --set optimizer.lr=0.0005")
    *sections, last = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise UserError(f"--set {override}: {section} has no keys of its own")
    try:
        content[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: {value} is not a YAML value") from None
