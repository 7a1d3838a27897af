"""How the product talks to a person: progress and notes on stderr, results on stdout, one line for an error.

Only a command line talks. A library call stays silent: notes go to the logger "sodeploy" at level INFO and warnings at
level WARNING, so `logging` shows, redirects or silences them; `on_progress` hands every step of long work to a function
of the caller.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import NamedTuple, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

T = TypeVar("T")

_LINE_EVERY_S = 5.0  # without a terminal

# Without emoji: rich would replace the ":train:" in "synthetic:train:64".
notes = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
results = Console(highlight=False, emoji=False)
logger = logging.getLogger("sodeploy")
logger.addHandler(logging.NullHandler())  # without a handler Python prints warnings on stderr


def note(message: str) -> None:
    """Tell the user about a fact. A command line prints it on stderr."""
    logger.info(message)


def warn(message: str) -> None:
    """Tell the user about a fact that asks for an action. A command line prints it on stderr."""
    logger.warning(message)


class Step(NamedTuple):
    """How far a piece of long work is.

    Attributes:
        label: the name of the work.
        done: items that are done.
        total: all items; None if it is not known.
        finished: no step follows, whether all items are done or the work was stopped.
    """

    label: str
    done: int
    total: int | None
    finished: bool = False


_watcher: Callable[[Step], None] | None = None


def on_progress(watcher: Callable[[Step], None] | None) -> Callable[[Step], None] | None:
    """Call `watcher` at every step of long work, from now on; None for silence. Returns the watcher before."""
    global _watcher
    before, _watcher = _watcher, watcher
    return before


def report(step: Step) -> None:
    """Hand one step to the watcher, if there is one. `progress` does it for an iterable."""
    if _watcher is not None:
        _watcher(step)


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`, and report each step. A command line shows a bar, or without a terminal a line now and then."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    done = 0
    report(Step(label, done, total))
    try:
        for item in items:
            yield item
            done += 1
            report(Step(label, done, total))
    finally:
        report(Step(label, done, total, finished=True))


class _Bars:
    """Progress bars on stderr, one below the other where work contains other work."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._columns = columns
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, step: Step) -> None:
        if self._bars is None:
            self._bars = Progress(*self._columns, console=notes)
            self._bars.start()
        if step.label not in self._tasks:
            self._tasks[step.label] = self._bars.add_task(step.label, total=step.total)
        task = self._tasks[step.label]
        self._bars.update(task, completed=step.done, total=step.total)
        if step.finished:
            del self._tasks[step.label]
            if self._tasks:
                self._bars.remove_task(task)
            else:  # the outermost bar stays on the screen
                self._bars.stop()
                self._bars = None


class _Lines:
    """A line on stderr every few seconds, for a log file."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._printed: set[str] = set()

    def __call__(self, step: Step) -> None:
        now = time.monotonic()
        last = self._last.setdefault(step.label, now)
        if now - last >= _LINE_EVERY_S or (step.finished and step.label in self._printed):
            self._last[step.label] = now
            self._printed.add(step.label)
            of = "" if step.total is None else f"/{step.total}"
            notes.print(f"{step.label}: {step.done}{of}", markup=False)
        if step.finished:
            del self._last[step.label]
            self._printed.discard(step.label)


class _Printer(logging.Handler):
    """Notes and warnings on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            notes.print(f"warning: {message}", style="yellow", markup=False)
        else:
            notes.print(message, markup=False)


@contextlib.contextmanager
def talking(quiet: bool = False) -> Iterator[None]:
    """Print notes, warnings and progress on stderr until the block ends; with `quiet` only warnings."""
    printer, level = _Printer(), logger.level
    logger.addHandler(printer)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    before = on_progress(None if quiet else _Bars() if notes.is_terminal else _Lines())
    try:
        yield
    finally:
        on_progress(before)
        logger.setLevel(level)
        logger.removeHandler(printer)


def fail(message: str, status: int = 1) -> None:
    """Print an error on stderr and end the process with `status`."""
    notes.print(f"error: {message}", style="red", markup=False)
    sys.exit(status)
