"""The synthetic set is the same everywhere and always, its masks are exact, and no simple rule solves it."""

import pickle

import cv2
import numpy as np
import pytest

from sodeploy.calib_data import open_dataset, overlap
from sodeploy.calib_data.shapes import draw_shape, place, rasterize
from sodeploy.calib_data.synthetic import SyntheticSample
from sodeploy.errors import UserError

KNOWN = (70.6, 68.6, 82.2, 0.1311)  # mean red, green, blue of scene eval-00000 at 128, and its mask's share


def test_deterministic_and_independent_of_count() -> None:
    few, many = open_dataset("synthetic:eval:3"), open_dataset("synthetic:eval:30")
    for a, b in zip(few, many, strict=False):
        np.testing.assert_array_equal(a.image(), b.image())
        np.testing.assert_array_equal(a.mask(), b.mask())
        assert a.name == b.name
        assert a.digest() == b.digest()


def test_known_scene() -> None:
    """Figures of one scene, loose enough for another OpenCV's rounding: the set must not change unnoticed."""
    sample = SyntheticSample("eval", 0, 128)
    image, mask = sample.image(), sample.mask()
    assert image.mean(axis=(0, 1)) == pytest.approx(KNOWN[:3], abs=0.5)
    assert mask.mean() / 255 == pytest.approx(KNOWN[3], abs=0.002)


def test_splits_are_disjoint_and_scenes_differ() -> None:
    splits = [open_dataset(f"synthetic:{split}:12:64") for split in ("train", "val", "calib", "eval")]
    digests = {sample.digest() for split in splits for sample in split}
    assert len(digests) == 48
    assert overlap(splits[2], splits[3]) == []
    assert overlap(splits[2], open_dataset("synthetic:calib:5:64")) == [f"calib-{i:05}" for i in range(5)]


def test_sizes() -> None:
    sizes = {sample.image().shape[:2] for sample in open_dataset("synthetic:val:20")}
    assert len(sizes) > 15
    assert all(160 <= side <= 320 for size in sizes for side in size)
    for side in (32, 200, 512):
        sample = open_dataset(f"synthetic:val:1:{side}")[0]
        assert sample.image().shape == (side, side, 3)
        assert sample.mask().shape == (side, side)


def test_same_scene_at_every_size() -> None:
    small, large = (open_dataset(f"synthetic:eval:8:{side}") for side in (96, 384))
    for a, b in zip(small, large, strict=True):
        reduced = cv2.resize(b.mask(), (96, 96), interpolation=cv2.INTER_AREA).astype(int)
        assert np.abs(reduced - a.mask()).mean() < 4


def test_types_and_contents() -> None:
    shares = []
    for sample in open_dataset("synthetic:train:60"):
        image, mask = sample.image(), sample.mask()
        assert image.dtype == mask.dtype == np.uint8
        assert image.shape == (*mask.shape, 3)
        assert image.std() > 5
        share = (mask > 127).mean()
        assert 0.005 < share < 0.7, sample.name
        soft = ((mask > 0) & (mask < 255)).mean()
        assert 0 < soft < 0.2, sample.name  # anti-aliased, and only along edges
        shares.append(share)
    assert np.std(shares) > 0.03


def test_masks_are_exact() -> None:
    """A pixel of a shape's coverage is the share of it that the shape fills."""
    square = np.array([[10.0, 10.0], [20.25, 10.0], [20.25, 20.5], [10.0, 20.5]])
    hole = np.array([[13.0, 13.0], [15.0, 13.0], [15.0, 15.0], [13.0, 15.0]])
    coverage = rasterize(([square], [hole]), (32, 32)) / 255
    assert coverage.sum() == pytest.approx(10.25 * 10.5 - 4, rel=0.06)
    assert coverage[11, 11] == 1
    assert coverage[13, 13] == 0
    assert coverage[5, 5] == 0
    assert 0 < coverage[15, 20] < 1
    assert not rasterize(([square + 100], []), (32, 32)).any()


def test_every_shape_is_drawn_within_its_radius() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        shape = place(draw_shape(rng), np.array([100.0, 100.0]), 40, 0.3)
        coverage = rasterize(shape, (200, 200))
        assert 100 < (coverage > 127).sum() < np.pi * 70**2
        assert not coverage[:30].any()
        assert not coverage[:, :30].any()


def test_no_simple_rule_solves_it() -> None:
    """Neither brightness, told which polarity is right, nor the image's middle finds the objects; networks pass .7."""
    threshold, middle = [], []
    for sample in open_dataset("synthetic:eval:60:128"):
        image, truth = sample.image(), sample.mask() > 127
        _, bright = cv2.threshold(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 0, 1, cv2.THRESH_OTSU)
        threshold.append(max(iou(bright > 0, truth), iou(bright == 0, truth)))
        centre = np.zeros_like(truth)
        centre[32:96, 32:96] = True
        middle.append(iou(centre, truth))
    assert np.mean(threshold) < 0.5
    assert np.mean(middle) < 0.4


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boolean masks."""
    return float((a & b).sum() / (a | b).sum())


def test_survives_pickling() -> None:
    dataset = open_dataset("synthetic:train:4:64")
    dataset[0].digest()
    again = pickle.loads(pickle.dumps(dataset))
    assert again == dataset
    assert again[3].digest() == dataset[3].digest()


def test_names_and_defaults() -> None:
    assert open_dataset("synthetic:eval:100").name == "synthetic:eval:100"
    assert open_dataset("synthetic:eval:100:320").name == "synthetic:eval:100:320"
    assert open_dataset("synthetic:calib").name == "synthetic:calib:100"
    assert len(open_dataset("synthetic:train")) == 2000
    assert open_dataset("synthetic:val", masks=False)[7].name == "val-00007"


@pytest.mark.parametrize(
    "source",
    ["synthetic:", "synthetic:test", "synthetic:eval:", "synthetic:eval:ten", "synthetic:eval:-5", "synthetic:eval:0",
     "synthetic:eval:10:16", "synthetic:eval:10:99999", "synthetic:eval:10:64:1", "synthetic:eval:²"],
)  # fmt: skip
def test_bad_source_is_answered_with_the_syntax(source: str) -> None:
    with pytest.raises(UserError) as error:
        open_dataset(source)
    assert source in str(error.value)
    assert "synthetic:train|val|calib|eval[:COUNT[:SIZE]]" in str(error.value)
