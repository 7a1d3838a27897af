"""Options of several numbers: `--size 320`, `--size 320 480`, `--mean .5`, `--mean .485 .456 .406`, or with commas."""

import math
import re
from typing import Any

from sodeploy.command_line import Command
from sodeploy.errors import UserError

HELP = "height and width of the input in pixels; one number for both"
_MOST = {"--size": 2, "--mean": 3, "--std": 3}  # numbers that an option takes; one stands for all
_NUMBERS = re.compile(r"[\[(]?[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?([,;x×][-+\d.e,;x×]*)?[\])]?,?", re.IGNORECASE)
_SIDES = re.compile(r"[\[(]?\s*(\d{1,9})(?:\s*[,;xX×\s]\s*(\d{1,9}))?\s*,?[\])]?")


class NumbersCommand(Command):
    """A command whose options of several numbers take words or commas; its function gets them as one text."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        joined: list[str] = []
        room = 0
        for arg in args:
            option, equals, value = arg.partition("=")
            if option in _MOST:
                room = _MOST[option] - bool(equals)
                joined.append(f"{option}={value}" if equals else option)
            elif room and _NUMBERS.fullmatch(arg):
                room -= 1
                joined[-1] += f",{arg}" if "=" in joined[-1] else f"={arg}"
            else:
                room = 0
                joined.append(arg)
        return super().parse_args(ctx, joined)


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) in pixels, in "320", "320,480" or "320x480".

    Raises:
        UserError: it is neither, or zero.
    """
    sides = _SIDES.fullmatch(text.strip())
    if not sides or not all(int(side) for side in sides.groups(sides[1])):
        raise UserError(f"size {text!r} is not one or two positive numbers, as in --size 320 or --size 320 480")
    return int(sides[1]), int(sides[2] or sides[1])


def parse_channels(option: str, text: str) -> tuple[float, float, float]:
    """A number for each of three channels, in ".5", ".485,.456,.406" or ".485 .456 .406".

    Raises:
        UserError: it is not one or three finite numbers; `option` is named.
    """
    try:
        values = [float(word) for word in _split(text)]
    except ValueError:
        values = []
    if len(values) not in (1, 3) or not all(map(math.isfinite, values)):
        raise UserError(
            f"{option} {text} is not one number for all channels or three: {option} .5, or {option} .485 .456 .406"
        )
    return (values[0], values[0], values[0]) if len(values) == 1 else (values[0], values[1], values[2])


def _split(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,;]+", text.strip(" \t[](),")) if word]
