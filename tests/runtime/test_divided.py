"""Calibration and scoring by Ray's workers: the same result to the bit, though a worker dies."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("ray.data", reason="needs sodeploy[ray]")
import ray

from sodeploy.calib_data import open_photographs
from sodeploy.errors import UserError
from sodeploy.quant.calibration import divided as counting
from sodeploy.quant.calibration.divided import calibrate_divided
from sodeploy.quant.calibration.observer import gather
from sodeploy.quant.graph import load_network
from sodeploy.runtime import bench as bench_module
from sodeploy.runtime import fleet as fleet_module
from sodeploy.runtime.bench import bench
from sodeploy.runtime.fleet import Fleet, answers
from sodeploy.runtime.measure import divided as judging
from sodeploy.runtime.measure.record import Row
from sodeploy.runtime.measure.report import bench_tables
from sodeploy.runtime.review.evidence import EvidenceLog

SaveModel = Callable[..., Path]
TWO = Fleet(workers=2)
IMAGES = 24


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    """Ray on two cores, for all tests together: it takes seconds to start."""
    settings: dict[str, Any] = {"include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
    ray.init(num_cpus=2, object_store_memory=100_000_000, **settings)
    yield
    ray.shutdown()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images with masks; on one mask a metric is undefined."""
    random = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    for index in range(IMAGES):
        mask = np.zeros((40, 50), np.uint8)
        if index == 3:
            mask[-1, -1] = 255
        else:
            cv2.circle(mask, (25, 20), 6 + index % 9, 255, -1)
        image = random.integers(0, 90, (40, 50, 3), dtype=np.uint8)
        image[..., 2] = np.maximum(image[..., 2], mask // 4 * 3)
        cv2.imwrite(str(tmp_path / "set" / "images" / f"{index:02}.png"), image)
        cv2.imwrite(str(tmp_path / "set" / "masks" / f"{index:02}.png"), mask)
    return tmp_path / "set"


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_IMAGES_IN_A_PART", 2)
    monkeypatch.setattr(judging, "_IMAGES_IN_A_PART", 2)
    monkeypatch.setattr(bench_module, "_TIMED", 5)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker in this process answers, to the last part first."""

    def local(worker: Any, parts: Any, fleet: Fleet, on_gpu: bool = False, **arguments: Any) -> Iterator[Any]:
        answering = fleet_module._Answering(worker, arguments, 1)
        for index in reversed(range(len(parts))):
            row = answering({"index": index, "part": parts[index]})
            yield row["index"], pickle.loads(row["answer"])

    monkeypatch.setattr(fleet_module, "limit_cores", lambda most: None)
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")  # restored at the end
    monkeypatch.setattr(counting, "answers", local)
    monkeypatch.setattr(judging, "answers", local)


def killing_one(killed: list[int]) -> Callable[..., Iterator[Any]]:
    """`answers`, whose first worker is killed when it has answered for the first time."""

    def answers_and_kills(*arguments: Any, **named: Any) -> Iterator[Any]:
        found = answers(*arguments, **named)
        for answer in found:
            if not killed:
                killed.append(next(workers()))
                os.kill(killed[0], 9)
            yield answer

    return answers_and_kills


def workers() -> Iterator[int]:
    """The processes of Ray's workers that work."""
    for entry in Path("/proc").iterdir():
        try:
            if b"MapWorker" in (entry / "cmdline").read_bytes():
                yield int(entry.name)
        except (OSError, ValueError):
            continue


def check_statistics(model: Path, data: Path, folder: Path) -> None:
    network, images = load_network(model), open_photographs(data / "images")
    gather(network, images, folder / "alone.npz")
    gather(network, images, folder / "divided.npz", partial(calibrate_divided, fleet=TWO))
    assert (folder / "divided.npz").read_bytes() == (folder / "alone.npz").read_bytes()


def check_scores(models: list[Path], data: Path) -> None:
    logs = EvidenceLog(), EvidenceLog()
    alone = bench(models, data, threads=1, workers=1, log=logs[0])
    divided = bench(models, data, threads=1, workers=1, log=logs[1], fleet=TWO)
    assert [accuracy(row) for row in divided.rows] == [accuracy(row) for row in alone.rows]
    assert (divided.left_out, divided.images, divided.timed, alone.timed) == (["03"], IMAGES - 1, 4, None)
    np.testing.assert_array_equal(logs[1].evidence.losses, logs[0].evidence.losses)
    assert any("over the first 4 images" in table.caption for table in bench_tables(divided))


def accuracy(row: Row) -> tuple[Any, ...]:
    return row.metrics, row.delta, row.images, row.dataset


@pytest.mark.usefixtures("small_parts", "without_ray")
def test_statistics_are_equal_to_the_byte(save_model: SaveModel, data: Path, tmp_path: Path) -> None:
    check_statistics(save_model(), data, tmp_path)


@pytest.mark.usefixtures("small_parts", "without_ray")
def test_scores_are_equal_to_the_bit(save_model: SaveModel, data: Path) -> None:
    check_scores([save_model("good.onnx", weights=(1.2, 0, 0)), save_model("bad.onnx")], data)


@pytest.mark.slow
@pytest.mark.usefixtures("small_parts", "two_workers")
def test_both_are_equal_though_a_worker_is_killed(
    save_model: SaveModel, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, check in (
        (counting, partial(check_statistics, save_model(), data, tmp_path)),
        (judging, partial(check_scores, [save_model("good.onnx", weights=(1.2, 0, 0)), save_model("bad.onnx")], data)),
    ):
        killed: list[int] = []
        monkeypatch.setattr(module, "answers", killing_one(killed))
        check()
        assert killed


@pytest.mark.usefixtures("small_parts", "without_ray")
def test_an_unfit_image_ends_both_in_one_line(save_model: SaveModel, data: Path) -> None:
    model, images = save_model(), open_photographs(data / "images")
    for sample in images:
        sample.digest()  # which reads the files
    broken = data / "images" / "20.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(UserError, match=r"20\.png"):
        calibrate_divided(load_network(model), images, fleet=TWO)
    with pytest.raises(UserError, match=r"20\.png"):
        bench([model], data, threads=1, workers=1, fleet=TWO)


@pytest.mark.parametrize(
    "words",
    [("calibrate", "--calib", "IMAGES", "--output", "x.npz"), ("bench", "--data", "DATA")],
    ids=lambda it: it[0],
)
def test_without_ray_a_line_says_how_to_install_it(
    save_model: SaveModel, data: Path, tmp_path: Path, repository: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "absent" / "ray").mkdir(parents=True)
    (tmp_path / "absent" / "ray" / "__init__.py").write_text("raise ModuleNotFoundError('no ray', name='ray')")
    stage, *others = [{"IMAGES": str(data / "images"), "DATA": str(data)}.get(word, word) for word in words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tmp_path / "absent", repository)))}
    call = [sys.executable, "-m", "sodeploy", stage, str(save_model()), *others, "--ray"]
    done = subprocess.run(call, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 1
    assert "pip install 'sodeploy[" in done.stderr
    assert "ray" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x.npz").exists()
