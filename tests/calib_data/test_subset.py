"""A subset represents its folder, depends on contents alone, and never holds an evaluation image."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from sodeploy import artifacts
from sodeploy.calib_data import open_dataset, overlap
from sodeploy.calib_data.subset import choose, describe, write_subset
from sodeploy.errors import UserError


def make_folder(root: Path, count: int = 24) -> Path:
    """Photographs of three kinds, the last two rare: (many) mid grey noise, dark plains, bright stripes."""
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        image = rng.integers(100, 156, (40, 60, 3), dtype=np.uint8)
        if i % 8 == 0:
            image //= 12
        elif i % 8 == 1:
            image[:, ::6] = 255
        cv2.imwrite(str(root / f"{i:03}.png"), image)
    return root


def test_list_opens_and_its_manifest_holds_the_hashes(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "all")
    chosen = write_subset(folder, 6, tmp_path / "calib.txt")
    dataset = open_dataset(tmp_path / "calib.txt", masks=False)
    assert len(dataset) == len(chosen) == 6
    assert (tmp_path / "calib.txt").read_text().startswith("all/")
    manifest = artifacts.read_manifest(tmp_path / "calib.txt")
    assert manifest["images"] == {sample.image_path.stem: sample.digest() for sample in dataset}
    elsewhere = tmp_path / "elsewhere" / "calib.txt"
    write_subset(folder, 6, elsewhere)
    assert sorted(s.digest() for s in open_dataset(elsewhere, masks=False)) == sorted(s.digest() for s in dataset)
    assert elsewhere.read_text().startswith("../all/")
    facts = {key: value for key, value in manifest.items() if key != "command"}  # which is the user's own words
    assert str(tmp_path) not in json.dumps(facts)


def test_rare_kinds_are_represented(tmp_path: Path) -> None:
    chosen = write_subset(make_folder(tmp_path / "all"), 4, tmp_path / "calib.txt")
    kinds = {min(int(sample.name) % 8, 2) for sample in chosen}
    assert kinds == {0, 1, 2}


def test_choice_depends_on_contents_alone(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "all")
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for i, path in enumerate(sorted(folder.iterdir(), reverse=True)):
        shutil.copy(path, renamed / f"x{i}.png")
    shutil.copy(folder / "005.png", renamed / "copy.png")
    first = {sample.digest() for sample in write_subset(folder, 7, tmp_path / "a.txt")}
    again = {sample.digest() for sample in write_subset(folder, 7, tmp_path / "b.txt")}
    moved = {sample.digest() for sample in write_subset(renamed, 7, tmp_path / "c.txt")}
    assert first == again == moved
    assert len(first) == 7


def test_evaluation_images_are_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path / "all")
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    for i in range(20):
        shutil.copy(folder / f"{i:03}.png", evaluation / f"e{i}.png")
    write_subset(folder, 4, tmp_path / "calib.txt", exclude=evaluation)
    assert "20 images also stand in evaluation and were left out" in capfd.readouterr().err
    calibration = open_dataset(tmp_path / "calib.txt", masks=False)
    assert overlap(calibration, open_dataset(evaluation, masks=False)) == []
    with pytest.raises(UserError, match="only 4 usable images for --count 5"):
        write_subset(folder, 5, tmp_path / "more.txt", exclude=evaluation)
    assert not (tmp_path / "more.txt").exists()


def test_clusters_are_covered_better_than_by_chance() -> None:
    """Thirty clusters, one half of the points in a single one: random picks miss many of the small ones."""
    rng = np.random.default_rng(1)
    centres = rng.normal(0, 10, (30, 16))
    labels = np.concatenate([np.zeros(300, int), rng.integers(1, 30, 300)])
    points = centres[labels] + rng.normal(0, 1, (600, 16))
    covered = len(set(labels[choose(points, 30)]))
    by_chance = [len(set(labels[rng.choice(600, 30, replace=False)])) for _ in range(50)]
    assert covered == 30
    assert max(by_chance) < 24


def test_mean_distance_to_the_chosen_is_smaller_than_by_chance() -> None:
    points = np.stack([describe(sample.image()) for sample in open_dataset("synthetic:calib:120:64")])
    rng = np.random.default_rng(2)

    def distance(chosen: list[int]) -> float:
        return float(np.linalg.norm(points[:, None] - points[chosen], axis=2).min(axis=1).mean())

    by_chance = [distance(rng.choice(120, 12, replace=False).tolist()) for _ in range(50)]
    assert distance(choose(points, 12)) < min(by_chance)


def test_alike_images_still_give_as_many_as_asked() -> None:
    points = np.repeat(np.eye(3), 5, axis=0)
    assert len(set(choose(points, 9))) == 9
    assert sorted(choose(points, 15)) == list(range(15))


def test_bad_requests_are_answered(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "all", 4)
    with pytest.raises(UserError, match=r"calib\.csv must end with \.txt"):
        write_subset(folder, 2, tmp_path / "calib.csv")
    with pytest.raises(UserError, match="--count 0 chooses nothing"):
        write_subset(folder, 0, tmp_path / "calib.txt")
    with pytest.raises(UserError, match="synthetic:calib:5 is drawn, not stored"):
        write_subset("synthetic:calib:5", 2, tmp_path / "calib.txt")
    (folder / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"broken\.png is broken"):
        write_subset(folder, 2, tmp_path / "calib.txt")
    assert not (tmp_path / "calib.txt").exists()


def test_script(tmp_path: Path, repository: Path) -> None:
    folder = make_folder(tmp_path / "all", 8)
    command = [sys.executable, "calib_data/subset.py", str(folder), "--output", str(tmp_path / "calib.txt"), "--count"]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run([*command, "3"], cwd=repository, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "wrote 3 images" in done.stderr
    failed = subprocess.run([*command, "9"], cwd=repository, capture_output=True, text=True, env=environment)
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert "has only 8 usable images for --count 9" in failed.stderr
