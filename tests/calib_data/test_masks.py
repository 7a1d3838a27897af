"""Dilated and eroded masks, compared with the masks of the published preparation."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from golden_values import Golden

from sodeploy.calib_data import open_dataset
from sodeploy.calib_data.images import read_mask
from sodeploy.calib_data.masks import margins, write_margins
from sodeploy.errors import UserError

SHAPES = ("square", "disk", "ring", "two_blobs_border", "thin_line", "soft_disk", "empty", "full")


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_are_the_published_ones(shape: str) -> None:
    golden = Golden("masks")
    found = margins(golden[f"{shape}.mask"])
    for kind in ("dilated", "eroded", "envelope"):
        golden.check(f"{shape}.{kind}", found[kind])
    golden.check(f"{shape}.expanded_gt", found["expanded"] / 255, atol=1e-6, rtol=1e-7)


def test_a_hard_mask_expands_to_the_dilated_one() -> None:
    mask = np.zeros((40, 50), np.uint8)
    cv2.circle(mask, (20, 15), 9, 255, -1)
    found = margins(mask)
    np.testing.assert_array_equal(found["expanded"], found["dilated"])
    assert found["dilated"].sum() > mask.sum() > found["eroded"].sum() > 0


@pytest.mark.parametrize("workers", [1, 2])
def test_every_sample_of_a_data_set_is_written(tmp_path: Path, workers: int) -> None:
    source = "synthetic:val:5:48"
    assert write_margins(source, tmp_path, workers) == 5
    for sample in open_dataset(source):
        for kind, mask in margins(sample.mask()).items():
            np.testing.assert_array_equal(read_mask(tmp_path / kind / f"{sample.name}.png"), mask)
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]


def test_no_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--workers 0"):
        write_margins("synthetic:val:2:48", tmp_path, 0)
