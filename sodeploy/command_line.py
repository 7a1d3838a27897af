"""The manners of every command line: `-h`, `--quiet`, `--verbose`, all that is missing named at once, one line a fault.

A stage hands its function to `run`; the front door (`sodeploy.__main__`) does so for every stage.
"""

import contextlib
import errno
import functools
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from sodeploy import terminal
from sodeploy.errors import Stopped, UserError
from sodeploy.outputs import check_outputs
from sodeploy.stages import EXTRA_OF, STAGES, Need, examples, install_command, stage_of

_INTERRUPTED = "interrupted; finished artifacts are intact, unfinished ones were removed"
_TERMINATED = "terminated; finished artifacts are intact, unfinished ones were removed"
_TERMINATED_STATUS = 128 + signal.SIGTERM

_OS_REMEDIES = {
    errno.ENOENT: "check the path",
    errno.ENOSPC: "free some space or choose another output folder",
    errno.EDQUOT: "free some space or choose another output folder",
    errno.EACCES: "choose a place you may write to, or correct the permissions",
    errno.EROFS: "choose a place you may write to",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "correct the link",
    errno.EIO: "check the disk",
    errno.ENOMEM: "end other processes, or give less at a time",
}


class Command(TyperCommand):
    """A command that names everything that is missing at once, with a whole example, and takes old option names."""

    @property
    def stage(self) -> str | None:
        """The stage that the command belongs to; None outside the product's rooms."""
        return stage_of(inspect.unwrap(self.callback)) if self.callback else None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if self.stage:
            args = [_renamed(word, STAGES[self.stage].renamed) for word in args]
            args = _completed(args, STAGES[self.stage].bare)
        if not ctx.resilient_parsing:  # which is completion
            parameters = self.get_params(ctx)
            _check_dashes(args, {name for parameter in parameters for name in _names(parameter)})
            given = self.make_parser(ctx).parse_args(args=list(args))[0]
            if not any(parameter.is_eager and given.get(parameter.name) for parameter in parameters):
                if self.stage:
                    check_outputs(self.stage, args)
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
            terminal.fail("\n".join(lines), status=2)


def _check_dashes(args: list[str], options: set[str]) -> None:
    """Refuse the name of a file that would be read as options, and options that would be read as names of files."""
    words = args[: args.index("--")] if "--" in args else args
    for word in words:
        if word.startswith("-") and word not in {*options, "-"} and os.path.lexists(word):
            terminal.fail(f"{word} is a file, but is read as an option; write it as ./{word}", status=2)
    for word in args[len(words) :]:
        if word.partition("=")[0] in options and not os.path.lexists(word):
            terminal.fail(
                f"{word} stands behind --, where every word is the name of a file; put it before --", status=2
            )


def _renamed(word: str, renamed: Mapping[str, str]) -> str:
    option, equals, value = word.partition("=")
    return f"{renamed[option]}{equals}{value}" if option in renamed else word


def _completed(words: Sequence[str], bare: Mapping[str, str]) -> list[str]:
    """The words with a value behind each option that needs none and has none."""
    following = [*words[1:], "-"]  # one more than words without any
    return [
        f"{word}={bare[word]}" if word in bare and after.startswith("-") else word
        for word, after in zip(words, following, strict=False)
    ]


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
    """A typer application whose commands have the product's manners: `-h`, `--quiet`, `--verbose`, and `Command`."""

    def command(self, name: str | None = None, *, cls: type[TyperCommand] | None = None, **settings: Any) -> Any:
        """Typer's decorator. The function itself stays as it is."""
        register = super().command(name, cls=cls or Command, context_settings=_CONTEXT, **settings)

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            register(_with_voice(function))
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


_VOICE = {
    "quiet": typer.Option("--quiet", "-q", help="print no notes and no progress, only warnings and errors"),
    "verbose": typer.Option("--verbose", "-v", help="print more: every file that is written, every line of a log"),
}


def _with_voice(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with the options `--quiet` and `--verbose`, talking on the terminal while it runs."""
    signature = inspect.signature(function)
    kind = inspect.Parameter.KEYWORD_ONLY
    voice = [
        inspect.Parameter(name, kind, default=False, annotation=Annotated[bool, option])
        for name, option in _VOICE.items()
    ]

    @functools.wraps(function)
    def call(*, quiet: bool, verbose: bool, **given: Any) -> Any:
        if quiet and verbose:
            raise UserError("--quiet and --verbose exclude each other; leave one out")
        try:
            with terminal.talking(quiet, verbose):
                return function(**given)
        except Stopped as stop:
            terminal.fail(str(stop), stop.status)

    call.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *voice])  # type: ignore[attr-defined]
    call.__annotations__ = {**function.__annotations__, **{option.name: option.annotation for option in voice}}
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
        terminal.fail(str(error))
    except KeyboardInterrupt:
        terminal.fail(_INTERRUPTED, status=130)
    except terminal.Told:
        raise
    except SystemExit as end:
        if end.code == 130:  # typer's answer to an interrupt, without a word
            terminal.fail(_INTERRUPTED, status=130)
        if end.code == _TERMINATED_STATUS:
            terminal.fail(_TERMINATED, status=_TERMINATED_STATUS)
        raise
    except BrokenPipeError:  # the reader of our stdout left, for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except ModuleNotFoundError as error:
        if error.name not in EXTRA_OF:
            raise
        terminal.fail(f"{stage or 'this'} needs {error.name}: {install_command(error.name, stage)}")
    except OSError as error:
        if error.errno not in _OS_REMEDIES:
            raise
        terminal.fail(f"{error.filename or 'output'}: {error.strerror}; {_OS_REMEDIES[error.errno]}")


def _end(number: int, _: FrameType | None) -> None:
    sys.exit(_TERMINATED_STATUS)
