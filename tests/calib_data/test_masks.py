"""Dilated and eroded masks, compared with the masks of the published preparation."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from golden_values import Golden

from sodeploy import command_line
from sodeploy.calib_data import open_dataset
from sodeploy.calib_data.masks import MARGIN, Radii, dilate, erode, main, margins, write_margins
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
            stored = cv2.imread(str(tmp_path / kind / f"{sample.name}.png"), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(stored, mask)
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]


def test_no_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--workers 0"):
        write_margins("synthetic:val:2:48", tmp_path, 0)


def test_nothing_is_written_outside_the_output(tmp_path: Path) -> None:
    data = tmp_path / "set"
    for folder in ("images", "masks"):
        (data / folder).mkdir(parents=True)
        cv2.imwrite(str(data / folder / "a.png"), np.eye(20, dtype=np.uint8) * 255)
    before = {path: path.read_bytes() for path in data.rglob("*.png")}
    lists = tmp_path / "lists"
    lists.mkdir()
    for number, line in enumerate((str(data / "images" / "a.png"), "../set/a", "../set/images/a.png")):
        (lists / f"{number}.txt").write_text(f"{line}\n")
        output = tmp_path / f"out{number}"
        assert write_margins(lists / f"{number}.txt", output, 1) == 1
        assert len(list(output.rglob("*.png"))) == 4
    assert {path: path.read_bytes() for path in data.rglob("*.png")} == before


def test_a_mask_is_never_overwritten(tmp_path: Path) -> None:
    for folder in ("images", "eroded"):
        (tmp_path / folder).mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.jpg"), np.zeros((20, 20, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.eye(20, dtype=np.uint8) * 255)
    (tmp_path / "eroded" / "a.png").symlink_to(tmp_path / "images" / "a.png")
    with pytest.raises(UserError, match=r"eroded/a.png would overwrite the input .*images/a.png"):
        write_margins(tmp_path / "images", tmp_path, 1)


@pytest.mark.parametrize("output", ["masks", "masks/more", "images"])
def test_the_folders_do_not_get_into_the_data_set(tmp_path: Path, output: str) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), np.eye(20, dtype=np.uint8) * 255)
    with pytest.raises(UserError, match=r"lies in the data set, in .*; choose a folder outside of it"):
        write_margins(tmp_path, tmp_path / output, 1)
    assert write_margins(tmp_path, tmp_path / "margins", 1) == 1


def test_each_mask_has_a_radius_of_its_own() -> None:
    mask = np.zeros((60, 60), np.uint8)
    mask[20:40, 20:40] = 255
    found = margins(mask, Radii(dilated=2, eroded=7, envelope=3))
    assert [int(found[kind].any(axis=0).sum()) for kind in ("dilated", "eroded")] == [24, 6]
    np.testing.assert_array_equal(found["envelope"], dilate(mask, 3) - erode(mask, 3))
    np.testing.assert_array_equal(margins(mask)["envelope"], dilate(mask, MARGIN) - erode(mask, MARGIN))
    between = margins(mask, Radii(dilated=2, eroded=7))
    np.testing.assert_array_equal(between["envelope"], between["dilated"] - between["eroded"])


def test_the_radius_is_an_option(tmp_path: Path) -> None:
    command = typer.main.get_command(command_line.application_of(main))
    words = ["synthetic:val:1:64", "--output", str(tmp_path), "--workers", "1"]
    command([*words, "--radius", "2", "--erode-radius", "4"], standalone_mode=False)
    (sample,) = open_dataset("synthetic:val:1:64")
    for kind, mask in margins(sample.mask(), Radii(2, 4)).items():
        stored = cv2.imread(str(tmp_path / kind / f"{sample.name}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(stored, mask)
    with pytest.raises(typer.BadParameter, match="greater than or equal to 1"):
        command([*words, "--radius", "0"], standalone_mode=False)
