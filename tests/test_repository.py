"""What holds for the repository as a whole: imports run one way, the README's commands exist, the front door opens."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sodeploy.__main__ import STAGES

ROOMS = ("calib_data", "runtime", "quant", "training", "export")
MAY_IMPORT = {
    "calib_data": {"calib_data"},
    "runtime": {"calib_data", "runtime"},
    "quant": {"calib_data", "runtime", "quant"},
    "training": {"calib_data", "runtime", "training", "torch"},
    "export": {"calib_data", "runtime", "training", "export", "torch"},
}
FRONT_DOOR = {"sodeploy.__main__", "sodeploy.demo"}


def imported_modules(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(repository: Path, room: str) -> None:
    for file in (repository / room).rglob("*.py"):
        modules = imported_modules(file)
        guarded = {module.split(".")[0] for module in modules} & {*ROOMS, "torch"}
        assert guarded <= MAY_IMPORT[room], file
        assert not modules & FRONT_DOOR, file


def test_a_deployed_image_needs_no_torch(repository: Path) -> None:
    code = "import sys, runtime.bench, quant.build_engine, sodeploy.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repository, check=False).returncode == 0


def readme_commands() -> list[list[str]]:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    return [line.split() for line in re.findall(r"^    python (\S+\.py .*)$", text, re.MULTILINE)]


@pytest.mark.parametrize("command", readme_commands(), ids=" ".join)
def test_the_readmes_options_exist(repository: Path, command: list[str]) -> None:
    script, *arguments = command
    command_line = [sys.executable, repository / script, "--help"]
    wide = {**os.environ, "COLUMNS": "200"}
    help_text = subprocess.run(command_line, capture_output=True, text=True, check=True, env=wide).stdout
    for option in (argument for argument in arguments if argument.startswith("--")):
        assert re.search(rf"{option}\b", help_text), f"{script} has no {option}"


def front_door(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "sodeploy", *arguments], capture_output=True, text=True, check=False)


def test_the_front_door_lists_its_stages(repository: Path) -> None:
    listed = front_door().stdout
    scripts = re.findall(r"\S+\.py$", listed, re.MULTILINE)
    assert len(scripts) >= 9
    assert all((repository / script).is_file() for script in scripts)


def test_the_front_door_hands_on_the_command_line() -> None:
    done = front_door("bench", "missing.onnx", "--data", "synthetic:eval:2")
    assert done.returncode == 1
    assert done.stderr.startswith("error: missing.onnx does not exist")


def test_an_unknown_stage() -> None:
    done = front_door("deploy")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "no stage 'deploy'; there are demo, train" in done.stderr


def dockerfile() -> str:
    """Its instructions, each on one line."""
    return (Path(__file__).parent.parent / "docker" / "Dockerfile").read_text().replace("\\\n", " ")


def test_what_the_image_copies_exists_and_is_all_it_needs(repository: Path) -> None:
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile(), re.MULTILINE)
        for source in line.split()
    }
    ignored = set((repository / ".dockerignore").read_text().split())
    assert all((repository / source).exists() for source in copied)
    assert not copied & ignored
    project = read_toml(repository / "pyproject.toml")
    packages = {pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= copied  # setuptools would leave a missing one out without a word
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= copied
    (extras,) = re.findall(r"'\.\[(.*?)\]'", dockerfile())
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])
    (entry,) = re.findall(r'^ENTRYPOINT \["(.*)"\]$', dockerfile(), re.MULTILINE)
    assert entry in project["project"]["scripts"]


def test_what_the_image_runs_exists(repository: Path) -> None:
    ((module, options),) = re.findall(r"python -m (\S+)(.*)$", dockerfile(), re.MULTILINE)
    wide = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, "-m", module, "--help"]
    text = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True, env=wide).stdout
    assert all(option in text for option in re.findall(r"--\w+", options))
    readme = (repository / "README.md").read_text().replace("\\\n", " ")
    stages = re.findall(r"docker run .* sodeploy +(\w+)", readme)
    assert stages
    assert set(stages) <= set(STAGES)
    assert "docker build -f docker/Dockerfile" in readme


def read_toml(path: Path) -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    found: dict[str, Any] = tomllib.loads(path.read_text())
    return found
