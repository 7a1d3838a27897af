"""How the product talks to a person: progress and notes on stderr, results on stdout, one line for an error.

Only a command line talks. A library call stays silent: notes go to the logger "sodeploy" at level INFO and warnings at
level WARNING, so `logging` shows, redirects or silences them; `on_progress` hands every step of long work to a function
of the caller.
"""

import contextlib
import datetime
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import NamedTuple, NoReturn, TypeVar

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


def debug(message: str) -> None:
    """Tell the user about a fact that only a close observer needs. A command line prints it with `--verbose`."""
    logger.debug(message)


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
        remark: a few words about the state of the work, for example "loss 0.31".
    """

    label: str
    done: int
    total: int | None
    finished: bool = False
    remark: str = ""


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


def progress(
    items: Iterable[T], label: str, total: int | None = None, *, done: int = 0, remark: Callable[[], str] | None = None
) -> Iterator[T]:
    """Yield `items`, and report each step. A command line shows a bar, or without a terminal a line every few seconds.

    Args:
        total: all items, those done before included; the number of `items` by default, where it is known.
        done: items that an earlier run has done.
        remark: called at each step for a few words about the state of the work, unless nobody watches.
    """
    if total is None and isinstance(items, Sized):
        total = done + len(items)

    def tell(finished: bool = False) -> None:
        if _watcher is not None:
            report(Step(label, done, total, finished, remark() if remark else ""))

    tell()
    try:
        for item in items:
            yield item
            done += 1
            tell()
    finally:
        tell(finished=True)


class _Bars:
    """Progress bars on stderr, one below the other where work contains other work."""

    def __init__(self) -> None:
        self._columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[remark]}", markup=False),
        )
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, step: Step) -> None:
        if self._bars is None:
            self._bars = Progress(*self._columns, console=notes)
            self._bars.start()
        if step.label not in self._tasks:
            self._tasks[step.label] = self._bars.add_task(step.label, total=step.total, completed=step.done, remark="")
        task = self._tasks[step.label]
        self._bars.update(task, completed=step.done, total=step.total, remark=step.remark)
        if step.finished:
            del self._tasks[step.label]
            if self._tasks:
                self._bars.remove_task(task)
            else:  # the outermost bar stays on the screen
                self._bars.stop()
                self._bars = None


@dataclass
class _Line:
    """The work behind one label: when it began, with how many items done, and when it was last printed."""

    began: float
    done: int
    last: float
    printed: bool = False


class _Lines:
    """A line on stderr every few seconds, for a log file: items done, the remark, and the time that is left."""

    def __init__(self) -> None:
        self._works: dict[str, _Line] = {}

    def __call__(self, step: Step) -> None:
        now = time.monotonic()
        work = self._works.setdefault(step.label, _Line(now, step.done, now))
        if now - work.last >= _LINE_EVERY_S or (step.finished and work.printed):
            work.last, work.printed = now, True
            of = "" if step.total is None else f"/{step.total}"
            parts = [f"{step.label}: {step.done}{of}", step.remark, _left(step, work, now)]
            notes.print(", ".join(part for part in parts if part), markup=False)
        if step.finished:
            del self._works[step.label]


def _left(step: Step, work: _Line, now: float) -> str:
    """The time that the rest takes at the mean speed so far; "" while it is not known."""
    if step.total is None or step.done <= work.done or step.finished:
        return ""
    seconds = (step.total - step.done) * (now - work.began) / (step.done - work.done)
    return f"{datetime.timedelta(seconds=round(seconds))} left"


class _Printer(logging.Handler):
    """Notes and warnings on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            notes.print(f"warning: {message}", style="yellow", markup=False)
        else:
            notes.print(message, markup=False)


@contextlib.contextmanager
def talking(quiet: bool = False, verbose: bool = False) -> Iterator[None]:
    """Print notes, warnings and progress on stderr until the block ends.

    Args:
        quiet: only warnings.
        verbose: also the facts that only a close observer needs (`debug`).
    """
    printer, level = _Printer(), logger.level
    logger.addHandler(printer)
    logger.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    before = on_progress(None if quiet else _Bars() if notes.is_terminal else _Lines())
    try:
        yield
    finally:
        on_progress(before)
        logger.setLevel(level)
        logger.removeHandler(printer)


class Told(SystemExit):
    """The end of a process whose user has read why."""


def fail(message: str, status: int = 1) -> NoReturn:
    """Print an error on stderr and end the process with `status`; an empty message is not printed."""
    if message:
        notes.print(f"error: {message}", style="red", markup=False)
    raise Told(status)
