"""How every script talks to a person: progress and notes on stderr, results on stdout, one line for an error."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sodeploy.errors import UserError

T = TypeVar("T")

_INTERRUPTED = "interrupted; finished artifacts are intact, unfinished ones were removed"

# Without emoji: the train in "synthetic:train:64" is none.
notes = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
results = Console(highlight=False, emoji=False)

_OS_REMEDIES = {
    errno.ENOSPC: "free some space or choose another output folder",
    errno.EDQUOT: "free some space or choose another output folder",
    errno.EACCES: "choose a place you may write to, or mend the permissions",
    errno.EROFS: "choose a place you may write to",
}


def note(message: str) -> None:
    """Tell the user something in passing, on stderr."""
    notes.print(message, markup=False)


def warn(message: str) -> None:
    """Tell the user something that they should act on, on stderr."""
    notes.print(f"warning: {message}", style="yellow", markup=False)


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` under a progress bar on stderr; without a terminal one line is printed at the end."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notes) as bar:
        yield from bar.track(items, description=label, total=total)


def application(help: str) -> typer.Typer:
    """A typer application with the product's manners; add commands, then hand it to `run`."""
    return typer.Typer(help=help, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


def run(command: Callable[..., Any] | typer.Typer) -> None:
    """Run a command line and end the process: status 0 done, 1 user error, 2 wrong usage, 130 interrupted."""
    if isinstance(command, typer.Typer):
        app = command
    else:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command()(command)
    with errors_in_one_line():
        app()


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the process with one line, not a traceback, for what the user can mend or has done."""
    try:
        yield
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail(_INTERRUPTED, status=130)
    except SystemExit as end:
        if end.code == 130:  # how typer answers an interrupt, without a word
            _fail(_INTERRUPTED, status=130)
        raise
    except BrokenPipeError:  # the reader of our stdout left, for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno not in _OS_REMEDIES:
            raise
        _fail(f"{error.filename or 'output'}: {error.strerror}; {_OS_REMEDIES[error.errno]}")


def _fail(message: str, status: int = 1) -> None:
    notes.print(f"error: {message}", style="red", markup=False)
    sys.exit(status)
