"""`--size 320` and `--size 320 480` on a command line, where options otherwise take a fixed number of values."""

from typing import Any

from sodeploy.command_line import Command
from sodeploy.errors import UserError

HELP = "height and width of the input in pixels; one number for both"


class SizedCommand(Command):
    """A command whose `--size` takes one or two numbers; its function gets them as text for `parse_size`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        joined: list[str] = []
        for arg in args:
            if arg.isdecimal() and len(joined) > 1 and joined[-2] == "--size" and joined[-1].isdecimal():
                joined[-1] += f"x{arg}"
            else:
                joined.append(arg)
        return super().parse_args(ctx, joined)


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) in "320" or "320x480".

    Raises:
        UserError: it is neither, or zero.
    """
    sides = text.lower().split("x")
    if not all(side.isdecimal() and int(side) for side in sides) or len(sides) > 2:
        raise UserError(f"size {text!r} is not one or two positive numbers, as in --size 320 or --size 320 480")
    return int(sides[0]), int(sides[-1])
