"""Environments of other tools, whose packages are not ours."""

import sys
from pathlib import Path

from process_cost import CommandFailed, measure

from sodeploy import terminal
from sodeploy.artifacts import sha256, write_text


def python_of(environment: Path, requirements: Path, log: Path) -> str | CommandFailed:
    """The interpreter of an environment with exactly what a file of requirements asks for, or why there is none.

    Args:
        log: takes what pip writes.
    """
    python, stamp = environment / "bin" / "python", environment / ".requirements.sha256"
    wanted = sha256(requirements)
    if not stamp.exists() or stamp.read_text() != wanted:
        terminal.note(f"installing {requirements.name} into {environment} ...")
        environment.parent.mkdir(parents=True, exist_ok=True)
        try:
            measure([sys.executable, "-m", "venv", "--clear", environment], log)
            measure([python, "-m", "pip", "install", "--quiet", "-r", requirements], log)
        except CommandFailed as failure:
            return failure
        write_text(stamp, wanted)
    return str(python)
