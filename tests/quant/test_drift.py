"""Whether the images were enough: from what was counted, in any order, and right about sets that are and are not."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pytest

from sodeploy.quant.calibration.histogram import MagnitudeHistogram
from sodeploy.quant.calibration.methods import DEFAULT, threshold
from sodeploy.quant.calibration.observer import calibrate
from sodeploy.quant.calibration.statistics import Statistics, is_in_half
from sodeploy.quant.graph import Network
from sodeploy.quant.planning.decide import make_plan
from sodeploy.quant.planning.drift import Drift, drift
from sodeploy.quant.planning.evidence import Evidence
from sodeploy.quant.planning.plan import Plan


@dataclass(frozen=True)
class Field:
    """An image of noise, brighter or darker; by its digest in the half or not."""

    seed: int
    brightness: int

    @property
    def name(self) -> str:
        return f"field {self.seed}"

    def image(self) -> np.ndarray:
        return np.random.default_rng(self.seed).integers(0, self.brightness, (32, 32, 3), np.uint8)

    def mask(self) -> np.ndarray:
        raise NotImplementedError

    def digest(self) -> str:
        return hashlib.sha256(str(self.seed).encode()).hexdigest()


def test_the_half_is_what_its_images_alone_would_give(unet: Network, pictures: list, statistics: Statistics) -> None:
    half = [picture for picture in pictures if is_in_half(picture.digest())]
    assert 0 < len(half) < len(pictures)
    alone = calibrate(unet, half)
    assert alone.histograms.keys() == statistics.half.keys()
    for tensor, histogram in alone.histograms.items():
        assert np.array_equal(statistics.half[tensor].counts, histogram.counts)
        assert statistics.half[tensor].maximum == histogram.maximum


def test_drift_is_the_distance_of_the_ranges_of_half(statistics: Statistics, plan: Plan) -> None:
    found = drift(plan, statistics)
    assert found is not None
    moved = []
    for shared in plan.ranges:
        histogram = MagnitudeHistogram()
        for tensor in shared.tensors:
            histogram = histogram + statistics.half.get(tensor, MagnitudeHistogram())
        moved.append(abs(threshold(histogram, DEFAULT) - shared.amax) / shared.amax)
    assert found.largest == pytest.approx(max(moved))
    assert found.median == pytest.approx(np.median(moved))
    assert (found.images, found.half) == (6, 3)


def test_order_and_shards_make_no_difference(unet: Network, pictures: list, statistics: Statistics, plan: Plan) -> None:
    merged = calibrate(unet, pictures[4:])
    merged.merge(calibrate(unet, pictures[3::-1]))
    assert drift(plan, merged) == drift(plan, statistics)


def test_like_images_are_enough_and_unlike_ones_are_not(unet: Network) -> None:
    like = calibrate(unet, [Field(seed, 200) for seed in range(12)])
    found = drift(make_plan(unet, Evidence(like), "max"), like)
    assert found is not None
    assert found.enough
    assert "enough" in str(found)
    # All that is bright stands outside the half.
    unlike = [Field(seed, 40 if is_in_half(Field(seed, 1).digest()) else 256) for seed in range(12)]
    uneven = calibrate(unet, unlike)
    found = drift(make_plan(unet, Evidence(uneven), "max"), uneven)
    assert found is not None
    assert not found.enough
    assert "more images" in str(found)


def test_too_few_images_to_say(unet: Network, pictures: list) -> None:
    one = calibrate(unet, pictures[:1])
    assert drift(make_plan(unet, Evidence(one)), one) is None


def test_the_line_names_the_tensor_and_the_figures() -> None:
    line = str(Drift(largest=0.3, tensor="/conv1/Conv_output_0", median=0.05, noise=1.26, images=16, half=7))
    assert line == (
        "from 7 to all 16 images ranges moved by 5.0% (median; /conv1/Conv_output_0 most, by 30.0%), nine of ten by "
        "under 1.3 dB of quantization noise: more images would make ranges steadier"
    )
