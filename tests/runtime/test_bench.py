"""Bench: the record it makes, the tables, and its command line."""

import json
import os
import shutil
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
import typer

from sodeploy import command_line
from sodeploy.calib_data import open_dataset
from sodeploy.errors import UserError
from sodeploy.runtime.bench import bench, main
from sodeploy.runtime.measure.differences import FEWEST_IMAGES
from sodeploy.runtime.measure.metrics import default_metrics
from sodeploy.runtime.measure.record import Difference, GpuStates, to_json
from sodeploy.runtime.measure.report import bench_tables, decimal, labels, to_markdown
from sodeploy.runtime.measure.runners import CpuRunner

pytest.importorskip("onnxruntime")
pytest.importorskip("py_sod_metrics")

IMAGES = 6


@pytest.fixture
def data(tmp_path):
    return draw_discs(tmp_path / "discs", IMAGES)


def draw_discs(place, count):
    """Red discs on dark noise, with their masks, of several sizes."""
    random = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (place / folder).mkdir(parents=True)
    for index in range(count):
        size = (40 + 3 * index, 50)
        mask = np.zeros(size, np.uint8)
        cv2.circle(mask, (25, 20), 8 + index, 255, -1)
        image = random.integers(0, 90, (*size, 3), dtype=np.uint8)
        image[..., 2] = np.maximum(image[..., 2], mask // 4 * 3)
        cv2.imwrite(str(place / "images" / f"{index}.png"), image)
        cv2.imwrite(str(place / "masks" / f"{index}.png"), mask)
    return place


@pytest.fixture
def models(save_model):
    good = save_model("good.onnx", weights=(1.2, 0, 0))
    bad = save_model("bad.int8.onnx", weights=(0.3, 0.3, 0.3), metadata={"sodeploy.precision": "int8"})
    return [good, bad]


def test_the_record_holds_what_is_documented(models, data):
    record = bench(models, data, threads=1, workers=1)
    good, bad = record.rows
    assert (record.dataset, record.images, record.threads) == ("discs", IMAGES, 1)
    assert [row.model for row in record.rows] == [str(model) for model in models]
    assert [row.precision for row in record.rows] == ["fp32", "int8"]
    assert good.input_shape == [1, 3, 16, 24]
    assert good.device == "cpu"
    assert good.params_m == pytest.approx(4e-6)
    assert good.macs_g == pytest.approx(3 * 16 * 24 / 1e9)
    assert good.calibrated_on is None
    for row in record.rows:
        assert set(row.metrics) == set(row.delta) == set(default_metrics())
        latency = row.latency_ms
        assert set(latency) == {"pre", "infer", "post", "total"}
        assert all(0 < times.p50 <= times.p90 <= times.p99 for times in latency.values())
        assert latency["total"].p50 >= max(latency[stage].p50 for stage in ("pre", "infer", "post"))
    assert all(delta == Difference(value=0, ci95=None) for delta in good.delta.values())
    assert bad.delta["mae"].value == pytest.approx(bad.metrics["mae"] - good.metrics["mae"])
    assert bad.delta["mae"].ci95 is None  # too few images
    ours, other = (CpuRunner(model, threads=1) for model in models)
    images = [sample.image() for sample in open_dataset(data)]
    errors = [np.abs(other.run(image)[0].astype(float) - ours.run(image)[0]).mean() / 255 for image in images]
    assert (good.map_error, bad.map_error) == (0, pytest.approx(np.mean(errors)))
    assert good.time_ratio == Difference(value=1, ci95=(1, 1))
    assert (bad.images_per_s, bad.device_memory_mib, record.gpu) == (None, None, GpuStates(before={}, after={}))
    assert (record.recommendation.budget, record.recommendation.model) == (None, None)
    json.loads(to_json(record), parse_constant=pytest.fail)


def test_scores_do_not_depend_on_the_company_or_the_workers(models, data):
    together = bench(models, data, threads=1, workers=2).rows[1].metrics
    assert together == bench(models[1:], data, threads=1, workers=1).rows[0].metrics


def test_only_the_first_images(models, data):
    assert bench(models[:1], data, limit=2, threads=1, workers=1).images == 2


def test_images_it_was_calibrated_on_are_refused_or_told(save_model, data):
    digests = [sample.digest() for sample in open_dataset(data)][:3]
    metadata = {"sodeploy.calibration": json.dumps({"images": 3, "digests_sha256": [*digests, "0" * 64]})}
    model = save_model(metadata=metadata)
    with pytest.raises(UserError, match=r"tiny\.onnx was calibrated on 3 of the 6 images"):
        bench([model], data, threads=1, workers=1)
    record = bench([model], data, threads=1, workers=1, allow_overlap=True)
    assert record.rows[0].calibrated_on == 3
    assert "calibrated on 3 of these images" in to_markdown(bench_tables(record)[1])


def test_what_is_within_the_budget_is_recommended(save_model, models, tmp_path):
    data = draw_discs(tmp_path / "many", FEWEST_IMAGES)
    budget = {"s": 0.5, "mae": 0.001}
    record = bench([*models, save_model("sim.onnx", (1.2, 0, 0), metadata={"sodeploy.dialect": "simulation"})], data,
                   threads=1, workers=1, budget=budget)  # fmt: skip
    advice = record.recommendation
    assert (advice.budget, advice.model) == (budget, str(models[0]))
    assert advice.text[0] == "Recommended: good. Nothing that keeps to the budget (S .5000, MAE .0010) is faster."
    assert "loses too much: " in advice.text[1]
    assert advice.text[-1] == "sim simulates an engine, so its time says nothing; it keeps to the budget."
    assert [row.stand_in for row in record.rows] == ["", "", "simulates an engine"]


def test_few_images_promise_nothing(models, data):
    record = bench(models, data, threads=1, workers=1, budget={"s": 0.5})
    assert record.recommendation.model is None
    assert record.recommendation.text[0] == "A loss on 6 images cannot be judged at 95 %; give 20 or more."
    tables = "".join(map(to_markdown, bench_tables(record)))
    assert "*" not in tables.replace("**", "")
    assert "[" not in tables


def test_a_mask_without_a_score_is_named_and_left_out(models, data, capsys):
    corner = np.zeros((40, 50), np.uint8)
    corner[-1, -1] = 255
    cv2.imwrite(str(data / "masks" / "0.png"), corner)
    record = bench(models, data, threads=1, workers=1)
    assert (record.images, record.left_out) == (IMAGES - 1, ["0"])
    assert "discs: 1 mask is left out of all scores, because a metric is undefined (NaN) there: 0" in (
        " ".join(capsys.readouterr().err.split())
    )
    json.loads(to_json(record), parse_constant=pytest.fail)


def test_the_pipeline_of_a_cpu_cannot_be_shown(models, data, tmp_path):
    with pytest.raises(UserError, match="choose the device cuda, or leave it out"):
        bench(models, data, timeline=tmp_path / "trace.json")


def test_a_broken_output_names_model_and_image(save_model, data):
    model = save_model("nan.onnx", bias=float("nan"))
    with pytest.raises(UserError, match=r"nan\.onnx on 0: tiny: 384 of 384 output values are NaN"):
        bench([model], data, threads=1, workers=1)


def test_unfit_input_is_refused(save_model, models, data, tmp_path):
    with pytest.raises(UserError, match="no models given"):
        bench([], data)
    with pytest.raises(UserError, match="no sodeploy contract"):
        bench([save_model("bare.onnx", with_contract=False)], data)
    with pytest.raises(UserError, match=r"absent\.onnx does not exist"):
        bench([models[0], tmp_path / "absent.onnx"], data)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        bench(models, tmp_path / "empty")
    (data / "masks" / "0.png").unlink()
    with pytest.raises(UserError, match="mask"):
        bench(models, data)


def run_script(repository, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repository / "runtime" / "bench.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=repository, check=False)


def test_the_command_writes_what_it_is_asked_for(repository, models, data, tmp_path):
    options = ("--data", data, "--threads", 1, "--workers", 1, "--markdown", tmp_path / "bench.md")
    done = run_script(repository, *models, *options, "--json", tmp_path / "out" / "bench.json")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [row["images"] for row in record["rows"]] == [IMAGES, IMAGES]
    for text in (done.stdout, (tmp_path / "bench.md").read_text()):
        assert "Accuracy on discs, 6 images" in text
        assert "bad.int8" in text
        assert "What may be lost was not said" in text
        assert decimal(record["rows"][1]["metrics"]["mae"]) in text

    to_stdout = run_script(repository, models[0], "--data", data, "--threads", 1, "--workers", 1, "--json", "-")
    assert json.loads(to_stdout.stdout)["rows"][0]["metrics"] == record["rows"][0]["metrics"]


def test_metrics_are_chosen_and_the_budgets_are_added(models, data):
    record = bench(models, data, threads=1, workers=1, keys=("nss", "kld"), budget={"mae": 0.1, "nss": 0.5})
    assert [list(row.metrics) for row in record.rows] == [["nss", "kld", "mae"]] * 2
    assert list(record.rows[1].delta) == ["nss", "kld", "mae"]
    opening, every, *_ = bench_tables(record)
    assert opening.header[4:-1] == ["MAE"]
    assert every.header[3:] == ["NSS", "KLD", "MAE"]
    alone = bench(models, data, threads=1, workers=1, keys=("nss", "kld"))
    assert bench_tables(alone)[0].header[4:-1] == ["NSS", "KLD"]


def test_each_of_several_data_sets_has_its_tables(models, data, tmp_path, capsys):
    shutil.copytree(data, data.parent / "copy")
    command = typer.main.get_command(command_line.application_of(main))
    words = [str(models[0]), "--root", str(data.parent), "--limit", "2", "--threads", "1", "--workers", "1"]
    files = ["--json", str(tmp_path / "b.json"), "--markdown", str(tmp_path / "b.md")]
    command([*words, "--data", "discs,copy", *files], standalone_mode=False)
    assert [record["dataset"] for record in json.loads((tmp_path / "b.json").read_text())] == ["discs", "copy"]
    for text in (capsys.readouterr().out, (tmp_path / "b.md").read_text()):
        assert text.index("Accuracy on discs, 2 images") < text.index("Accuracy on copy, 2 images")
    with pytest.raises(UserError, match="shows the run on one data set; give one, not 2"):
        command([*words, "--data", "discs", "--data", "copy", "--timeline", "t.json"], standalone_mode=False)


def test_the_command_answers_bad_input_in_one_line(repository, data, tmp_path):
    done = run_script(repository, tmp_path / "absent.onnx", "--data", data)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.strip().splitlines() == [
        f"error: {tmp_path}/absent.onnx does not exist; give the path of a model"
    ]


def test_an_interrupt_ends_it_in_one_line_and_writes_nothing(repository, models, tmp_path):
    script = str(repository / "runtime" / "bench.py")
    arguments = [
        "--data",
        "synthetic:eval:5000",
        "--threads",
        "1",
        "--workers",
        "2",
        "--json",
        str(tmp_path / "b.json"),
    ]
    bench = subprocess.Popen(
        [sys.executable, script, str(models[0]), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=repository,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a CI job may ignore it
    )
    with pytest.raises(subprocess.TimeoutExpired):
        bench.wait(timeout=6)
    os.killpg(bench.pid, signal.SIGINT)  # as Ctrl-C does: to the scoring processes as well
    output, errors = bench.communicate(timeout=60)
    assert bench.returncode == 130
    assert output == ""
    assert "Traceback" not in errors
    assert errors.strip().splitlines()[-1].startswith("error: interrupted")
    assert not list(tmp_path.glob("*b.json*"))


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [(0.03729, False, ".0373"), (1.0, False, "1.0000"), (0.99999, False, "1.0000"), (0.00119, True, "+.0012"),
     (-0.00031, True, "-.0003"), (-0.00001, True, "0"), (0.0, False, ".0000"), (-1.0, True, "-1.0000")],
)  # fmt: skip
def test_decimals_are_written_as_in_papers(value, signed, text):
    assert decimal(value, signed) == text


def test_labels_are_short_but_distinct():
    assert labels(["out/a.onnx", "out/a.int8.cpu.onnx"]) == ["a", "a.int8.cpu"]
    assert labels(["x/a.onnx", "y/a.onnx", "y/b.onnx"]) == ["x/a.onnx", "y/a.onnx", "b"]
