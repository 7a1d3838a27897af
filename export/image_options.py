"""The options of a command line about the image that becomes the input, as fields of the contract."""

from typing import Annotated, Any

import typer

from sodeploy.errors import UserError
from sodeploy.export.number_options import parse_channels

_CHANNELS = "V or R G B"
Mean = Annotated[
    str | None,
    typer.Option(help="subtracted from each channel, after the division; one number for all", metavar=_CHANNELS),
]
Std = Annotated[
    str | None,
    typer.Option(help="divisor of each channel, after the subtraction; one number for all", metavar=_CHANNELS),
]
DivideBy = Annotated[str | None, typer.Option(help="divisor of the pixels: 255, or max (the image's maximum)")]
Colour = Annotated[str | None, typer.Option(help="order of the channels: RGB or BGR")]
Interpolation = Annotated[str | None, typer.Option(help="interpolation of the resize: linear or area")]
Stretch = Annotated[bool | None, typer.Option("--stretch/--no-stretch", help="min-max over the finished map")]

_LARGEST = 5.0  # mean or deviation of pixels in [0, 1]; those of ImageNet are below 0.5


def image_fields(
    *,
    mean: str | None,
    std: str | None,
    divide_by: str | None,
    colour: str | None,
    interpolation: str | None,
    stretch: bool | None,
) -> dict[str, Any]:
    """The fields of a contract that were given; None means not given.

    Raises:
        UserError: a value that no contract has.
    """
    means, deviations = (
        None if text is None else parse_channels(option, text) for option, text in (("--mean", mean), ("--std", std))
    )
    given = {
        "mean": means,
        "std": deviations,
        "divide_by": _one_of("--divide-by", divide_by, ("255", "max")),
        "colour": _one_of("--colour", colour and colour.upper(), ("RGB", "BGR")),
        "interpolation": _one_of("--interpolation", interpolation, ("linear", "area")),
        "stretch": stretch,
    }
    for option, values in (("--mean", means), ("--std", deviations)):
        if values is not None and divide_by != "max" and max(map(abs, values)) > _LARGEST:
            scaled = " ".join(f"{value / 255:.6g}" for value in values)
            raise UserError(
                f"{option} {' '.join(map(str, values))} is for pixels of 0 to 255; they are divided by 255 first: give "
                f"mean / 255 and std / 255, here {option} {scaled}"
            )
    if deviations is not None and min(deviations) <= 0:
        kind = "a zero to divide by" if 0.0 in deviations else "a negative number"
        raise UserError(f"--std {' '.join(map(str, deviations))} has {kind}; give numbers above 0")
    return {field: value for field, value in given.items() if value is not None}


def _one_of(option: str, value: str | None, choices: tuple[str, ...]) -> str | None:
    if value is not None and value not in choices:
        raise UserError(f"{option} {value} is unknown; choose {' or '.join(choices)}")
    return value
