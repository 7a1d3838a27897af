"""`run`: the steps of an experiment, what is skipped and what is done again, and wrong files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from sodeploy import artifacts, command_line
from sodeploy import run as experiments
from sodeploy.errors import UserError
from sodeploy.experiment import Journal, load_experiment
from sodeploy.run import Run, main, run_experiment

pytest.importorskip("onnxruntime")
pytest.importorskip("py_sod_metrics")

SaveModel = Callable[..., Path]

RECIPE = """
network: u2net_tiny
train: synthetic:train:8:40
validation: {data: "synthetic:val:2:40", every: 2, best: mae}
size: 32
augment: [{name: flip}]
loss: {bce: 1}
optimizer: {name: adam, lr: 0.001}
batch: 4
steps: 4
workers: 0
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text.replace("HERE", str(path.parent)))
    return path


def states(summary: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads(summary.with_name("summary.json").read_text())["steps"]
    return found


FROM_MODEL = """
output: HERE/out
model: HERE/tiny.onnx
build: {calib: "synthetic:calib:4:40", engines: false}
test: {data: ["synthetic:eval:20:40", "synthetic:val:3:40"], models: [fp32, fp16, int8, int8.sim]}
eval: {metrics: [S, mae], curves: false, page: false}
"""


@pytest.fixture
def config(save_model: SaveModel, tmp_path: Path) -> Path:
    save_model(mean=(0.5, 0.5, 0.5))
    return write(tmp_path / "mine.yaml", FROM_MODEL)


def test_an_experiment_of_an_onnx_file(config: Path, tmp_path: Path) -> None:
    summary = run_experiment(config, workers=1)
    assert states(summary) == dict.fromkeys(("build", "test", "eval", "report"), "done")
    text = summary.read_text()
    assert text.startswith("# out\n")
    for name in ("fp32", "fp16", "int8", "int8.sim"):
        assert f"| synthetic:eval:20:40 | {name} | 20 |" in text
        assert len(list((tmp_path / "out" / "maps" / name / "synthetic:val:3:40").glob("*.png"))) == 3
    assert "synthetic:eval:20:40: difference to fp32, with 95 % interval" in text
    assert "synthetic:val:3:40: difference to fp32, without interval" in text
    content = json.loads(summary.with_name("summary.json").read_text())
    assert list(content["evaluation"]["rows"][0]["metrics"]) == ["s", "mae"]
    assert set(content["differences"]["synthetic:eval:20:40"]) == {"fp16", "int8", "int8.sim"}

    assert states(run_experiment(config, workers=1)) == {
        "build": "skipped", "test": "skipped", "eval": "skipped", "report": "done"
    }  # fmt: skip
    (tmp_path / "out" / "maps" / "int8" / "synthetic:val:3:40" / "val-00001.png").unlink()
    assert states(run_experiment(config, workers=1))["test"] == "done"
    config.write_text(config.read_text().replace("[S, mae]", "[mae]"))
    changed = states(run_experiment(config, ("eval", "report"), 1))
    assert (changed["eval"], changed["test"]) == ("done", "not selected")
    config.write_text(config.read_text().replace("calib:4:40", "calib:5:40"))
    again = states(run_experiment(config, workers=1))
    assert again["build"] == "done"


def test_the_page_for_people(config: Path, tmp_path: Path) -> None:
    config.write_text(
        config.read_text().replace(", page: false", "").replace("synthetic:eval:20:40", "synthetic:eval:2:40")
    )
    summary = run_experiment(config, workers=1)
    assert "(report.html)" in summary.read_text()
    page = tmp_path / "out" / "report.html"
    text = page.read_text()
    for words in ("synthetic:eval:2:40", "synthetic:val:3:40", "tiny.int8.cpu", "tiny.int8.sim", "tiny.plan.json"):
        assert words in text
    assert "report.html" in json.loads(summary.with_name("summary.json").read_text())["files"]["report"]["page"]
    made = page.stat().st_mtime_ns
    assert states(run_experiment(config, workers=1))["report"] == "done"
    assert page.stat().st_mtime_ns == made  # it was current
    page.write_text("spoiled")
    run_experiment(config, ("report",), 1)
    assert page.read_text() != "spoiled"


def test_steps_that_are_not_selected_must_have_been_done(config: Path) -> None:
    with pytest.raises(UserError, match=r"mine\.yaml: the step build has not been done, or its outputs are gone"):
        run_experiment(config, ("test", "eval"))


def test_training_and_the_checkpoint_itself(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    write(tmp_path / "small.yaml", RECIPE)
    text = """
        output: HERE/out
        train: {config: HERE/small.yaml, set: {steps: 2, optimizer.lr: 0.01}}
        test: {data: "synthetic:val:2:40", models: [checkpoint, fp32]}
        eval: {curves: false, page: false}
    """
    config = write(tmp_path / "mine.yaml", text)
    summary = run_experiment(config, workers=1)
    assert states(summary) == dict.fromkeys(("train", "export", "test", "eval", "report"), "done")
    checkpoint, fp32 = json.loads(summary.with_name("summary.json").read_text())["evaluation"]["rows"]
    assert checkpoint["metrics"]["mae"] == pytest.approx(fp32["metrics"]["mae"], abs=1e-3)
    assert artifacts.read_manifest(tmp_path / "out" / "training" / "best.pth")["step"] == 2
    assert states(run_experiment(config, workers=1))["train"] == "skipped"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("output:", "outptu:", "no experiment has a key outptu; remove it or correct its name"),
        ("calib:", "calibration:", "no experiment has a key build.calibration"),
        ("test: {data:", "test: {dat:", r"key test\.dat|key test\.data is missing"),
        ("model: HERE/tiny.onnx", "", r"give one of train, checkpoint and model to start from \(none"),
        ("model: HERE/tiny.onnx", "checkpoint: a.pth", "checkpoint needs network"),
        ('{calib: "synthetic:calib:4:40", engines: false}', "{}", "build: int8 needs calib"),
        ("engines: false", "max_drop: s=0.1", "build: max_drop and eval need each other"),
        ("engines: false", "cpu: arm", "build.cpu: "),
        ("[S, mae]", "[S, XY]", "eval.metrics: S,XY: XY is no metric"),
        ("build:", "# ", "test.models has fp16, int8, int8.sim, which build makes; add build"),
        ("int8.sim]", "int8.tpu]", "test.models: the build has no int8.tpu; it has fp16, fp16.sim"),
        ("engines: false", "method: best", "build.method best is not one of"),
        ("output:", "output: [", "is not YAML: line"),
    ],
)
def test_a_wrong_file_names_the_key(config: Path, old: str, new: str, complaint: str) -> None:
    config.write_text(FROM_MODEL.replace(old, new).replace("HERE", str(config.parent)))
    with pytest.raises(UserError, match=complaint):
        run_experiment(config, workers=1)


