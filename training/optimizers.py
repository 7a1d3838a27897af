"""Optimizers, and learning rates as functions of the step: nothing about a schedule needs saving."""

import math
from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field


class _Choice(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Adam(_Choice):
    """Adam; `decoupled` weight decay makes it AdamW (Loshchilov and Hutter, ICLR 2019)."""

    name: Literal["adam", "adamw"]
    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        make = torch.optim.AdamW if self.name == "adamw" else torch.optim.Adam
        return make(parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=True)


class SGD(_Choice):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    lr: float = Field(gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=0.0, ge=0)

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
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
        """What the learning rate of `step`, counted from 0, is multiplied by."""
        return 1.0


class OneCycle(_Choice):
    """A cosine up from 1/25 during `warmup` of all steps, then a cosine down to 1/10000 (Smith and Topin, 2019)."""

    name: Literal["one_cycle"]
    warmup: float = Field(default=0.3, gt=0, lt=1, description="share of the steps")

    def factor(self, step: int, steps: int) -> float:
        peak = self.warmup * (steps - 1)
        if step <= peak:
            return _cosine(1 / 25, 1.0, step / max(peak, 1))
        return _cosine(1.0, 1e-4, (step - peak) / max(steps - 1 - peak, 1))


class Steps(_Choice):
    """Multiplied by `gamma` at each of the milestones, which are shares of all steps."""

    name: Literal["steps"]
    milestones: tuple[float, ...]
    gamma: float = Field(default=0.1, gt=0)

    def factor(self, step: int, steps: int) -> float:
        """What the learning rate of `step`, counted from 0, is multiplied by."""
        return self.gamma ** sum(step >= share * steps for share in self.milestones)


class Polynomial(_Choice):
    """(1 - t)^power after a linear warm-up of `warmup` of all steps."""

    name: Literal["polynomial"]
    power: float = Field(default=0.9, gt=0)
    warmup: float = Field(default=0.0, ge=0, lt=1, description="share of the steps")

    def factor(self, step: int, steps: int) -> float:
        """What the learning rate of `step`, counted from 0, is multiplied by."""
        start = self.warmup * steps
        if step < start:
            return (step + 1) / math.ceil(start + 1)
        return (1 - (step - start) / (steps - start)) ** self.power


Optimizer = Annotated[Adam | SGD, Field(discriminator="name")]
Schedule = Annotated[Constant | OneCycle | Steps | Polynomial, Field(discriminator="name")]


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
