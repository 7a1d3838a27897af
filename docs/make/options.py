"""The options of a script as a Markdown table, read from the script's own command line."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import typer

Parameter = typer.core.TyperOption | typer.core.TyperArgument


def tables(script: str) -> str:
    """A table per command of a script such as `quant/plan.py`; several commands get their names as headings."""
    found = list(commands(script))
    if len(found) == 1:
        return table(found[0][1])
    return "\n\n".join(f"**`python {script} {name}`**\n\n{table(command)}" for name, command in found)


def commands(script: str) -> Iterator[tuple[str, typer.core.TyperCommand]]:
    """(name, command) of a script, or of each of its subcommands."""
    path = script.removesuffix(".py").removeprefix("sodeploy/").replace("/", ".")
    module = importlib.import_module(f"sodeploy.{path}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False)
        app.command()(module.main)
    command = typer.main.get_command(app)
    # A group is known by its commands: typer may have a click of its own, so `isinstance` with click's would not do.
    yield from getattr(command, "commands", {Path(script).stem: command}).items()


def table(command: typer.core.TyperCommand) -> str:
    """The options and arguments of one command, without the hidden ones."""
    rows = [_row(parameter) for parameter in command.params if not _is_hidden(parameter)]
    return "\n".join(["| option | meaning | default |", "| :-- | :-- | :-- |", *rows])


def _is_hidden(parameter: Parameter) -> bool:
    """Old names, and the two options of every command."""
    return bool(getattr(parameter, "hidden", False)) or parameter.name in ("help", "quiet", "verbose")


def _row(parameter: Parameter) -> str:
    is_argument = parameter.param_type_name == "argument"
    names = [f"`{(parameter.name or '').upper()}`"] if is_argument else _names(parameter)
    choices = _choices(parameter)
    said = " ".join((getattr(parameter, "help", None) or "").split()).replace("|", "\\|").replace("<", "&lt;")
    if choices and not all(str(choice) in said for choice in choices):
        said += f" ({', '.join(f'`{choice}`' for choice in choices)})"
    if parameter.multiple or parameter.nargs == -1:
        said += "" if "repeat" in said or "once" in said else " (several are possible)"
    return f"| {', '.join(names)} | {said} | {_default(parameter)} |"


def _choices(parameter: Parameter) -> list[str]:
    """The values of a `Literal`."""
    annotation = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    return list(map(str, get_args(annotation))) if get_origin(annotation) is Literal else []


def _names(parameter: typer.core.TyperOption) -> list[str]:
    names = [f"`{name}`" for name in parameter.opts]
    off = [f"`{name}`" for name in parameter.secondary_opts]
    return [*names[:1], *(name for name in names[1:] if len(name) == 4), *off]


def _default(parameter: Parameter) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if callable(value) or value is None or value == () or value == []:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{getattr(value, 'value', value)}`"
