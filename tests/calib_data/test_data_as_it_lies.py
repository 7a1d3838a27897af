"""Masks with endings, lists of pairs, and several data sets by name under one root."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from sodeploy.calib_data import open_dataset, open_datasets
from sodeploy.calib_data.dataset import FileSample
from sodeploy.errors import UserError


def draw(path: Path) -> None:
    """A picture of 8 x 8 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.eye(8, dtype=np.uint8) * 255)


def make(root: Path, *names: str) -> Path:
    """A data set in images/ and masks/."""
    for name in names or ("a", "b"):
        draw(root / "images" / f"{name}.jpg")
        draw(root / "masks" / f"{name}.png")
    return root


def pairs(source: str | Path, **more: Path) -> list[tuple[str, str]]:
    """The file names of each image and its mask."""
    found = []
    for sample in open_dataset(source, **more):  # type: ignore[arg-type]
        assert isinstance(sample, FileSample)
        assert sample.mask_path is not None
        found.append((sample.image_path.name, sample.mask_path.name))
    return found


@pytest.mark.parametrize("ending", ["_mask", "_gt", "-mask", ".mask", "_segmentation", "_GT", ""])
@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_masks_with_endings(tmp_path: Path, ending: str, suffix: str) -> None:
    for name in ("x.y", "z"):
        draw(tmp_path / "flat" / f"{name}.jpg")
        draw(tmp_path / "flat" / f"{name}{ending}{suffix}")
        draw(tmp_path / "parted" / "imgs" / f"{name}.png")
        draw(tmp_path / "parted" / "gt" / f"{name}{ending}{suffix}")
    masks = [f"{name}{ending}{suffix}" for name in ("x.y", "z")]
    assert pairs(tmp_path / "flat") == list(zip(["x.y.jpg", "z.jpg"], masks, strict=True))
    assert pairs(tmp_path / "parted") == list(zip(["x.y.png", "z.png"], masks, strict=True))
    assert [sample.name for sample in open_dataset(tmp_path / "flat", masks=False)] == ["x.y", "z"]


def test_an_ending_of_an_image_of_its_own_is_no_mask(tmp_path: Path) -> None:
    for name in ("a_mask", "b"):
        draw(tmp_path / "images" / f"{name}.jpg")
        draw(tmp_path / "masks" / f"{name}.png")
    assert pairs(tmp_path) == [("a_mask.jpg", "a_mask.png"), ("b.jpg", "b.png")]


def test_two_masks_of_one_image_are_named(tmp_path: Path) -> None:
    for name in ("x.jpg", "x.png", "x_mask.png"):
        draw(tmp_path / name)
    with pytest.raises(UserError, match=r"x\.png and x_mask\.png share a name"):
        open_dataset(tmp_path)


def test_several_sets_in_one_folder_are_named(tmp_path: Path) -> None:
    for part in ("HRSOD_test", "HRSOD_train"):
        draw(tmp_path / part / "a.jpg")
        draw(tmp_path / f"{part}_mask" / "a.png")
    with pytest.raises(UserError, match=r"holds several data sets; give .*HRSOD_test or .*HRSOD_train"):
        open_dataset(tmp_path)
    assert pairs(tmp_path / "HRSOD_train") == [("a.jpg", "a.png")]


@pytest.mark.parametrize("gap", [" ", "\t", ",", ", ", "   "])
@pytest.mark.parametrize("name", ["plain", "two words", "a,b", "a, b c"])
def test_a_list_of_images_and_masks(tmp_path: Path, gap: str, name: str) -> None:
    draw(tmp_path / "data" / "Image" / f"{name}.jpg")
    draw(tmp_path / "data" / "Elsewhere" / f"{name} x.png")
    (tmp_path / "train_pair.lst").write_text(f"Image/{name}.jpg{gap}Elsewhere/{name} x.png\n")
    root = tmp_path / "data"
    assert pairs(tmp_path / "train_pair.lst", root=root) == [(f"{name}.jpg", f"{name} x.png")]
    assert open_dataset(tmp_path / "train_pair.lst", root=root)[0].name == f"Image/{name}"


def test_a_list_under_a_root_may_name_images_alone(tmp_path: Path) -> None:
    root = make(tmp_path / "ECSSD")
    (root / "test.lst").write_text("a.jpg\nb.jpg\n")
    found = open_dataset(root / "test.lst", root=root / "images")
    assert (found.name, [sample.name for sample in found]) == ("ECSSD", ["a", "b"])
    assert pairs(root / "test.lst", root=root / "images") == [("a.jpg", "a.png"), ("b.jpg", "b.png")]


def test_a_list_names_the_mask_that_is_missing(tmp_path: Path) -> None:
    draw(tmp_path / "a.jpg")
    (tmp_path / "some.lst").write_text("a.jpg gone.png\n")
    with pytest.raises(UserError, match=r"some\.lst, line 1: a\.jpg gone\.png: no such mask; looked for .*gone\.png"):
        open_dataset(tmp_path / "some.lst")
    assert len(open_dataset(tmp_path / "some.lst", masks=False)) == 1


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of data sets, one of them a folder below."""
    for name in ("DUTS/DUTS-TE", "ECSSD", "DUTOMRON", "HKU-IS", "PASCAL-S", "SOD", "DIS5K/DIS-VD"):
        make(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("ECSSD", "ECSSD"),
        ("pascals", "PASCAL-S"),
        ("DUTS-TE", "DUTS-TE"),
        ("DIS-VD", "DIS-VD"),
        ("DUT-OMRON", "DUTOMRON"),
        *zip("etdhpos", ["ECSSD", "DUTS-TE", "DUTOMRON", "HKU-IS", "PASCAL-S", "SOD", "SOD"], strict=True),
    ],
)
def test_data_sets_by_name_under_a_root(root: Path, typed: str, found: str) -> None:
    assert open_dataset(typed, root=root).name == found


def test_several_data_sets(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    for sources in ("DUTS-TE,ECSSD", ["DUTS-TE", "ECSSD"], ["t, e"]):
        one, other = open_datasets(sources, root=root)
        assert (one.name, other.name) == ("DUTS-TE", "ECSSD")
        joined = open_dataset(sources, root=root)
        assert joined.name == "DUTS-TE+ECSSD"
        assert [sample.name for sample in joined] == ["DUTS-TE/a", "DUTS-TE/b", "ECSSD/a", "ECSSD/b"]
    assert [one.name for one in open_datasets("e,h")] == ["ECSSD", "HKU-IS"]  # of the working folder
    assert len(open_dataset("ECSSD,synthetic:val:3:32", root=root)) == 5
    assert open_dataset(joined) is joined
    make(root / "A,B")
    assert open_dataset("A,B", root=root).name == "A,B"


def test_what_a_root_does_not_hold_is_named(root: Path) -> None:
    with pytest.raises(UserError, match="has no data set MSRA; it holds DIS5K, DUTOMRON, DUTS, ECSSD"):
        open_dataset("MSRA", root=root)
    with pytest.raises(UserError, match="nowhere is no folder; give the one that holds the data sets"):
        open_dataset("ECSSD", root=root / "nowhere")
    with pytest.raises(UserError, match="ECSSD is given twice"):
        open_datasets(["ECSSD", "e"], root=root)
    with pytest.raises(UserError, match="no data set is given"):
        open_datasets([])
    make(root / "ec-ssd")
    assert open_dataset("e", root=root).name == "ECSSD"
    with pytest.raises(UserError, match=r"ecssd can be .*ECSSD or .*ec-ssd; give the path of one"):
        open_dataset("ecssd", root=root)
