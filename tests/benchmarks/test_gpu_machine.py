"""run.sh of benchmarks/gpu_machine, with a python3 in its place that runs nothing: what becomes of its parts."""

import os
import re
import subprocess
from pathlib import Path

PYTHON = """#!/bin/bash
case "$*" in
  *make_models*) exit 3;;
  *gpu_check*) sleep {seconds};;
  *) echo "$@";;
esac
"""


def run(repository: Path, folder: Path, seconds: int, most: int) -> dict[str, str]:
    """What run.sh says of each part."""
    (folder / "bin").mkdir(exist_ok=True)
    for name in ("python3", "compute-sanitizer"):
        (folder / "bin" / name).write_text(PYTHON.format(seconds=seconds))
        (folder / "bin" / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "OUT": str(folder / "results"),
        "MOST_SECONDS": str(most),
    }
    command = ["bash", repository / "benchmarks/gpu_machine/run.sh"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return dict(re.findall(r"^(\w+): (exit status.*|left out.*)$", said, re.MULTILINE))


def test_a_part_that_fails_or_hangs_costs_no_other(repository: Path, tmp_path: Path) -> None:
    parts = run(repository, tmp_path, seconds=60, most=2)
    assert list(parts) == ["machine", "models", "gpu_check", "memcheck", "racecheck", "ncu"]
    assert parts["models"] == "exit status 3"
    assert parts["gpu_check"] == "exit status 124"
    assert parts["racecheck"] == "left out, 2 s had passed"
    parts = run(repository, tmp_path, seconds=0, most=100)
    assert [parts[name] for name in ("gpu_check", "memcheck", "racecheck")] == ["exit status 0"] * 3
    assert "test_cuda_processing.py" in (tmp_path / "results/racecheck.txt").read_text()


def test_the_files_that_it_names_exist(repository: Path) -> None:
    script = (repository / "benchmarks/gpu_machine/run.sh").read_text()
    named = re.findall(r"\b(?:benchmarks|tests)/[\w/]+\.py", script)
    assert len(named) >= 4
    assert [name for name in named if not (repository / name).is_file()] == []
