"""Data sets in every usual layout are found, paired and ordered, and a missing file is named."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from research_data import ResearchFile

from sodeploy.calib_data import Dataset, Sample, open_dataset, overlap
from sodeploy.calib_data.dataset import FileSample
from sodeploy.errors import UserError

STEMS = ["a", "b", "c.v2"]


def write(path: Path, seed: int, size: tuple[int, int] = (12, 16)) -> None:
    """Write an image, or a mask where the name ends in .png, of the given height and width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), (pixels[..., 0] > 127) * np.uint8(255) if path.suffix == ".png" else pixels)


def make(root: Path, images: str, masks: str, stems: list[str] = STEMS) -> Path:
    """A data set of .jpg images and .png masks."""
    for seed, stem in enumerate(stems):
        write(root / images / f"{stem}.jpg", seed)
        write(root / masks / f"{stem}.png", seed)
    return root


@pytest.mark.parametrize(
    ("name", "images", "masks"),
    [
        ("mine", "images", "masks"),
        ("ECSSD", "images", "ground_truth_mask"),
        ("DUTS-TR", "DUTS-TR-Image", "DUTS-TR-Mask"),
        ("DUTS-TE", "DUTS-TE-Image", "DUTS-TE-Mask"),
        ("HKU-IS", "imgs", "gt"),
        ("DUT-OMRON", "DUT-OMRON-image", "pixelwiseGT-new-PNG"),
        ("DUT-OMRON", "DUT-OMRON-image/DUT-OMRON-image", "pixelwiseGT-new-PNG"),
        ("DIS-TR", "im", "gt"),
        ("DIS-TE1", "im", "gt"),
        ("PASCAL-S", "Imgs", "Imgs"),
        ("PASCAL-S", "Imgs", "GT"),
        ("SOD", "Image", "Mask"),
        ("AIM-500", "original", "mask"),
        ("P3M-500-P", "blurred_image", "mask"),
        ("P3M-500-NP", "original_image", "mask"),
        ("UHRSD_TE_2K", "image", "mask"),
        ("COD10K", "Image", "GT_Object"),
        ("DIS-VD", "im", "gt"),
        ("HRSOD_test", ".", "../HRSOD_test_mask"),
        ("any", "photos", "photos_gt"),
        ("flat", ".", "."),
    ],
)
@pytest.mark.parametrize("with_masks", [True, False])
def test_layouts(tmp_path: Path, name: str, images: str, masks: str, with_masks: bool) -> None:
    root = make(tmp_path / name, images, masks)
    (root / images / "Thumbs.db").touch()
    (root / images / "._a.jpg").touch()
    dataset = open_dataset(root, masks=with_masks)
    assert dataset.name == name
    assert [sample.name for sample in dataset] == STEMS
    for seed, sample in enumerate(dataset):
        assert isinstance(sample, FileSample)
        assert sample.image_path.samefile(root / images / f"{STEMS[seed]}.jpg")
        assert sample.image().shape == (12, 16, 3)
        if with_masks:
            expected = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)[..., 0] > 127
            np.testing.assert_array_equal(sample.mask(), expected * np.uint8(255))
        else:
            with pytest.raises(UserError, match=r"a\.jpg has no mask|b\.jpg has no mask|c\.v2\.jpg has no mask"):
                sample.mask()


def test_flat_folder_of_images(tmp_path: Path) -> None:
    for seed, name in enumerate(["z.jpg", "a.bmp", "m.JPEG"]):
        write(tmp_path / name, seed)
    dataset = open_dataset(tmp_path, masks=False)
    assert [sample.name for sample in dataset] == ["a", "m", "z"]
    assert len(dataset) == 3
    assert dataset[-1].name == "z"
    with pytest.raises(UserError, match="has no masks; looked in"):
        open_dataset(tmp_path)


