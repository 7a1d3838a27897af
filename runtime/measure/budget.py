"""The budget: how much accuracy a network may lose, and whether a measured loss stays within it."""

import math
from collections.abc import Collection
from dataclasses import dataclass

from sodeploy.errors import UserError
from sodeploy.runtime.measure.differences import FEWEST_IMAGES, Delta
from sodeploy.runtime.measure.metrics import METRICS, default_metrics
from sodeploy.runtime.measure.report import decimal

Budget = dict[str, float]  # key of a metric in `METRICS` -> the largest loss that is allowed


def parse_budget(text: str, metrics: Collection[str] | None = None, option: str = "--max-drop") -> Budget:
    """The budget in `s=0.002,mae=0.001`.

    Args:
        metrics: the keys that it may name; those of the default metrics by default.
        option: its name in errors.

    Raises:
        UserError: another form, an unknown metric, or a loss that is not above zero.
    """
    known = default_metrics() if metrics is None else metrics
    budget: Budget = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name not in known:
            raise UserError(
                f"{option} {text}: {name!r} is no metric; write for example s=0.002 with one of {', '.join(known)}"
            )
        try:
            budget[name] = float(number)
        except ValueError:
            raise UserError(f"{option} {text}: {number!r} is no number; write for example {name}=0.002") from None
        if not 0 < budget[name] < 1:
            raise UserError(
                f"{option} {text}: {name}={number} is not between 0 and 1; every rounding changes a map a little, so "
                f"give the smallest loss that matters to you, for example {name}=0.001"
            )
    return budget


def in_words(budget: Budget) -> str:
    """A budget as tables and sentences write it: S .0020, MAE .0010."""
    return ", ".join(f"{METRICS[metric].label} {_amount(allowed, allowed)}" for metric, allowed in budget.items())


def _amount(value: float, allowed: float) -> str:
    """A loss, in as many digits as what is allowed of it needs."""
    return decimal(value) if allowed >= 0.0005 else f"{value:.1e}"


@dataclass(frozen=True)
class Verdict:
    """The losses of a candidate against fp32 on the evaluation images.

    Attributes:
        deltas: candidate - fp32, by metric; empty if its maps were NaN or infinite.
    """

    deltas: dict[str, Delta]

    def loss(self, metric: str) -> float:
        """How much worse the metric is; negative: better; inf where the maps were NaN or infinite."""
        if metric not in self.deltas:
            return math.inf
        return METRICS[metric].worse_by(self.deltas[metric].value)

    def bound(self, metric: str) -> float:
        """The upper end of the 95 % interval of the loss; inf where there is no interval."""
        if metric not in self.deltas:
            return math.inf
        delta = self.deltas[metric]
        return max(METRICS[metric].worse_by(delta.low), METRICS[metric].worse_by(delta.high))

    def fits(self, budget: Budget) -> bool:
        return all(self.bound(metric) <= allowed for metric, allowed in budget.items())

    def images_to_fit(self, budget: Budget, images: int) -> int | None:
        """Roughly how many images would make this loss fit; None: it is too large on average.

        The images are assumed to be like the `images` that were measured; then an interval narrows with the square
        root of their number.
        """
        if any(self.loss(metric) >= allowed for metric, allowed in budget.items()):
            return None
        if any(math.isinf(self.bound(metric)) for metric in budget):
            return FEWEST_IMAGES
        widths = [
            (self.bound(metric) - self.loss(metric)) / (allowed - self.loss(metric))
            for metric, allowed in budget.items()
        ]
        return math.ceil(images * max(widths) ** 2)

    def explain(self, budget: Budget) -> str:
        """The loss in the metric that exceeds its budget most, in words."""
        if not self.deltas:
            return "the whole map, which becomes NaN or infinite"
        metric = max(budget, key=lambda name: self.bound(name) / budget[name])
        numbers = (self.loss(metric), self.bound(metric), budget[metric])
        loss, bound, allowed = (_amount(number, budget[metric]) for number in numbers)
        return f"{loss} {METRICS[metric].label}, at 95 % up to {bound} ({allowed} allowed)"
