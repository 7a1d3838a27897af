"""`sodeploy STAGE`: every script has a stage, every stage has help, examples that parse, and extras that suffice."""

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import sodeploy
from sodeploy import command_line, stages
from sodeploy.__main__ import group
from sodeploy.errors import UserError
from sodeploy.stages import STAGES, command, stage_named

ROOMS = ("calib_data", "runtime", "quant", "training", "export", "sodeploy")


def front_door(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "sodeploy", *arguments], capture_output=True, text=True, check=False)


def stage_command(stage: str) -> Any:
    """The stage's command, or its group of commands."""
    module = importlib.import_module(f"sodeploy.{STAGES[stage].module}")
    return typer.main.get_command(command_line.application_of(getattr(module, "app", None) or module.main))


def test_every_script_is_a_stage(repository: Path) -> None:
    scripts = {
        str(path.relative_to(repository))
        for room in ROOMS
        for path in (repository / room).rglob("*.py")
        if '__name__ == "__main__"' in path.read_text()
    }
    # The front door itself, and scripts that write files of this repository.
    others = {"sodeploy/__main__.py", "runtime/measure/record.py", "training/signatures.py"}
    assert scripts - others == {stage.script for stage in STAGES.values()}


def test_a_stage_has_its_scripts_name() -> None:
    assert {name: Path(stage.script).stem for name, stage in STAGES.items()} == {name: name for name in STAGES}


