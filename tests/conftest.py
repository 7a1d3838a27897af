"""Fixtures for every room's tests."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from quick import NOT_QUICK, QUICK
from research_data import ResearchFile, reason_missing, research_folder

from sodeploy import terminal

# The tests run side by side, a process per core: more threads than cores mostly wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the quick tests."""
    quick = [Path(__file__).parent / path for path in QUICK]
    for item in items:
        left_out = item.nodeid.removeprefix("tests/").startswith(NOT_QUICK)
        if not left_out and any(item.path.is_relative_to(path) for path in quick):
            item.add_marker(pytest.mark.quick)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many tests were skipped, and why, the most frequent reason first."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    if reasons:
        terminalreporter.section(f"{len(skipped)} skipped")
        for reason, count in reasons.most_common():
            terminalreporter.write_line(f"{count:4}  {reason}")


@pytest.fixture(autouse=True)
def _talking() -> Iterator[None]:
    """Notes and warnings on stderr, as a command line shows them; a library call alone stays silent."""
    with terminal.talking():
        yield


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
