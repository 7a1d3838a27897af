"""Batches: the same whatever loads them, every sample once an epoch, faults without a traceback."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sodeploy.calib_data import open_dataset
from sodeploy.errors import UserError
from sodeploy.training.augment import Flip, RandomCrop, Resize
from sodeploy.training.loader import AugmentedSamples, _report_unless_the_parent_is_gone, batches, places
from sodeploy.training.models import entry

CROP = (Flip(name="flip"), RandomCrop(name="random_crop", size=32))


def samples(source: str = "synthetic:train:10:48", augment: tuple = CROP) -> AugmentedSamples:
    return AugmentedSamples(open_dataset(source), augment, entry("u2net_tiny").contract, seed=5)


def load(workers: int) -> list[torch.Tensor]:
    sampler = places(range(10), 4, 5, range(5))
    return [tensor for batch in batches(samples(), sampler, workers, pin_memory=False) for tensor in batch]


def test_workers_change_nothing() -> None:
    for alone, shared in zip(load(0), load(2), strict=True):
        assert torch.equal(alone, shared)


def test_workers_start_although_opencv_has_threads() -> None:
    """A forked worker that ends a pool of threads which it does not have would hang."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(4)
    try:
        cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (9, 9), 0)  # starts them
        assert len(load(2)) == 10
        assert cv2.getNumThreads() == 4
    finally:
        cv2.setNumThreads(before)


def test_shapes_and_ranges() -> None:
    image, mask = load(0)[:2]
    assert image.shape == (4, 3, 32, 32)
    assert mask.shape == (4, 1, 32, 32)
    assert image.dtype == mask.dtype == torch.float32
    assert mask.min() == 0
    assert 0.9 < mask.max() <= 1
    assert -2.2 < image.min() < 0 < image.max() < 2.7


def test_every_sample_once_an_epoch_across_batches() -> None:
    taken = [place for batch in places(range(10), 4, 0, range(5)) for place in batch]
    for epoch in (0, 1):
        assert sorted(index for e, index in taken if e == epoch) == list(range(10))
    assert [index for e, index in taken if e == 0] != [index for e, index in taken if e == 1]


def test_only_given_indices_are_taken() -> None:
    assert {index for batch in places([2, 7, 9], 2, 0, range(3)) for _, index in batch} == {2, 7, 9}


def test_resuming_continues_the_sequence() -> None:
    whole = list(places(range(10), 4, 3, range(8)))
    assert list(places(range(10), 4, 3, range(5, 8))) == whole[5:]


@pytest.mark.parametrize(("processes", "passes"), [(2, 1), (1, 4), (2, 2)])
def test_processes_and_passes_divide_a_batch(processes: int, passes: int) -> None:
    whole = list(places(range(10), 8, 0, range(3)))
    parts = [list(places(range(10), 8, 0, range(3), (rank, processes), passes)) for rank in range(processes)]
    for step, batch in enumerate(whole):
        rows = [part[step * passes : (step + 1) * passes] for part in parts]
        assert [place for row in rows for chunk in row for place in chunk] == batch


def test_augmentation_moves_image_and_mask_together() -> None:
    random = np.random.default_rng(0)
    mask = random.integers(0, 256, (40, 60), np.uint8)
    image = np.repeat(mask[..., None], 3, axis=2)
    steps = (Flip(name="flip", axis="vertical"), *CROP, Resize(name="resize", size=50))
    for seed in range(20):
        chance = np.random.default_rng(seed)
        moved, moved_mask = image, mask
        for step in steps:
            moved, moved_mask = step(moved, moved_mask, chance)
        np.testing.assert_array_equal(moved[..., 0], moved_mask)
        assert moved_mask.shape == (50, 50)


def test_flips_do_what_they_are_called() -> None:
    mask = np.array([[1, 2], [3, 4]], np.uint8)
    image = np.repeat(mask[..., None], 3, axis=2)
    random = np.random.default_rng(0)
    assert Flip(name="flip", axis="horizontal", p=1)(image, mask, random)[1].tolist() == [[2, 1], [4, 3]]
    assert Flip(name="flip", axis="vertical", p=1)(image, mask, random)[1].tolist() == [[3, 4], [1, 2]]
    assert Flip(name="flip", p=0)(image, mask, random)[1].tolist() == mask.tolist()


def test_crops_reach_every_offset() -> None:
    mask = np.arange(16, dtype=np.uint8).reshape(4, 4)
    crop, random = RandomCrop(name="random_crop", size=3), np.random.default_rng(0)
    image = np.repeat(mask[..., None], 3, axis=2)
    assert {int(crop(image, mask, random)[1][0, 0]) for _ in range(100)} == {0, 1, 4, 5}
    with pytest.raises(UserError, match=r"a crop of 5 does not fit an image of 4x4"):
        RandomCrop(name="random_crop", size=5)(image, mask, random)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_one_line(tmp_path: Path, workers: int) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), np.full((48, 48), 9, np.uint8))
    (tmp_path / "images" / "a.png").write_bytes(b"broken")
    loaded = batches(samples(str(tmp_path)), places(range(1), 1, 0, range(1)), workers, pin_memory=False)
    with pytest.raises(UserError, match=r"a.png is broken") as error:
        next(loaded)
    assert "\n" not in str(error.value)


def test_sizes_that_differ_are_named() -> None:
    loaded = batches(samples("synthetic:train:8", ()), places(range(8), 8, 0, range(1)), 0, pin_memory=False)
    with pytest.raises(UserError, match=r"a batch has images of \d+x\d+ and \d+x\d+; add a resize"):
        next(loaded)


@pytest.mark.parametrize(
    ("error", "said"), [(ConnectionResetError(), ""), (EOFError(), ""), (ValueError("odd"), "odd")]
)
def test_a_worker_is_silent_about_a_parent_that_is_gone(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _report_unless_the_parent_is_gone(type(error), error, None)
    assert said in (printed := capsys.readouterr().err)
    assert bool(printed) == bool(said)