def test_stages_are_listed_without_importing_them() -> None:
    listed = front_door()
    assert listed.returncode == 0
    assert set(re.findall(r"^  (\w+)  ", listed.stdout, re.MULTILINE)) >= set(STAGES)
    code = (
        "import sys, sodeploy.__main__ as door; door.group(); sys.exit('torch' in sys.modules or 'cv2' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_older_names_of_options_work() -> None:
    shown = stage_command("layer_report").make_context("x", ["a.onnx", "a.plan.json", "--images", "DATA", "--count=2"])
    assert (shown.params["data"], shown.params["limit"]) == (["DATA"], 2)


@pytest.mark.parametrize("old", ["export", "build", "layers", "to-onnx"])
def test_older_names_still_work(old: str) -> None:
    assert stage_named(old) in STAGES


def test_the_version_has_one_source() -> None:
    done = front_door("--version")
    assert (done.returncode, done.stdout) == (0, f"{sodeploy.__version__}\n")


def test_the_front_door_hands_on_the_command_line() -> None:
    done = front_door("bench", "missing.onnx", "--data", "synthetic:eval:2")
    assert done.returncode == 1
    assert done.stderr.startswith("error: missing.onnx does not exist")


@pytest.mark.parametrize(
    ("typed", "answer"),
    [("benhc", "did you mean bench?"), ("quantize", "did you mean build?"), ("zzz", "there are demo, run, train")],
)
def test_an_unknown_stage(typed: str, answer: str) -> None:
    done = front_door(typed)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"no stage '{typed}'; {answer}" in done.stderr


def test_stages_are_completed_by_the_shell() -> None:
    code = "from sodeploy.__main__ import group; group()(prog_name='sodeploy')"
    environment = {"_SODEPLOY_COMPLETE": "complete_bash", "COMP_WORDS": "sodeploy ev", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.stdout.split() == ["evaluate"]
    assert "--show-completion" in front_door("-h").stdout


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["-dash.jpg", "--model", "a.onnx"], "-dash.jpg is a file, but is read as an option; write it as ./-dash.jpg"),
        (["--", "-dash.jpg", "--model", "a.onnx"], "--model stands behind --, where every word is the name of a file"),
        (["--model", "a.onnx", "--", "-dash.jpg"], "a.onnx does not exist"),
    ],
)
def test_a_file_whose_name_begins_with_a_dash(
    words: list[str], answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-dash.jpg").touch()
    with pytest.raises((SystemExit, UserError)) as caught:
        stage_command("infer")(words, prog_name="sodeploy infer")
    assert answer in capsys.readouterr().err + str(caught.value)


@pytest.mark.parametrize("stage", STAGES)
def test_no_option_is_cut_at_80_columns(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in [["-h"], *([name, "-h"] for name in getattr(stage_command(stage), "commands", ()))]:
        with pytest.raises(SystemExit):
            stage_command(stage)(words, prog_name=f"sodeploy {stage}", terminal_width=80)
        text = capsys.readouterr().out
        parent = stage_command(stage)
        shown = parent.commands[words[0]] if len(words) > 1 else parent
        for parameter in shown.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                assert all(re.search(rf"{name}(?![\w-])", text) for name in parameter.opts), (stage, parameter.name)
        assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("stage", STAGES)
def test_examples_can_be_run(stage: str) -> None:
    for example in STAGES[stage].examples:
        words = shlex.split(example)
        shown = stage_command(stage)
        if hasattr(shown, "commands"):
            shown = shown.commands[words.pop(0)]
        shown.make_context(stage, words)  # refuses unknown options, missing ones and left-over words


@pytest.mark.parametrize(
    ("stage", "words", "missing"),
    [
        ("build_engine", ["--int8"], "MODEL; --calib, --statistics, --plan or --calib-cache"),
        ("build_engine", [], "MODEL; --int8, --fp16 or --bf16"),
        ("build_engine", ["a.onnx", "--fp16", "--eval", "DATA"], "--max-drop"),
        ("build_engine", ["a.onnx", "--fp16", "--max-drop", "s=0.1"], "--eval"),
        ("calibrate", ["a.onnx", "--output", "a.npz"], "--calib"),
        ("to_onnx", [], "--model; --checkpoint; --output"),
        ("adopt", ["--mean", "0", "0", "0"], "MODEL; --output; --mean and --std or --like"),
        ("bench", [], "MODELS; --data"),
        ("plan edit", ["out/net.plan.json"], "--output; --set"),
    ],
)
def test_all_that_is_missing_is_named_at_once(
    stage: str, words: list[str], missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *subcommand = stage.split()
    with pytest.raises(SystemExit) as end:
        stage_command(name)([*subcommand, *words], prog_name="sodeploy")
    told = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert told[0] == f"error: missing: {missing}"
    assert told[1].startswith(f"for example: sodeploy {stage} ")


def test_a_hint_names_the_command_as_the_user_called_it(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/sodeploy"])
    assert command("bench") == "sodeploy bench"
    monkeypatch.setattr(sys, "argv", [str(repository / "sodeploy" / "__main__.py")])
    assert command("bench") == "python -m sodeploy bench"
    monkeypatch.chdir(repository)
    monkeypatch.setattr(sys, "argv", ["export/to_onnx.py"])
    assert command("kernels") == "python runtime/gpu/kernels.py"
    monkeypatch.chdir(repository / "docker")
    monkeypatch.setattr(sys, "argv", ["../export/to_onnx.py"])
    assert command("bench") == "python ../runtime/bench.py"


def imported(module: str, seen: set[str]) -> set[str]:
    """The modules that importing one of ours imports, of other packages; imports inside functions do not count."""
    source = importlib.util.find_spec(module)
    if module in seen or source is None or source.origin is None:
        return set()
    seen.add(module)
    found: set[str] = set()
    for node in ast.parse(Path(source.origin).read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if not name.startswith("sodeploy"):
                found.add(name.split(".")[0])
            elif _is_module(name):
                found |= imported(name, seen)
    return found


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("stage", STAGES)
def test_the_extras_of_a_stage_suffice(stage: str, repository: Path) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    extras = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    modules = {"pysodmetrics": "py_sod_metrics", "pyyaml": "yaml", "onnxruntime": "onnxruntime"}
    brought = {re.split(r"[>\[ ;]", line)[0] for extra in STAGES[stage].extras for line in extras[extra]}
    there = {modules.get(name, name) for name in brought}
    assert imported(f"sodeploy.{STAGES[stage].module}", set()) & set(stages.EXTRA_OF) <= there


def test_one_pip_command_names_all_extras(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "sodeploy.export.simplify", raising=False)
    monkeypatch.delitem(sys.modules, "sodeploy.export.adopt", raising=False)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    with pytest.raises(SystemExit) as end:
        group()(["adopt", "x.onnx"], prog_name="sodeploy")
    assert end.value.code == 1
    assert capsys.readouterr().err == "error: adopt needs onnxsim: pip install 'sodeploy[adopt,cpu]'\n"