def test_the_command(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = typer.main.get_command(command_line.application_of(main))
    light = FROM_MODEL.replace("[fp32, fp16, int8, int8.sim]", "[fp32]").replace("build:", "# build:")
    good = write(tmp_path / "good.yaml", light)
    bad = write(tmp_path / "bad.yaml", light.replace("tiny.onnx", "absent.onnx"))
    with pytest.raises(UserError, match=r"1 of 2 experiments failed: .*bad\.yaml: .*absent\.onnx does not exist"):
        command(["--config", str(bad), "--config", str(good), "--workers", "1"], standalone_mode=False)
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out" / "summary.md")
    with pytest.raises(UserError, match=r"--only test,xyz: xyz is no step; write some of train,export,build"):
        command(["--config", str(good), "--only", "test,xyz"], standalone_mode=False)


@pytest.mark.parametrize(
    ("problem", "fp16", "int8"),
    [(None, "fp16.engine", "int8.engine"), ("no NVIDIA driver is installed", "fp16.sim", "int8.cpu")],
)
def test_engines_are_tested_only_where_they_run(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str | None, fp16: str, int8: str
) -> None:
    monkeypatch.setattr(experiments, "driver_problem", lambda: problem)
    built = {role: tmp_path / role for role in ("fp16.engine", "fp16.sim", "int8.engine", "int8.cpu", "int8.sim")}
    for path in built.values():
        path.touch()
    journal = Journal(tmp_path)
    journal.record("build", {}, built)
    models = experiments._models(Run(config, load_experiment(config), tmp_path, journal))
    assert (models["fp16"].name, models["int8"].name) == (fp16, int8)


def test_the_journal(tmp_path: Path) -> None:
    made, inputs = tmp_path / "a", {"x": 1}
    made.write_text("1")
    journal = Journal(tmp_path)
    assert not journal.is_current("step", inputs)
    journal.record("step", inputs, {"a": made})
    journal = Journal(tmp_path)
    assert journal.is_current("step", inputs)
    assert not journal.is_current("step", {"x": 2})
    made.write_text("2")
    assert not journal.is_current("step", inputs)
    assert journal.outputs("step") == {"a": made}
    made.unlink()
    assert journal.outputs("step") is None
    (tmp_path / "steps.json").write_text("[")
    with pytest.raises(UserError, match=r"steps\.json is not JSON .*remove it; all steps are then done again"):
        Journal(tmp_path)


def test_all_keys_of_the_documentation_are_read(repository: Path, tmp_path: Path) -> None:
    page = (repository / "docs" / "stages" / "run.md").read_text()
    (tmp_path / "mine.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    experiment = load_experiment(tmp_path / "mine.yaml")
    assert experiment.build is not None
    assert experiment.build.limit == 100
    assert experiment.eval.metrics == ("s", "mae", "max_f", "w_f", "nss")
