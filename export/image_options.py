"""The options of a command line that say how an image becomes the input, as fields of the contract."""

from typing import Annotated, Any

import typer

from sodeploy.errors import UserError

Triple = tuple[float, float, float]
Mean = Annotated[Triple | None, typer.Option(help="subtracted from each channel, after the division")]
Std = Annotated[Triple | None, typer.Option(help="divisor of each channel, after the subtraction")]
DivideBy = Annotated[str | None, typer.Option(help="divisor of the pixels: 255, or max (the image's maximum)")]
Colour = Annotated[str | None, typer.Option(help="order of the channels: RGB or BGR")]
Interpolation = Annotated[str | None, typer.Option(help="interpolation of the resize: linear or area")]
Stretch = Annotated[bool | None, typer.Option("--stretch/--no-stretch", help="min-max over the finished map")]

_LARGEST_MEAN = 5.0  # of pixels in [0, 1]; the means of ImageNet are below 0.5


def image_fields(
    *,
    mean: Triple | None,
    std: Triple | None,
    divide_by: str | None,
    colour: str | None,
    interpolation: str | None,
    stretch: bool | None,
) -> dict[str, Any]:
    """The fields of a contract that were given; None means not given.

    Raises:
        UserError: a value that no contract has.
    """
    given = {
        "mean": mean,
        "std": std,
        "divide_by": _one_of("--divide-by", divide_by, ("255", "max")),
        "colour": _one_of("--colour", colour, ("RGB", "BGR")),
        "interpolation": _one_of("--interpolation", interpolation, ("linear", "area")),
        "stretch": stretch,
    }
    if mean is not None and divide_by != "max" and max(map(abs, mean)) > _LARGEST_MEAN:
        raise UserError(
            f"--mean {' '.join(map(str, mean))} is for pixels of 0 to 255; they are divided by 255 first: give "
            "mean / 255 and std / 255"
        )
    if std is not None and 0.0 in std:
        raise UserError(f"--std {' '.join(map(str, std))} has a zero to divide by; give three numbers above 0")
    if std is not None and min(std) < 0:
        raise UserError(f"--std {' '.join(map(str, std))} has a negative number; give three numbers above 0")
    return {field: value for field, value in given.items() if value is not None}


def _one_of(option: str, value: str | None, choices: tuple[str, ...]) -> str | None:
    if value is not None and value not in choices:
        raise UserError(f"{option} {value} is unknown; choose {' or '.join(choices)}")
    return value
