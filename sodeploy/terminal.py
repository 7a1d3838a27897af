"""How the product talks to a person: progress and notes on stderr, results on stdout, one line for an error.

Only a command line talks. A library call stays silent: notes go to the logger "sodeploy" at level INFO and warnings at
level WARNING, so `logging` shows, redirects or silences them; `on_progress` hands every step of long work to a function
of the caller.
"""

import contextlib
import errno
import functools
import inspect
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from types import FrameType
from typing import Annotated, Any, NamedTuple, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from typer.core import TyperCommand

from sodeploy.errors import UserError
from sodeploy.stages import STAGES, Need, examples, stage_of
from sodeploy.stages import command as command

T = TypeVar("T")

_INTERRUPTED = "interrupted; finished artifacts are intact, unfinished ones were removed"
_LINE_EVERY_S = 5.0  # without a terminal
_TERMINATED = "terminated; finished artifacts are intact, unfinished ones were removed"
_TERMINATED_STATUS = 128 + signal.SIGTERM

# Without emoji: rich would replace the ":train:" in "synthetic:train:64".
notes = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
results = Console(highlight=False, emoji=False)
logger = logging.getLogger("sodeploy")

_OS_REMEDIES = {
    errno.ENOSPC: "free some space or choose another output folder",
    errno.EDQUOT: "free some space or choose another output folder",
    errno.EACCES: "choose a place you may write to, or correct the permissions",
    errno.EROFS: "choose a place you may write to",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "correct the link",
    errno.EIO: "check the disk",
    errno.ENOMEM: "end other processes, or give less at a time",
}

# The extra that brings a module, for an import that fails.
EXTRA_OF = {
    "torch": "train",
    "yaml": "train",
    "onnx": "quant",
    "onnxsim": "adopt",
    "onnxruntime": "cpu",
    "py_sod_metrics": "bench",
    "matplotlib": "report",
}


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


class Command(TyperCommand):
    """A command that names everything that is missing at once, with a whole example, and takes old option names."""

    @property
    def stage(self) -> str | None:
        """The stage that the command belongs to; None outside the product's rooms."""
        return stage_of(inspect.unwrap(self.callback)) if self.callback else None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if self.stage:
            args = [_renamed(word, STAGES[self.stage].renamed) for word in args]
        if not ctx.resilient_parsing:  # which is completion
            given = self.make_parser(ctx).parse_args(args=list(args))[0]
            parameters = self.get_params(ctx)
            if not any(parameter.is_eager and given.get(parameter.name) for parameter in parameters):
                self._refuse_missing(ctx, {p.name: given.get(p.name) for p in parameters if _present(p, given)})
        return super().parse_args(ctx, args)

    def _refuse_missing(self, ctx: Any, given: Mapping[str, Any]) -> None:
        names = {name: parameter.name for parameter in self.params for name in _names(parameter)}
        missing = [_names(p)[0] for p in self.params if p.required and p.name not in given]
        stage = self.stage
        for need in STAGES[stage].needs if stage else ():
            if _applies(need, given, names):
                missing.append(str(need))
        if missing:
            subcommand = ctx.info_name if ctx.parent is not None and ctx.info_name in _subcommands(stage) else None
            shown = examples(stage, subcommand) if stage else []
            lines = [f"missing: {'; '.join(missing)}", *(f"for example: {line}" for line in shown)]
            if not shown:
                lines.append(f"see {ctx.command_path} --help")
            fail("\n".join(lines), status=2)


def _renamed(word: str, renamed: Mapping[str, str]) -> str:
    option, equals, value = word.partition("=")
    return f"{renamed[option]}{equals}{value}" if option in renamed else word


def _names(parameter: Any) -> list[str]:
    """The names of a parameter as a user writes them, the longest option first."""
    if parameter.param_type_name == "argument":
        return [(parameter.metavar or parameter.name).upper()]
    return sorted((*parameter.opts, *parameter.secondary_opts), key=len, reverse=True)


def _present(parameter: Any, given: Mapping[str, Any]) -> bool:
    value = given.get(parameter.name)
    return value is not None and not (isinstance(value, (list, tuple)) and not value) and not _unset(value)


def _unset(value: object) -> bool:
    """Whether it is the value by which newer versions of click mark an absent argument."""
    return "UNSET" in repr(value)[:40] and not isinstance(value, (str, bytes, list, tuple))


