"""Labelling with Ray's workers: every image has one picture, though workers die; shards; the forecast."""

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("ray.data", reason="needs sodeploy[ray]")
import pyarrow.parquet
from typer.testing import CliRunner

from sodeploy.command_line import application_of
from sodeploy.errors import UserError
from sodeploy.runtime.infer import infer
from sodeploy.runtime.label import label as module
from sodeploy.runtime.label.forecast import forecast, measure
from sodeploy.runtime.label.label import FAILURES, RECORD, Fleet, Labelled, label
from sodeploy.runtime.label.parts import Fields, Part
from sodeploy.runtime.label.worker import Job, Worker

SaveModel = Callable[..., Path]
TWO = Fleet(workers=2)


def png(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


def draw(folder: Path, count: int) -> dict[str, bytes]:
    """Write images; their content by name, without the suffix."""
    pictures = {f"part{number % 3}/{number:05}": png(number) for number in range(count)}
    for name, data in pictures.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return pictures


def outputs(folder: Path) -> dict[str, bytes]:
    """The pictures there, by name, without the suffix."""
    return {path.relative_to(folder).with_suffix("").as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


def failures(folder: Path) -> dict[str, str]:
    with open(folder / FAILURES, newline="") as file:
        return {row["source"]: row["reason"] for row in csv.DictReader(file)}


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are labelled by one worker in this process."""

    def run(parts: list[Part], job: Job, fleet: Fleet, result: Labelled) -> None:
        worker = Worker(job)
        rows = [worker(part) for part in parts]
        for row in rows:
            result.written += row["written"]
            result.skipped += row["skipped"]
            result.stopped = result.stopped or row["stopped"]
            result.failed.update(row["failed"])
        result.measured = measure(rows)

    monkeypatch.setattr(module, "_run", run)


def ancestors(process: int) -> Iterator[int]:
    while process > 1:
        yield process
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def workers_of(process: int) -> list[int]:
    """The Ray workers below a process that label."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if b"MapWorker" in (entry / "cmdline").read_bytes() and process in ancestors(int(entry.name)):
                found.append(int(entry.name))
    return found


def kill_a_worker_after(count: int, output: Path, process: int, killed: list[int]) -> None:
    deadline = time.monotonic() + 120
    while not killed and time.monotonic() < deadline:
        if len(list(output.rglob("*.png"))) >= count:
            killed += workers_of(process)[:1]
            for worker in killed:
                os.kill(worker, 9)
        time.sleep(0.005)


@pytest.mark.parametrize("count", [30, pytest.param(5000, marks=pytest.mark.slow)])
def test_every_image_has_one_picture_though_a_worker_is_killed(
    save_model: SaveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    model, photos, output = save_model(), tmp_path / "photos", tmp_path / "labels"
    draw(photos, count)
    (photos / "broken.jpg").write_bytes(b"no image")
    monkeypatch.setattr("sodeploy.runtime.label.parts._FILES_IN_A_PART", max(2, count // 100))
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_after, args=(count // 10, output, os.getpid(), killed))
    killer.start()
    result = label(model, photos, output, fleet=TWO)
    killer.join()
    assert killed, "no worker was killed before the end"
    infer(model, photos, tmp_path / "whole")
    assert outputs(output) == outputs(tmp_path / "whole")
    assert len(outputs(output)) == count == result.written + result.skipped
    assert list(failures(output)) == [str(photos / "broken.jpg")]
    assert result.measured is not None


@pytest.mark.usefixtures("without_ray")
def test_a_run_goes_on_where_it_ended(save_model: SaveModel, tmp_path: Path) -> None:
    model, output = save_model(), tmp_path / "labels"
    draw(tmp_path / "photos", 7)
    label(model, tmp_path / "photos", output)
    first = outputs(output)
    (output / "part0" / "00000.png").unlink()
    result = label(model, tmp_path / "photos", output)
    assert (result.written, result.skipped) == (1, 6)
    assert outputs(output) == first


@pytest.mark.usefixtures("without_ray")
def test_pictures_of_two_models_are_not_mixed(save_model: SaveModel, tmp_path: Path) -> None:
    draw(tmp_path / "photos", 2)
    label(save_model(), tmp_path / "photos", tmp_path / "labels")
    with pytest.raises(UserError, match="holds pictures with the sha256"):
        label(save_model("other.onnx", bias=0.1), tmp_path / "photos", tmp_path / "labels")
    with pytest.raises(UserError, match="holds pictures with the type map"):
        label(save_model(), tmp_path / "photos", tmp_path / "labels", style="overlay")
    for picture in (tmp_path / "labels").rglob("*.png"):
        picture.unlink()
    label(save_model(), tmp_path / "photos", tmp_path / "labels", style="overlay")


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def write_parquet(path: Path, columns: Mapping[str, Any], rows: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(dict(columns)), path, row_group_size=rows)


@pytest.fixture
def expected(save_model: SaveModel, tmp_path: Path) -> dict[str, bytes]:
    """The pictures of the images 0 to 4, by their names."""
    draw(tmp_path / "photos", 5)
    infer(save_model(), tmp_path / "photos", tmp_path / "whole")
    return {name.split("/")[1]: data for name, data in outputs(tmp_path / "whole").items()}


@pytest.mark.usefixtures("without_ray")
def test_tar_shards(save_model: SaveModel, tmp_path: Path, expected: dict[str, bytes]) -> None:
    shards, output = tmp_path / "shards", tmp_path / "labels"
    first = {f"{number:05}.png": png(number) for number in range(3)}
    write_tar(shards / "0.tar", {**first, "00000.json": b"{}", "00000.seg.png": b"a mask"})
    odd = {"alone.txt": b"no image", "two.jpg": png(0), "two.png": png(1), "../../out.png": png(2), "bad.png": b"no"}
    write_tar(shards / "deep" / "1.tar", {"00003.png": png(3), "00004.png": png(4), **odd})
    whole = (shards / "0.tar").read_bytes()
    (shards / "2.tar").write_bytes(whole[: len(whole) // 3])
    result = label(save_model(), shards, output)
    below = {"00003": "deep/1/", "00004": "deep/1/"}
    assert outputs(output) == {below.get(name, "0/") + name: data for name, data in expected.items()}
    assert result.written == 5
    reasons = failures(output)
    assert {Path(source).name for source in reasons} == {"2.tar", "alone", "two", "out.png", "bad.png"}
    assert "--image-field" in reasons[str(shards / "deep" / "1.tar" / "two")]


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("struct", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_parquet_shards(
    save_model: SaveModel, tmp_path: Path, expected: dict[str, bytes], struct: bool, named: bool
) -> None:
    cells: list[Any] = [*map(png, range(5)), None]
    if struct:
        cells = [{"bytes": cell, "path": "x.png"} for cell in cells]
    names = [f"{number:05}.jpg" for number in range(6)]
    write_parquet(tmp_path / "shards" / "s.parquet", {"image": cells, "name": names, "label": [1] * 6})
    (tmp_path / "shards" / "torn.parquet").write_bytes(b"PAR1")
    output = tmp_path / "labels"
    label(save_model(), tmp_path / "shards", output, fields=Fields(name="name" if named else None))
    assert outputs(output) == {f"s/{name if named else f'{int(name):09}'}": data for name, data in expected.items()}
    assert {Path(source).name for source in failures(output)} == {
        "torn.parquet",
        "00005.jpg" if named else "000000005.png",
    }


@pytest.mark.usefixtures("without_ray")
def test_bad_shards_are_one_line(save_model: SaveModel, tmp_path: Path) -> None:
    two = {"image": [png(0), png(1)], "mask": [png(0), png(1)], "name": ["a.png", "A.jpg"]}
    write_parquet(tmp_path / "two.parquet", two)
    cases = [
        (Fields(), "2 columns that can hold images.*--image-field"),
        (Fields(image="photo"), "no column photo; it has image, mask, name"),
        (Fields(image="image", name="name"), "the name a stands twice"),
    ]
    for fields, message in cases:
        with pytest.raises(UserError, match=message):
            label(save_model(), tmp_path / "two.parquet", tmp_path / "labels", fields=fields)
    draw(tmp_path / "both", 1)
    write_tar(tmp_path / "both" / "x.tar", {"a.png": png(0)})
    with pytest.raises(UserError, match=r"holds shards, such as .*, and images"):
        label(save_model(), tmp_path / "both", tmp_path / "labels")


@pytest.mark.usefixtures("without_ray")
def test_a_full_disk_ends_the_run(save_model: SaveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "labels/x.png")

    draw(tmp_path / "photos", 2)
    monkeypatch.setattr("sodeploy.runtime.label.worker.write_one", full)
    assert "No space left" in label(save_model(), tmp_path / "photos", tmp_path / "labels").stopped


def test_the_forecast() -> None:
    row = {"ready_s": 3.6, "written": 10, "bytes_read": 2_000_000, "bytes_written": 1_000_000}
    rows = [
        {**row, "worker": "a", "began": 0.0, "ended": 4.0},
        {**row, "worker": "a", "began": 5.0, "ended": 10.0},
        {**row, "worker": "b", "began": 2.0, "ended": 12.0},
        {**row, "worker": "c", "began": 0.0, "ended": 99.0, "written": 0},  # only found what stood there
    ]
    measured = measure(rows)
    assert measured is not None
    assert (measured.images, measured.workers, measured.worker_s) == (30, 2, 20.0)
    planned = forecast(measured, 5400, price=2.0)
    assert planned["images_per_s_per_worker"] == pytest.approx(1.5)
    assert planned["worker_hours"] == pytest.approx(1.0)
    assert planned["cost"] == pytest.approx(2.0)
    four = next(fleet for fleet in planned["fleets"] if fleet["workers"] == 4)
    assert four["hours"] == pytest.approx(0.25 + 0.001)
    assert four["read_mb_per_s"] == pytest.approx(4 * 1.5 * 0.2)
    assert measure(rows[3:]) is None


@pytest.mark.slow
def test_the_command_starts_ray(save_model: SaveModel, tmp_path: Path) -> None:
    draw(tmp_path / "photos", 3)
    words = ["label", tmp_path / "photos", "--ray", "--model", save_model(), "-o", tmp_path / "labels"]
    done = subprocess.run(
        [sys.executable, "-m", "sodeploy", *map(str, words)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "3 pictures in" in done.stdout


@pytest.mark.usefixtures("without_ray")
def test_the_command(save_model: SaveModel, tmp_path: Path) -> None:
    draw(tmp_path / "photos", 3)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no image")
    words = [tmp_path / "photos", "--ray", "--model", save_model(), "-o", tmp_path / "labels"]
    run = CliRunner().invoke(
        application_of(module.main), [*map(str, words), "--plan", "10000000", "--price", "0.1"], env={"COLUMNS": "100"}
    )
    assert isinstance(run.exception, UserError)
    assert "1 of 4 images have no picture" in str(run.exception)
    assert "3 pictures in" in run.stdout
    assert "10,000,000 images" in run.stdout
    assert json.loads((tmp_path / "labels" / RECORD).read_text())["measured"]["images"] == 3


def test_no_such_cluster_is_one_line(save_model: SaveModel, tmp_path: Path) -> None:
    draw(tmp_path / "photos", 1)
    with pytest.raises(UserError, match="--ray localhost:1: there is no such cluster"):
        label(save_model(), tmp_path / "photos", tmp_path / "labels", fleet=Fleet("localhost:1"))
