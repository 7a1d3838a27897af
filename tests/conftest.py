"""Fixtures for every room's tests."""

import os
from pathlib import Path

import pytest
from research_data import ResearchFile, reason_missing, research_folder

# The tests run side by side, a process per core: more threads than cores mostly wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def research_file() -> ResearchFile:
    """Gives a file or folder of the research data by its path there, and skips the test where it is missing."""

    def path_of(path: str) -> Path:
        found = research_folder() / path
        if not found.exists():
            pytest.skip(reason_missing(path))
        return found

    return path_of
