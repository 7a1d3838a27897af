"""Fixtures for every room's tests."""

import os
from pathlib import Path

import pytest

# The tests run side by side, a process per core: more threads than cores mostly wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def research() -> Path:
    """The folder of research benchmarks, trained weights and golden outputs, which is not part of this repository."""
    folder = Path(os.environ.get("SODEPLOY_RESEARCH", REPOSITORY.parent / "shared"))
    if not (folder / "networks").is_dir():
        pytest.skip(f"no research data at {folder} (set SODEPLOY_RESEARCH)")
    return folder
