"""What holds for the repository as a whole: imports run one way, the README's commands exist, the front door opens."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from quick import NOT_QUICK, QUICK

from sodeploy.stages import STAGES

ROOMS = ("calib_data", "runtime", "quant", "training", "export")
MAY_IMPORT = {
    "calib_data": {"calib_data"},
    "runtime": {"calib_data", "runtime"},
    "quant": {"calib_data", "runtime", "quant"},
    "training": {"calib_data", "runtime", "training", "torch"},
    "export": {"calib_data", "runtime", "training", "export", "torch"},
}
DISTRIBUTIONS = set(importlib.metadata.packages_distributions())
FRONT_DOOR = {f"sodeploy.{name}" for name in ("__main__", "demo", "run", "experiment", "verify")}


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
        rooms = {module.removeprefix("sodeploy.").split(".")[0] for module in modules}
        guarded = rooms & {*ROOMS, "torch"}
        assert guarded <= MAY_IMPORT[room], file
        assert not modules & FRONT_DOOR, file


def test_every_package_is_installed(repository: Path) -> None:
    rooms = [repository / room for room in (*ROOMS, "sodeploy")]
    there = {path.parent.relative_to(repository) for room in rooms for path in room.rglob("__init__.py")}
    named = {"sodeploy" if folder == Path("sodeploy") else f"sodeploy.{'.'.join(folder.parts)}" for folder in there}
    assert named == set(read_toml(repository / "pyproject.toml")["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("room", ROOMS)
def test_no_file_hides_a_module(repository: Path, room: str) -> None:
    """Python puts a script's folder first on its path, where `types.py` would be taken for the standard library's."""
    scripts = {
        path.parent for path in (repository / room).rglob("*.py") if '__name__ == "__main__"' in path.read_text()
    }
    names = {path.stem for folder in scripts for path in folder.iterdir() if path.suffix in ("", ".py")}
    assert not names & {*sys.stdlib_module_names, *DISTRIBUTIONS}


def test_a_deployed_image_needs_no_torch(repository: Path) -> None:
    modules = "sodeploy.runtime.bench, sodeploy.quant.build_engine, sodeploy.__main__"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
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
    renamed = {old: new for stage in STAGES.values() if stage.script == script for old, new in stage.renamed.items()}
    for option in (renamed.get(argument, argument) for argument in arguments if argument.startswith("--")):
        assert re.search(rf"{option}\b", help_text), f"{script} has no {option}"


def test_every_dependency_has_a_pinned_version(repository: Path) -> None:
    project = read_toml(repository / "pyproject.toml")["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    named = [line for lines in lists for line in lines]
    wanted = {re.split(r"[>=\[ ;]", line)[0].lower() for line in named} - {"sodeploy"}
    pinned = {line.split("==")[0].lower() for line in (repository / "constraints.txt").read_text().splitlines()}
    assert wanted <= pinned


def test_the_folders_of_the_quick_tests_exist(repository: Path) -> None:
    assert all((repository / "tests" / path).exists() for path in QUICK)
    for node in NOT_QUICK:
        file, _, name = node.partition("::")
        assert name in (repository / "tests" / file).read_text()


def read_toml(path: Path) -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    found: dict[str, Any] = tomllib.loads(path.read_text())
    return found
