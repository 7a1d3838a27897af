"""The content of a report beyond a bench's record: scores of each image, where models lose, and example images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sodeploy.calib_data import Sample
from sodeploy.runtime.measure.metrics import METRICS, Pair, Scores, score
from sodeploy.runtime.measure.record import BenchRecord
from sodeploy.runtime.measure.under_test import ModelUnderTest
from sodeploy.runtime.review.regions import region_shares, regional_losses, regions_of

EXAMPLES = 4  # images of each kind


@dataclass(frozen=True, eq=False)
class ImageEvidence:
    """One image: the scores of each model, and where each differs from the first.

    Attributes:
        name: of the sample.
        scores: of each model, with curves.
        losses: (models, regions) parts of MAE - MAE of the first model.
        shares: (regions,) shares of the pixels.
    """

    name: str
    scores: list[Scores]
    losses: np.ndarray
    shares: np.ndarray


@dataclass(frozen=True, eq=False)
class Example:
    """An image with the maps of two models.

    Attributes:
        name: of the sample.
        change: by which the metric is worse; negative: better.
        image: (H, W, 3) uint8 RGB.
        mask, baseline, other: (H, W) uint8.
    """

    name: str
    change: float
    image: np.ndarray
    mask: np.ndarray
    baseline: np.ndarray
    other: np.ndarray


@dataclass(frozen=True, eq=False)
class Evidence:
    """The evidence of one bench.

    Attributes:
        record: the bench's own record.
        scores: of each model, in the order of the rows, with curves.
        losses: (models, regions) parts of MAE - MAE of the first model, means over the images.
        shares: (regions,) shares of the pixels, means over the images.
        compared: index of the model that the examples show beside the first; None: there is one model.
        metric: key of the metric by which the examples were chosen.
        lost, gained: images with the largest loss and the largest gain.
    """

    record: BenchRecord
    scores: list[Scores]
    losses: np.ndarray
    shares: np.ndarray
    compared: int | None
    metric: str
    lost: list[Example]
    gained: list[Example]


class EvidenceLog:
    """Collects evidence while a bench runs. `evidence` is there once the bench has ended."""

    evidence: Evidence

    def __init__(self) -> None:
        self._images: list[ImageEvidence] = []

    def add(self, image: ImageEvidence) -> None:
        """Keep the evidence of an image."""
        self._images.append(image)

    def finish(self, record: BenchRecord, tested: Sequence[ModelUnderTest], samples: Sequence[Sample]) -> None:
        """Choose the examples, and run the models on them once more.

        Args:
            tested: the models, still open, with the scores of `samples`.
            samples: the images that were scored.
        """
        kept = {sample.name for sample in samples}
        images = [image for image in self._images if image.name in kept]
        scores = [model.scores for model in tested]
        metric = example_metric(scores[0].keys)
        compared = _compared(record)
        lost: list[Example] = []
        gained: list[Example] = []
        if compared is not None:
            changes = image_changes(scores[0], scores[compared], metric)
            order = np.argsort(-changes, kind="stable")
            pair = (tested[0], tested[compared])
            lost = [_example(samples[index], changes[index], *pair) for index in order[:EXAMPLES] if changes[index] > 0]
            last = order[::-1][:EXAMPLES]
            gained = [_example(samples[index], changes[index], *pair) for index in last if changes[index] < 0]
        self.evidence = Evidence(
            record,
            scores,
            np.mean([image.losses for image in images], axis=0),
            np.mean([image.shares for image in images], axis=0),
            compared,
            metric,
            lost,
            gained,
        )


def examine(name: str, maps: Sequence[np.ndarray], mask: np.ndarray, keys: Sequence[str]) -> ImageEvidence:
    """The evidence of one image from the maps of all models.

    Args:
        name: of the sample.
        maps: (H, W) uint8 each; the first is the baseline's.
        mask: (H, W) uint8.
        keys: the metrics.
    """
    stretched = [Pair(saliency, mask).stretched for saliency in maps]
    baseline, foreground = stretched[0]
    regions = regions_of(foreground)
    losses = [regional_losses(baseline, saliency, foreground, regions) for saliency, _ in stretched]
    scores = [score(saliency, mask, keys) for saliency in maps]
    return ImageEvidence(name, scores, np.stack(losses), region_shares(regions))


def example_metric(keys: Sequence[str]) -> str:
    """The metric by which examples are chosen: S, else the first."""
    return "s" if "s" in keys else keys[0]


def image_changes(baseline: Scores, other: Scores, metric: str) -> np.ndarray:
    """(N,) by how much `metric` of each image is worse; negative: better."""
    one = METRICS[metric]
    before, after = (one.over(scores[one.per_image].reshape(len(scores), -1)) for scores in (baseline, other))
    return np.array([one.worse_by(change) for change in after - before])


def _compared(record: BenchRecord) -> int | None:
    """The model to show beside the baseline: one that would be deployed in int8 if there is one."""
    others = range(1, len(record.rows))
    by_interest = sorted(others, key=lambda at: (record.rows[at].precision != "int8", bool(record.rows[at].stand_in)))
    return by_interest[0] if by_interest else None


def _example(sample: Sample, change: float, baseline: ModelUnderTest, other: ModelUnderTest) -> Example:
    image = sample.image()
    maps = [model.again(image, sample.name) for model in (baseline, other)]
    return Example(sample.name, float(change), image, sample.mask(), *maps)
