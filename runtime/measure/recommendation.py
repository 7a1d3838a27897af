"""Which of several measured models to deploy, in plain sentences.

Worth deploying is the fastest model whose losses keep to the budget. Times are compared image by image, so that what
makes an image or a moment slow cancels; a model that is faster only within the noise of that comparison is not faster.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sodeploy.runtime.measure.budget import Budget, Verdict, in_words
from sodeploy.runtime.measure.differences import FEWEST_IMAGES

FEWEST = 6  # images that a median has a 95 % interval on: all above it, or all below, has a chance of 2 / 2^6
_PRECISIONS = ("fp32", "fp16", "bf16", "int8")  # the first of two that are equally fast is preferred


@dataclass(frozen=True, eq=False)
class Measured:
    """A model of a bench.

    Attributes:
        name: what sentences call it.
        verdict: what it loses against the baseline.
        times: (N,) ms of inference on each image; the same images for all models.
        stand_in: why its times are not those of anything one would deploy, as "simulates an engine"; "": they are.
        calibrated_here: its ranges were fitted to some of these images, so that its loss cannot be judged on them.
    """

    name: str
    precision: str
    verdict: Verdict
    times: np.ndarray
    stand_in: str = ""
    calibrated_here: bool = False


class Ratio(NamedTuple):
    """How many times as long one model takes as another, with a 95 % interval; None: fewer than `FEWEST` images."""

    value: float
    interval: tuple[float, float] | None

    @property
    def faster(self) -> bool:
        return self.interval is not None and self.interval[1] < 1

    @property
    def slower(self) -> bool:
        return self.interval is not None and self.interval[0] > 1

    def __str__(self) -> str:
        low, high = self.interval or (0, math.inf)
        return f"{_number(self.value)} times ({_number(low)} to {_number(high)})"


@dataclass(frozen=True)
class Recommendation:
    """The model to deploy.

    Attributes:
        model: index of the model; None without a budget, or if nothing here could be deployed.
        int8_pays: whether int8 is faster than everything wider; None: that was not measured, or is within the noise.
        sentences: for people.
    """

    model: int | None
    int8_pays: bool | None
    sentences: list[str]


def time_ratio(times: np.ndarray, others: np.ndarray) -> Ratio:
    """The median over images of `times` / `others`, both (N,) ms, N >= 1.

    Its interval is the exact, distribution-free one between two order statistics (Conover, Practical Nonparametric
    Statistics, 3rd ed., 1999, section 3.2).
    """
    ratios = np.sort(times / others)
    count = len(ratios)
    rank, term, below = 0, 1, 1  # the largest rank with P(Binomial(count, 1/2) < rank) <= 2.5 %
    while 40 * below <= 2**count:
        rank += 1
        term = term * (count - rank + 1) // rank
        below += term
    interval = (float(ratios[rank - 1]), float(ratios[count - rank])) if rank else None
    return Ratio(float(np.median(ratios)), interval)


def recommend(models: Sequence[Measured], budget: Budget | None) -> Recommendation:
    """The model to deploy, where a budget says what may be lost; without one, which is fastest.

    Of models that are equally fast within the noise, the one of higher precision. Times are told as multiples of those
    of the first model that could be deployed, usually the baseline.
    """
    real = [model for model in models if not model.stand_in]
    if not real:
        return Recommendation(None, None, ["None of these models would be deployed as it stands: no time to compare."])
    if (images := len(real[0].times)) < FEWEST:
        few = f"Times on {images} image{'s' if images > 1 else ''} cannot be compared; give {FEWEST} or more."
        return Recommendation(None, None, [few])
    pays, int8_sentence, partner = _int8(real)
    if budget is not None and images < FEWEST_IMAGES:
        few = f"A loss on {images} images cannot be judged at 95 %; give {FEWEST_IMAGES} or more."
        return Recommendation(None, pays, [few, int8_sentence] if int8_sentence else [few])
    if budget is None:
        best, reference = _best(real), real[0]
        fastest = f"Fastest: {best.name}, {_time(best, reference)}."
        said = [fastest if best is not reference else f"Nothing here is faster than {reference.name}."]
        said += [int8_sentence] if int8_sentence else []
        said.append("What may be lost was not said (--max-drop s=0.002,mae=0.001), so nothing is recommended.")
        return Recommendation(None, pays, said)

    fitting = [model for model in real if not model.calibrated_here and model.verdict.fits(budget)]
    if fitting:
        best, reference = _best(fitting), fitting[0]
        if best is reference:
            said = [f"Recommended: {best.name}. Nothing that keeps to the budget ({in_words(budget)}) is faster."]
        else:
            keeps = f"It keeps to the budget ({in_words(budget)}) at 95 %"
            said = [f"Recommended: {best.name}. {keeps} and takes {_time(best, reference)}."]
        said += [_beside(model, best, reference, budget) for model in real if model not in (best, reference)]
    else:
        said = [f"None of the models that could be deployed keeps to the budget ({in_words(budget)})."]
        said += [f"{model.name} {_fault(model, budget)}." for model in real]
    if int8_sentence and not (fitting and partner is reference):
        said.append(int8_sentence)
    for model in models:
        if model.stand_in:
            found = _fault(model, budget) or "keeps to the budget"
            said.append(f"{model.name} {model.stand_in}, so its time says nothing; it {found}.")
    return Recommendation(models.index(best) if fitting else None, pays, said)


def _best(models: Sequence[Measured]) -> Measured:
    fastest = min(models, key=lambda model: time_ratio(model.times, models[0].times).value)
    equal = [model for model in models if not time_ratio(model.times, fastest.times).slower]
    return min(equal, key=lambda model: (_width(model), model is not fastest))


def _int8(models: Sequence[Measured]) -> tuple[bool | None, str, Measured | None]:
    """Whether int8 pays, the sentence that says so, and the model that int8 was compared with."""
    narrow = [model for model in models if model.precision == "int8"]
    wide = [model for model in models if model.precision != "int8"]
    if not narrow or not wide:
        return None, "", None
    ours, theirs = (min(side, key=lambda model: float(np.median(model.times))) for side in (narrow, wide))
    ratio = time_ratio(ours.times, theirs.times)
    if ratio.faster:
        return True, f"int8 pays here: {ours.name} takes {_time(ours, theirs)}.", theirs
    if ratio.slower:
        return False, f"int8 does not pay here: {ours.name} takes {_time(ours, theirs)}.", theirs
    return None, f"Whether int8 pays is within the noise: {ours.name} takes {_time(ours, theirs)}.", theirs


def _beside(model: Measured, best: Measured, reference: Measured, budget: Budget) -> str:
    """Why this one is not the best."""
    to_best, time = time_ratio(model.times, best.times), _time(model, reference)
    if fault := _fault(model, budget):
        return f"{model.name} is faster, {time}, but {fault}." if to_best.faster else f"{model.name} {fault}."
    if not to_best.slower:
        return f"{model.name} keeps to the budget too; it is as fast as {best.name} within the noise, {to_best}."
    if time_ratio(model.times, reference.times).slower:
        what = "" if model.precision == reference.precision else f": {model.precision} does not pay here"
        return f"{model.name} keeps to the budget but takes {time}{what}."
    return f"{model.name} keeps to the budget too, but takes longer: {time}."


def _fault(model: Measured, budget: Budget) -> str:
    """Why a model cannot be said to keep to the budget; "": it keeps to it."""
    if model.calibrated_here:
        return "was calibrated on some of these images, so that its loss cannot be judged on them"
    if model.verdict.fits(budget):
        return ""
    enough = model.verdict.images_to_fit(budget, len(model.times))
    if enough is None:
        return f"loses too much: {model.verdict.explain(budget)}"
    return f"may lose too much: {model.verdict.explain(budget)}; about {enough} images like these would tell"


def _time(model: Measured, other: Measured) -> str:
    return f"{time_ratio(model.times, other.times)} the inference time of {other.name}"


def _width(model: Measured) -> int:
    return _PRECISIONS.index(model.precision) if model.precision in _PRECISIONS else 0


def _number(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"
