"""The front door: `sodeploy STAGE ...` is `python ROOM/STAGE.py ...`, and `sodeploy demo` runs all of them.

A stage's room is imported only when the stage runs: an image that deploys a model has no PyTorch and needs none.
"""

import difflib
import importlib
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from sodeploy import __version__, command_line, terminal
from sodeploy.outputs import check_outputs
from sodeploy.stages import STAGES, stage_named


class LazyStage(TyperCommand):
    """A stage that is imported when its command line is parsed, not when stages are listed."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command, which then takes the place of this one."""
        assert self.name is not None
        with command_line.errors_in_one_line(self.name):
            if not {"-h", "--help"} & set(args):
                check_outputs(self.name, args)  # before the import, which may take seconds
            module = importlib.import_module(f"sodeploy.{STAGES[self.name].module}")
            app = command_line.application_of(getattr(module, "app", None) or module.main)
            return typer.main.get_command(app).make_context(info_name, args, parent=parent, **extra)


# Words of other tools for what a stage does.
_OTHER_WORDS = {"quantize": "build", "quantise": "build", "quant": "build", "ptq": "build"}


class FrontDoor(TyperGroup):
    """The group of all stages."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        stage = stage_named(cmd_name)
        if stage is not None:
            return self.commands[stage]
        if not ctx.resilient_parsing and not cmd_name.startswith("-"):
            known = {name: stage for stage, entry in STAGES.items() for name in (stage, *entry.aliases)}
            near = difflib.get_close_matches(cmd_name, known, n=1, cutoff=0.5)
            near = [_OTHER_WORDS[cmd_name]] if cmd_name in _OTHER_WORDS else near
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(STAGES)}"
            terminal.fail(f"sodeploy has no stage {cmd_name!r}; {meant}", status=2)
        return None


def _print_version(wanted: bool) -> None:
    if wanted:
        terminal.results.print(__version__)
        raise typer.Exit


def _front_door(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Salient-object networks from PyTorch to TensorRT INT8, with the accuracy they lose on the way measured.

    Each stage has its own help: sodeploy STAGE --help
    """


def group() -> Any:
    """The command of all stages. Shell completion is typer's."""
    app = typer.Typer(
        cls=FrontDoor,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        subcommand_metavar="STAGE [OPTIONS]",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_front_door)
    command: Any = typer.main.get_command(app)
    for name, stage in STAGES.items():
        command.add_command(LazyStage(name, callback=None, help=stage.does, short_help=stage.does))
    return command


def main() -> None:
    """Run the stage that the command line names."""
    if len(sys.argv) < 2:
        sys.argv.append("--help")
    stage = stage_named(sys.argv[1])
    with command_line.errors_in_one_line(stage):
        group()()


if __name__ == "__main__":
    main()
