"""Augmentation: image and mask stay aligned, chances are the generator's alone, and the size is what it should be."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from sodeploy.errors import UserError
from sodeploy.training.augment import Augmentation

STEPS = (
    {"name": "crop_border", "most": 7},
    {"name": "crop_share", "most": 0.125},
    {"name": "rotate", "degrees": 10},
    {"name": "scale", "low": 0.75, "high": 1.25},
    {"name": "flip", "axis": "either", "p": 1},
    {"name": "enhance", "low": 1.0, "high": 1.1},
    {"name": "hide_patches", "sizes": [16, 0], "p": 0.2, "colour": [9, 9, 9]},
)
KEEP_SIZE = {"rotate", "scale", "flip", "enhance", "hide_patches"}


def step(**fields: object) -> Augmentation:
    made: Augmentation = TypeAdapter(Augmentation).validate_python(fields)
    return made


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A bright off-centre disc on grey, and its mask."""
    y, x = np.mgrid[0:90, 0:120]
    mask = (np.hypot(y - 40, x - 70) < 25).astype(np.uint8) * 255
    image = np.repeat(np.where(mask > 0, 200, 60).astype(np.uint8)[..., None], 3, axis=2)
    return image, mask


@pytest.mark.parametrize("fields", STEPS, ids=lambda fields: fields["name"])
def test_image_and_mask_stay_aligned(fields: dict[str, object]) -> None:
    made, (image, mask) = step(**fields), scene()
    for seed in range(10):
        new_image, new_mask = made(image, mask, np.random.default_rng(seed))
        again, _ = made(image, mask, np.random.default_rng(seed))
        np.testing.assert_array_equal(new_image, again)
        assert new_image.dtype == new_mask.dtype == np.uint8
        assert new_image.shape[:2] == new_mask.shape
        if fields["name"] in KEEP_SIZE:
            assert new_mask.shape == mask.shape
        bright = (new_image[..., 0] > 130) == (new_mask > 127)
        hidden = (new_image == 9).all(axis=2)
        assert (bright | hidden).mean() > 0.98
        masks = np.dstack([mask, 255 - mask, mask])
        np.testing.assert_array_equal(made(image, masks, np.random.default_rng(seed))[1][..., 0], new_mask)


def test_crops_lose_no_more_than_they_say() -> None:
    image, mask = scene()
    border, share = step(name="crop_border", most=7), step(name="crop_share", most=0.125)
    sizes = [border(image, mask, np.random.default_rng(seed))[1].shape for seed in range(200)]
    assert min(sizes)[0] >= 90 - 14
    assert max(sizes)[0] > 85
    sizes = [share(image, mask, np.random.default_rng(seed))[1].shape for seed in range(200)]
    assert min(height for height, _ in sizes) > 90 * 0.875 - 1
    assert min(width for _, width in sizes) > 120 * 0.875 - 1
    with pytest.raises(UserError, match="no border of 7 pixels"):
        border(image[:14], mask[:14], np.random.default_rng(0))


def test_enhancement_by_one_changes_nothing() -> None:
    image, mask = scene()
    made = step(name="enhance", low=1, high=1, p=1)
    np.testing.assert_array_equal(made(image, mask, np.random.default_rng(0))[0], image)
    brighter = step(name="enhance", low=1.1, high=1.1, p=1)(image, mask, np.random.default_rng(0))[0]
    assert brighter.mean() > image.mean()


def test_hidden_cells_have_their_colour_and_share() -> None:
    image = np.full((320, 320, 3), 200, np.uint8)
    made = step(name="hide_patches", sizes=[16], p=0.2, colour=[1, 2, 3])
    hidden = (made(image, image[..., 0], np.random.default_rng(0))[0] == (1, 2, 3)).all(axis=2)
    cells = hidden.reshape(20, 16, 20, 16).mean(axis=(1, 3))
    assert set(np.unique(cells)) == {0.0, 1.0}
    assert cells.mean() == pytest.approx(0.2, abs=0.06)
