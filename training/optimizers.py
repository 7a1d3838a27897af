"""Optimizers, and learning rates as functions of the step, so that a schedule has no state to save."""

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.optim.optimizer import ParamsT

from sodeploy.errors import UserError
from sodeploy.training.models.network import SaliencyNetwork

LR_SHARE = "lr_share"  # key of a parameter group: the factor on its learning rate


def parameter_groups(
    network: SaliencyNetwork,
    backbone_lr: float = 1.0,
    freeze: Sequence[str] = (),
    undecayed: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The parameter groups of an optimizer: one for each factor on the learning rate, with and without weight decay.

    Parameters that the network itself does not train are left out.

    Args:
        backbone_lr: factor on the learning rate of the backbone.
        freeze: regular expressions; parameters whose names begin with a match are not trained.
        undecayed: regular expressions; parameters whose names begin with a match have no weight decay.

    Raises:
        UserError: an expression matches nothing.
    """
    names = [name for name, _ in network.named_parameters()]
    for key, patterns in (("freeze", freeze), ("undecayed", undecayed)):
        for pattern in patterns:
            if not any(re.match(pattern, name) for name in names):
                raise UserError(f"{key}: no parameter of {type(network).__name__} begins with {pattern}; correct it")
    groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if any(re.match(pattern, name) for pattern in freeze):
            parameter.requires_grad_(False)
        if not parameter.requires_grad:
            continue
        inside = bool(network.backbone_name) and name.startswith(f"{network.backbone_name}.")
        decays = not any(re.match(pattern, name) for pattern in undecayed)
        groups.setdefault((backbone_lr if inside else 1.0, decays), []).append(parameter)
    return [
        {"params": parameters, LR_SHARE: share, **({} if decays else {"weight_decay": 0.0})}
        for (share, decays), parameters in groups.items()
    ]


class _Choice(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Adam(_Choice):
    """Adam; `decoupled` weight decay makes it AdamW (Loshchilov and Hutter, ICLR 2019)."""

    name: Literal["adam", "adamw"]
    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)

    def build(self, parameters: ParamsT) -> torch.optim.Optimizer:
        make = torch.optim.AdamW if self.name == "adamw" else torch.optim.Adam
        return make(parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=True)


class SGD(_Choice):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    lr: float = Field(gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=0.0, ge=0)

    def build(self, parameters: ParamsT) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            fused=True,
        )


class Constant(_Choice):
    name: Literal["constant"]

    def factor(self, step: int, steps: int) -> float:
        """The factor on the learning rate at `step`, counted from 0."""
        return 1.0


class OneCycle(_Choice):
    """A cosine up from 1/25 during `warmup` of all steps, then a cosine down to 1/10000 (Smith and Topin, 2019)."""

    name: Literal["one_cycle"]
    warmup: float = Field(default=0.3, gt=0, lt=1, description="share of all steps")

    def factor(self, step: int, steps: int) -> float:
        peak = self.warmup * (steps - 1)
        if step <= peak:
            return _cosine(1 / 25, 1.0, step / max(peak, 1))
        return _cosine(1.0, 1e-4, (step - peak) / max(steps - 1 - peak, 1))


class Steps(_Choice):
    """Multiply by `gamma` at each milestone; milestones are shares of all steps."""

    name: Literal["steps"]
    milestones: tuple[float, ...]
    gamma: float = Field(default=0.1, gt=0)

    def factor(self, step: int, steps: int) -> float:
        """The factor on the learning rate at `step`, counted from 0."""
        return self.gamma ** sum(step >= share * steps for share in self.milestones)


class Polynomial(_Choice):
    """(1 - t)^power, where t is the share of the steps done; at most a line from `start` to 1 during the warm-up."""

    name: Literal["polynomial"]
    power: float = Field(default=0.9, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    start: float = Field(default=0.1, ge=0, le=1)

    def factor(self, step: int, steps: int) -> float:
        """The factor on the learning rate at `step`, counted from 0."""
        falling = (1 - step / steps) ** self.power
        if step >= self.warmup_steps:
            return falling
        return min(falling, self.start + (1 - self.start) * step / self.warmup_steps)


class Triangle(_Choice):
    """A line up from `floor` to 1 in the middle of the run, and a line down again."""

    name: Literal["triangle"]
    floor: float = Field(default=0, ge=0, lt=1)

    def factor(self, step: int, steps: int) -> float:
        """The factor on the learning rate at `step`, counted from 0."""
        return self.floor + (1 - self.floor) * (1 - abs(2 * (step + 1) / (steps + 1) - 1))


Optimizer = Annotated[Adam | SGD, Field(discriminator="name")]
Schedule = Annotated[Constant | OneCycle | Steps | Polynomial | Triangle, Field(discriminator="name")]


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