def _applies(need: Need, given: Mapping[str, Any], names: Mapping[str, str]) -> bool:
    def has(option: str) -> bool:
        return bool(given.get(names.get(option, "")))

    if (need.when and not has(need.when)) or (need.unless and has(need.unless)):
        return False
    return not any(all(map(has, alternative.split())) for alternative in need.alternatives)


def _subcommands(stage: str | None) -> set[str]:
    """The first words of the examples, which are subcommands where the stage has some."""
    return {line.split()[0] for line in STAGES[stage].examples} if stage else set()


class Application(typer.Typer):
    """A typer application whose commands have the product's manners: `-h`, `--quiet`, and `Command`."""

    def command(self, name: str | None = None, *, cls: type[TyperCommand] | None = None, **settings: Any) -> Any:
        """Typer's decorator. The function itself stays as it is."""
        register = super().command(name, cls=cls or Command, context_settings=_CONTEXT, **settings)

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            register(_with_quiet(function))
            return function

        return decorate


_CONTEXT = {"help_option_names": ["-h", "--help"]}


def application(help: str | None = None) -> Application:
    """An application with the product's manners; add commands, then hand it to `run`."""
    return Application(
        help=help,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # rich's tables cut long option names on narrow screens
        context_settings=_CONTEXT,
    )


def _with_quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with an option `--quiet`, talking on the terminal while it runs."""
    signature = inspect.signature(function)
    kind = inspect.Parameter.KEYWORD_ONLY
    option = typer.Option("--quiet", "-q", help="print no notes and no progress, only warnings and errors")
    quiet = inspect.Parameter("quiet", kind, default=False, annotation=Annotated[bool, option])

    @functools.wraps(function)
    def call(*, quiet: bool, **given: Any) -> Any:
        with talking(quiet):
            return function(**given)

    parameters = [*signature.parameters.values(), quiet]
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {**function.__annotations__, "quiet": quiet.annotation}
    return call


def application_of(command: Callable[..., Any] | typer.Typer) -> typer.Typer:
    """The application itself, or one of a single command."""
    if isinstance(command, typer.Typer):
        return command
    app = application()
    app.command()(command)
    return app


def run(command: Callable[..., Any] | typer.Typer) -> None:
    """Run a command line and end the process: status 0 done, 1 user error, 2 wrong usage, 130 interrupted."""
    with errors_in_one_line():
        application_of(command)()


@contextlib.contextmanager
def errors_in_one_line(stage: str | None = None) -> Iterator[None]:
    """End the process with one line, not a traceback, where the user can correct the cause or stopped the command.

    Args:
        stage: the stage that runs, to name its extras where a module is missing.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)
    try:
        yield
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail(_INTERRUPTED, status=130)
    except SystemExit as end:
        if end.code == 130:  # typer's answer to an interrupt, without a word
            fail(_INTERRUPTED, status=130)
        if end.code == _TERMINATED_STATUS:
            fail(_TERMINATED, status=_TERMINATED_STATUS)
        raise
    except BrokenPipeError:  # the reader of our stdout left, for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except ModuleNotFoundError as error:
        if error.name not in EXTRA_OF:
            raise
        fail(f"{stage or 'this'} needs {error.name}: {install_command(error.name, stage)}")
    except OSError as error:
        if error.errno not in _OS_REMEDIES:
            raise
        fail(f"{error.filename or 'output'}: {error.strerror}; {_OS_REMEDIES[error.errno]}")


def _end(number: int, _: FrameType | None) -> None:
    sys.exit(_TERMINATED_STATUS)


def install_command(module: str, stage: str | None = None) -> str:
    """The one pip command that brings a missing module and everything else that the stage imports."""
    extras = {*(STAGES[stage].extras if stage else ()), EXTRA_OF[module]}
    if module != "onnxruntime" and "onnxruntime" in sys.modules:
        extras.discard("cpu")  # the GPU build may be installed, which the CPU build would overwrite
    return f"pip install 'sodeploy[{','.join(sorted(extras))}]'"


def fail(message: str, status: int = 1) -> None:
    """Print an error on stderr and end the process with `status`."""
    notes.print(f"error: {message}", style="red", markup=False)
    sys.exit(status)
