"""Sources of pictures and the places of their outputs."""

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from sodeploy.errors import UserError
from sodeploy.runtime.media.sources import find_source
from sodeploy.runtime.media.targets import plan_targets

PNG = {"image": ".png"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Images at three depths, and files of other kinds."""
    for name in ("b.jpg", "a/c.JPEG", "a/d/e.png", "a/d/.hidden.png"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path.with_suffix(".png")), np.zeros((4, 5, 3), np.uint8))
        path.with_suffix(".png").rename(path)
    (tmp_path / "tree" / "readme.txt").write_text("no image")
    return tmp_path / "tree"


def names(source: str | Path | list[str | Path], output: Path | None = None) -> list[str]:
    return [item.name for item in find_source(source, output).items]


def test_a_folder_is_searched_with_its_subfolders(tree: Path) -> None:
    assert names(tree) == ["a/c.JPEG", "a/d/e.png", "b.jpg"]
    targets = plan_targets(find_source(tree), tree.parent / "out", PNG)
    assert [path.relative_to(tree.parent / "out").as_posix() for path in targets.todo.values()] == [
        "a/c.png",
        "a/d/e.png",
        "b.png",
    ]


def test_several_files_as_a_shell_gives_them(tree: Path) -> None:
    (tree / "phone.cr2").write_bytes(b"raw")
    found = find_source([tree / "b.jpg", tree / "a", tree / "a" / "c.JPEG", tree / "phone.cr2", tree / "gone.jpg"])
    assert [item.name for item in found.items] == ["b.jpg", "c.JPEG"]
    assert [reason.removeprefix(f"{tree}/") for reason in found.failed.values()] == [
        "a is a folder; give a folder alone, not beside files",
        "phone.cr2 is not read: it is a camera's raw file; develop it into JPEG or TIFF",
        "gone.jpg does not exist",
    ]
    assert names([tree]) == names(tree)


def test_a_link_that_leads_upward_is_no_endless_way(tree: Path) -> None:
    (tree / "a" / "up").symlink_to(tree)
    assert "up leads to a folder that is searched already" in find_source(tree).notes[0]
    assert names(tree) == ["a/c.JPEG", "a/d/e.png", "b.jpg"]


def test_the_destination_inside_the_source_is_not_searched(tree: Path) -> None:
    (tree / "a" / "d").rename(tree / "results")
    assert names(tree, tree / "results") == ["a/c.JPEG", "b.jpg"]
    assert "results is the destination" in find_source(tree, tree / "results").notes[0]
    assert names(tree, tree / "a" / ".." / "results") == ["a/c.JPEG", "b.jpg"]


def test_a_source_inside_the_destination(tree: Path) -> None:
    targets = plan_targets(find_source(tree / "a" / "d"), tree, PNG)
    assert list(targets.todo.values()) == [tree / "e.png"]
    (tree / "a" / "d" / "a").mkdir()
    (tree / "a" / "d" / "a" / "d").mkdir()
    (tree / "a" / "d" / "e.png").rename(tree / "a" / "d" / "x.png")
    cv2.imwrite(str(tree / "a" / "d" / "a" / "d" / "x.png"), np.zeros((4, 5), np.uint8))
    with pytest.raises(UserError, match=r"x.png would overwrite the input"):
        plan_targets(find_source(tree / "a" / "d"), tree, PNG)


def test_masks_of_a_data_set_are_no_images(tree: Path) -> None:
    for folder in ("im", "gt"):
        (tree / "DIS-VD" / folder).mkdir(parents=True)
        cv2.imwrite(str(tree / "DIS-VD" / folder / "x.png"), np.zeros((4, 5), np.uint8))
    assert names(tree / "DIS-VD") == ["x.png"]
    found = find_source(tree)
    assert [item.name for item in found.items] == ["DIS-VD/im/x.png", "a/c.JPEG", "a/d/e.png", "b.jpg"]
    with pytest.raises(UserError, match="holds the masks of these images"):
        plan_targets(find_source(tree / "DIS-VD" / "im"), tree / "DIS-VD" / "gt", PNG)


def test_a_few_pictures_of_the_same_names_are_no_masks(tree: Path) -> None:
    cv2.imwrite(str(tree / "b.png"), np.zeros((4, 5, 3), np.uint8))
    cv2.imwrite(str(tree / "other.bmp"), np.zeros((4, 5, 3), np.uint8))
    found = find_source(tree)
    assert [item.name for item in found.items] == ["a/c.JPEG", "a/d/e.png", "b.jpg", "b.png", "other.bmp"]
    targets = plan_targets(found, tree.parent / "out", PNG)
    assert ["b.png" in reason for reason in targets.failed.values()] == [True]


def test_nothing_among_the_images_of_a_data_set_is_passed_over(tree: Path) -> None:
    for folder in ("images", "masks"):
        (tree / "SET" / folder).mkdir(parents=True)
        cv2.imwrite(str(tree / "SET" / folder / "x.png"), np.zeros((4, 5), np.uint8))
    for name in ("y.heic", "z.cr2", "film.mp4"):
        (tree / "SET" / "images" / name).touch()
    for source, before in ((tree / "SET", ""), (tree, "SET/images/")):
        found = find_source(source)
        assert {f"{before}{name}" for name in ("x.png", "y.heic", "film.mp4")} <= {item.name for item in found.items}
        assert str(tree / "SET" / "images" / "z.cr2") in found.failed


def test_several_data_sets(tree: Path) -> None:
    for name in ("A", "B"):
        for folder in ("images", "masks"):
            (tree / name / folder).mkdir(parents=True)
            cv2.imwrite(str(tree / name / folder / "x.png"), np.zeros((4, 5), np.uint8))
    assert names(f"{tree / 'A'},{tree / 'B'}") == ["A/x.png", "B/x.png"]
    with pytest.raises(UserError, match="holds the masks of these images"):
        plan_targets(find_source(f"{tree / 'A'},{tree / 'B'}"), tree / "B" / "masks", PNG)


def test_lists_and_synthetic_data_sets(tree: Path) -> None:
    (tree / "list.txt").write_text("b.jpg\na/c.JPEG\n")
    assert names(tree / "list.txt") == ["b.jpg", "a/c.JPEG"]
    item = find_source("synthetic:eval:2").items[1]
    assert item.read().image.shape[2] == 3


def test_files_that_cannot_be_read_are_named(tree: Path) -> None:
    (tree / "photo.CR2").touch()
    (tree / "drawing.svg").touch()
    found = find_source(tree)
    assert len(found.items) == 3
    assert "photo.CR2 is not read: it is a camera's raw file" in found.failed[str(tree / "photo.CR2")]
    with pytest.raises(UserError, match=r"drawing.svg is not read: it is a drawing; save it as PNG"):
        find_source(tree / "drawing.svg")


def test_a_folder_that_cannot_be_read_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> Iterator[Path]:
        if folder == tree / "a":
            raise PermissionError(13, "Permission denied", str(folder))
        return iter([folder / name for name in os.listdir(folder)])

    monkeypatch.setattr(Path, "iterdir", refuse)
    found = find_source(tree)
    assert [item.name for item in found.items] == ["b.jpg"]
    assert "a cannot be read (Permission denied)" in found.failed[str(tree / "a")]


def test_a_single_image_may_become_a_file(tree: Path) -> None:
    targets = plan_targets(find_source(tree / "b.jpg"), tree / "mask.png", PNG)
    assert list(targets.todo.values()) == [tree / "mask.png"]
    assert list(plan_targets(find_source(tree / "b.jpg"), tree, PNG).todo.values()) == [tree / "b.png"]
    with pytest.raises(UserError, match=r"is a file, and the source has 3 items; give a folder"):
        plan_targets(find_source(tree), tree.parent / "mask.png", PNG)
    with pytest.raises(UserError, match="would overwrite the input"):
        plan_targets(find_source(tree / "a" / "d" / "e.png"), tree / "a" / "d", PNG)
    for name in ("mask.tif", "mask.mp4"):  # not a folder of such a name
        with pytest.raises(UserError, match=rf"{name}: .*b\.jpg becomes a \.png file; give such a suffix, or a folder"):
            plan_targets(find_source(tree / "b.jpg"), tree / name, PNG)


def test_what_is_there_is_left_and_shards_do_the_rest(tree: Path) -> None:
    output = tree.parent / "out"
    output.mkdir()
    (output / "b.png").touch()
    found = find_source(tree)
    assert [item.name for item in plan_targets(found, output, PNG).skipped] == ["b.jpg"]
    assert not plan_targets(found, output, PNG, overwrite=True).skipped
    parts = [plan_targets(found, output, PNG, overwrite=True, shard=(k, 2)) for k in (1, 2)]
    assert [[item.name for item in part.todo] for part in parts] == [["a/c.JPEG", "b.jpg"], ["a/d/e.png"]]


def test_a_shard_does_not_depend_on_what_is_done(tree: Path) -> None:
    output = tree.parent / "out"
    before = plan_targets(find_source(tree), output, PNG, shard=(2, 2)).todo
    (output / "a").mkdir(parents=True)
    (output / "a" / "c.png").touch()
    assert plan_targets(find_source(tree), output, PNG, shard=(2, 2)).todo == before
