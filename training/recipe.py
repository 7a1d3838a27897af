"""A recipe: all options of a training run, read from a YAML file and checked before the run starts."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sodeploy import artifacts
from sodeploy.configuration import checked, parse_yaml, read_yaml
from sodeploy.errors import UserError
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.measure.metrics import METRICS, default_metrics
from sodeploy.training.augment import Augmentation
from sodeploy.training.losses import LOSSES, ForwardLoss, teacher_of
from sodeploy.training.models import NETWORKS, entry
from sodeploy.training.optimizers import Constant, Optimizer, Schedule

RECIPES = Path(__file__).parent / "configs"  # the recipes of the product
_REMEDY = "give the file of a recipe, or the name of one of the product: `train --list` lists them"


class Validation(BaseModel):
    """The samples for validation, and how often it runs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: str | None = Field(
        default=None, description="a data set; without one, `hold_out` samples of the training set"
    )
    hold_out: int = Field(
        default=0, ge=0, description="training samples that are kept for validation; the seed draws them"
    )
    every: int = Field(ge=1, description="optimizer steps from one validation to the next; each saves last.pth")
    best: str = Field(default="max_f", description=f"the metric that chooses best.pth: {', '.join(default_metrics())}")
    stop_above: float | None = Field(default=None, description="training ends when `best` is better than this value")
    patience: int | None = Field(
        default=None, ge=1, description="training ends after this number of validations without improvement"
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> "Validation":
        if (self.data is None) == (self.hold_out == 0):
            raise ValueError("give either data or hold_out")
        if self.best not in default_metrics():
            raise ValueError(f"no metric is called {self.best}; known: {', '.join(default_metrics())}")
        return self

    def better(self, value: float, other: float) -> bool:
        """Whether `value` of the metric `best` is better than `other`."""
        return METRICS[self.best].is_better(value, other)


class Backbone(BaseModel):
    """The first weights of a network's backbone, and its learning rate."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    init: str | None = Field(default=None, description="file of ImageNet weights, as its authors published it")
    lr: float = Field(default=1, gt=0, description="factor on the learning rate of the backbone")


class Recipe(BaseModel):
    """The keys of a recipe file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    network: str
    init: str | None = Field(default=None, description="a checkpoint of the network, with which training starts")
    backbone: Backbone = Backbone()
    freeze: tuple[str, ...] = Field(
        default=(), description="regular expressions; parameters whose names begin with a match are not trained"
    )
    undecayed: tuple[str, ...] = Field(
        default=(), description="regular expressions; parameters whose names begin with a match have no weight decay"
    )
    teacher: str | None = Field(
        default=None,
        description="for feature synchronization: a recipe beside this one, which is trained first, or a checkpoint",
    )
    train: str = Field(description="the training set; --data replaces it")
    validation: Validation
    size: int = Field(ge=32, le=2**14, description="side of the square input in validation and deployment, pixels")
    augment: tuple[Augmentation, ...]
    multi_scale: tuple[int, ...] = Field(
        default=(), description="sides in pixels; each step resizes its batch to one of them, which the seed draws"
    )
    loss: dict[str, float] = Field(min_length=1, description="weight of each loss")
    optimizer: Optimizer
    schedule: Schedule = Constant(name="constant")
    batch: int = Field(ge=1, le=2**20, description="samples of one optimizer step, over all processes and passes")
    accumulate: int = Field(default=1, ge=1, description="passes of one step, whose gradients are added up")
    steps: int | None = Field(default=None, ge=1, le=10**9)
    epochs: float | None = Field(default=None, gt=0, le=10**6)
    batch_norm: Literal["local", "synced", "frozen"] = Field(
        default="local",
        description="local: statistics of each process; synced: of all processes; frozen: the running statistics",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="auto: bf16 on a GPU, or fp16 with loss scaling if the GPU has no bf16; fp32 on a CPU",
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of each training process; PyTorch's own number by default"
    )
    workers: int = Field(default=4, ge=0, le=1024, description="processes that load data, for each training process")
    log_every: int = Field(default=50, ge=1, description="optimizer steps from one line of loss.csv to the next")
    save_every: int | None = Field(
        default=None, ge=1, description="optimizer steps between two writes of last.pth; a validation writes it too"
    )
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _is_consistent(self) -> "Recipe":
        if self.network not in NETWORKS:
            raise ValueError(f"no network is called {self.network}; known: {', '.join(sorted(NETWORKS))}")
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        for key, patterns in (("freeze", self.freeze), ("undecayed", self.undecayed)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except (re.error, RecursionError, OverflowError) as error:
                    raise ValueError(f"{key}: {pattern!r} is no regular expression ({error})") from None
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
        """The contract of the trained network: the published one, at this recipe's size."""
        return entry(self.network).contract.model_copy(update={"height": self.size, "width": self.size})

    def total_steps(self, samples: int) -> int:
        """Optimizer steps of the whole run with a training set of `samples` samples."""
        return self.steps if self.steps is not None else max(1, round((self.epochs or 0) * samples / self.batch))


def recipe_names() -> list[str]:
    """The recipes of the product, by name."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(config: str | Path) -> Path:
    """The file of a recipe: `config` itself, or the recipe of the product that has this name.

    Raises:
        UserError: there is neither.
    """
    path = Path(config)
    if path.exists():
        return path
    if path.parent == Path() and path.suffix not in (".yaml", ".yml"):
        if path.name in recipe_names():
            return RECIPES / f"{path.name}.yaml"
        near = difflib.get_close_matches(path.name, recipe_names(), n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"no recipe is called {path.name}; {meant}`train --list` lists the names; a file works too")
    if path.stem in recipe_names():
        raise UserError(f"{path} does not exist; the recipe of the product is --config {path.stem}")
    raise UserError(f"{path} does not exist; {_REMEDY}")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a file, or the name of a recipe of the product.
        overrides: `key=value` or `key.key=value` with values in YAML; each replaces a key of the file. `steps` also
            replaces `epochs`, and `epochs` replaces `steps`.

    Raises:
        UserError: the file is missing or is not YAML, a key is unknown, or a value is wrong.
    """
    path = find_recipe(path)
    content = read_yaml(path, _REMEDY)
    _make_room_for_the_length(content, overrides)
    for override in overrides:
        _override(content, override)
    return checked(Recipe, content, path, "recipe")


def _make_room_for_the_length(content: dict[str, Any], overrides: Sequence[str]) -> None:
    """Remove the length of the run, `steps` or `epochs`, that an override replaces by the other one."""
    given = {override.partition("=")[0] for override in overrides} & {"steps", "epochs"}
    if len(given) == 1:
        content.pop({"steps": "epochs", "epochs": "steps"}[given.pop()], None)


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
        content[last] = parse_yaml(value)
    except ValueError as error:
        raise UserError(f"--set {artifacts.one_line(override)}: {value} is not a YAML value: {error}") from None