def test_unpaired_files_are_named(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "images", "masks")
    (root / "masks" / "b.png").unlink()
    with pytest.raises(UserError, match=r"image .*b\.jpg has no mask of the same name in .*masks"):
        open_dataset(root)
    assert len(open_dataset(root, masks=False)) == 3
    (root / "images" / "b.jpg").unlink()
    (root / "images" / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"mask .*a\.png has no image of the same name in .*images"):
        open_dataset(root)
    (root / "images" / "c.v2.jpg").unlink()
    with pytest.raises(UserError, match="has no images; looked in"):
        open_dataset(root)


def test_two_files_of_one_name_are_named(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "images", "masks")
    write(root / "images" / "a.bmp", 9)
    with pytest.raises(UserError, match=r"a\.bmp and a\.jpg share a name"):
        open_dataset(root)


def test_two_folders_for_one_part_are_named(tmp_path: Path) -> None:
    root = make(make(tmp_path / "set", "images", "masks"), "imgs", "gt")
    with pytest.raises(UserError, match="both images/ and imgs/"):
        open_dataset(root)


def test_folder_above_is_answered_with_its_data_sets(tmp_path: Path) -> None:
    for part in ("DUTS-TR", "DUTS-TE"):
        make(tmp_path / part, f"{part}-Image", f"{part}-Mask")
    with pytest.raises(UserError, match=r"did you mean .*DUTS-TE or .*DUTS-TR\?"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("source", ["nowhere", "list.txt", "file.csv"])
def test_missing_or_strange_source_is_named(tmp_path: Path, source: str) -> None:
    (tmp_path / "file.csv").touch()
    with pytest.raises(UserError, match=f"{source} .*give a folder, a .txt list of images, or synthetic:"):
        open_dataset(tmp_path / source)


def test_list_of_names_and_paths(tmp_path: Path) -> None:
    make(tmp_path / "ECSSD", "images", "ground_truth_mask")
    make(tmp_path / "HKU-IS", "imgs", "gt")
    elsewhere = make(tmp_path / "other" / "flat", ".", ".")
    lines = ["# ours", "", "HKU-IS/b", "ECSSD/c.v2", "ECSSD/b.jpg", "ECSSD/images/a.jpg", f"{elsewhere}/a.jpg"]
    (tmp_path / "mixed.txt").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    dataset = open_dataset(tmp_path / "mixed.txt")
    assert dataset.name == "mixed"
    names = [sample.name for sample in dataset]
    assert names == ["HKU-IS/b", "ECSSD/c.v2", "ECSSD/b", "ECSSD/images/a", "flat/a"]
    masks = [sample.mask_path for sample in dataset if isinstance(sample, FileSample)]
    expected = ["HKU-IS/gt/b.png", "ECSSD/ground_truth_mask/c.v2.png", "ECSSD/ground_truth_mask/b.png",
                "ECSSD/ground_truth_mask/a.png", "other/flat/a.png"]  # fmt: skip
    assert masks == [tmp_path / path for path in expected]
    assert all(sample.mask().shape == (12, 16) for sample in dataset)


def test_names_do_not_tell_where_a_machine_keeps_its_data(tmp_path: Path) -> None:
    def names(machine: Path) -> list[str]:
        for root in ("first/ECSSD", "second/ECSSD", "second/DUTS"):
            make(machine / root, "images", "masks")
        paths = [machine / "second/DUTS/images/a.jpg", "../second/ECSSD/b", machine / "first/ECSSD/images/a.jpg"]
        paths += [machine / "second/ECSSD/images/a.jpg", "own.jpg"]
        write(machine / "lists" / "own.jpg", 9)
        (machine / "lists" / "some.txt").write_text("\n".join(map(str, paths)))
        return [sample.name for sample in open_dataset(machine / "lists" / "some.txt", masks=False)]

    expected = ["DUTS/a", "ECSSD/b", "first/ECSSD/a", "second/ECSSD/a", "own"]
    assert names(tmp_path / "one") == names(tmp_path / "two" / "mnt") == expected


def test_a_list_names_one_of_two_files_with_one_stem(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif", "b.jpg"):
        write(tmp_path / name, 0)
    (tmp_path / "some.txt").write_text("a.tif\nb.jpg\n")
    assert [sample.name for sample in open_dataset(tmp_path / "some.txt", masks=False)] == ["a", "b"]
    (tmp_path / "some.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"a\.png and a\.tif share a name"):
        open_dataset(tmp_path / "some.txt", masks=False)


def test_list_of_bare_images_needs_no_masks(tmp_path: Path) -> None:
    write(tmp_path / "x.jpg", 0)
    (tmp_path / "some.txt").write_text("x.jpg\n")
    assert open_dataset(tmp_path / "some.txt", masks=False)[0].image().shape == (12, 16, 3)
    with pytest.raises(UserError, match=r"some\.txt, line 1: x\.jpg: has no mask; looked in"):
        open_dataset(tmp_path / "some.txt")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("set/nothing", r"line 2: set/nothing: no such image; looked for .*images/nothing\.\*"),
        ("nowhere/a", "line 2: nowhere/a: no such image"),
        ("set/images/gone.jpg", r"line 2: set/images/gone\.jpg: no such image"),
        ("set/b", r"line 2: set/b: has no mask b\.\* in .*masks"),
        ("set/images/a.jpg", "line 2: set/images/a.jpg already stands in line 1"),
    ],
)
def test_list_line_that_leads_nowhere_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    make(tmp_path / "set", "images", "masks")
    (tmp_path / "set" / "masks" / "b.png").unlink()
    (tmp_path / "list.txt").write_text(f"set/a\n{line}\n")
    with pytest.raises(UserError, match=complaint):
        open_dataset(tmp_path / "list.txt")


def test_empty_and_binary_lists_are_named(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# nothing\n\n")
    with pytest.raises(UserError, match=r"list\.txt lists no images"):
        open_dataset(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match=r"list\.txt is not UTF-8 text"):
        open_dataset(tmp_path / "list.txt")


def test_mask_of_another_size_is_named_with_both(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "images", "masks")
    write(root / "masks" / "b.png", 1, (16, 12))
    sample = open_dataset(root)[1]
    with pytest.raises(UserError, match=r"b\.png is 12x16 but its image .*b\.jpg is 16x12"):
        sample.mask()
    sample.image()
    with pytest.raises(UserError, match="12x16"):
        sample.mask()


def test_overlap_is_by_content(tmp_path: Path) -> None:
    one = make(tmp_path / "one", "images", "masks")
    (tmp_path / "two" / "images").mkdir(parents=True)
    shutil.copy(one / "images" / "b.jpg", tmp_path / "two" / "images" / "renamed.jpg")
    write(tmp_path / "two" / "images" / "a.jpg", 77)  # same name, other content
    a, b = open_dataset(one), open_dataset(tmp_path / "two", masks=False)
    assert overlap(a, b) == ["b"]
    assert overlap(b, a) == ["renamed"]
    assert overlap(a, a) == STEMS
    (one / "images" / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"a\.jpg"):
        overlap(open_dataset(tmp_path / "two", masks=False), Dataset("stale", [FileSample("a", one / "images/a.jpg")]))


def test_names(tmp_path: Path) -> None:
    dataset = open_dataset(make(tmp_path / "ECSSD", "images", "masks"))
    assert str(dataset) == "ECSSD (3 images)"
    assert repr(dataset) == "Dataset(name='ECSSD')"
    first: Sample = dataset[0]
    assert "a.jpg" in repr(first)


def test_research_lists(research_file: ResearchFile) -> None:
    evaluation, calibration = (open_dataset(research_file(f"data/{name}.txt")) for name in ("eval", "calib"))
    assert (evaluation.name, len(evaluation), len(calibration)) == ("eval", 200, 100)
    assert evaluation[0].name == "ECSSD/0007"
    assert evaluation[0].image().shape[:2] == evaluation[0].mask().shape
    assert overlap(calibration, evaluation) == []


def test_the_first_samples_of_a_data_set() -> None:
    dataset = open_dataset("synthetic:eval:4")
    names = [sample.name for sample in dataset]
    assert [sample.name for sample in dataset.first(3)] == names[:3]
    assert [sample.name for sample in dataset.first(9)] == [sample.name for sample in dataset.first(None)] == names
    assert dataset.first(3).name == dataset.name
