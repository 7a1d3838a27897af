"""Which input shapes an engine takes."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sodeploy.errors import UserError
from sodeploy.runtime.contract import Contract

Shape = tuple[int, ...]


class Profile(NamedTuple):
    """The input shapes `(N, 3, H, W)` an engine takes: from `min` to `max`, fastest at `opt`."""

    min: Shape
    opt: Shape
    max: Shape

    def __str__(self) -> str:
        return ":".join("x".join(map(str, shape)) for shape in self)


def parse_profile(text: str) -> Profile:
    """The profile in "1x3x320x320:4x3x320x320:8x3x320x320" (min:opt:max).

    Raises:
        UserError: it is not three shapes of four positive numbers, or they do not grow.
    """
    with contextlib.suppress(ValueError, TypeError):
        profile = Profile(*(tuple(int(number) for number in shape.split("x")) for shape in text.split(":")))
        if all(len(shape) == 4 and min(shape) > 0 for shape in profile) and _grows(profile):
            return profile
    raise UserError(f"profile {text!r} is not min:opt:max as in 1x3x320x320:4x3x320x320:8x3x320x320")


def checked_profile(
    profile: Profile | None, dims: Sequence[int | None], contract: Contract, path: Path
) -> Profile | None:
    """`profile`, if it is what a graph whose input has the shape `dims` (None: dynamic) needs.

    Raises:
        UserError: a dynamic graph has none, a fixed one has one, or it does not fit.
    """
    takes = "x".join("*" if dim is None else str(dim) for dim in dims)
    if None not in dims:
        if profile is not None:
            raise UserError(f"{path} takes {takes} only; leave the profile out, or export it with --dynamic-batch")
        return None
    if profile is None:
        least, most = ("x".join(map(str, (n, 3, contract.height, contract.width))) for n in (1, 8))
        raise UserError(f"{path} takes {takes}; say what to build for, such as --shapes {least}:{least}:{most}")
    for shape in profile:
        if len(shape) != len(dims) or any(dim not in (None, size) for dim, size in zip(dims, shape, strict=True)):
            raise UserError(f"profile {profile} does not fit {path}, which takes {takes}")
    if not _grows(profile):
        raise UserError(f"profile {profile} does not grow from min over opt to max")
    return profile


def _grows(profile: Profile) -> bool:
    return all(low <= middle <= high for low, middle, high in zip(*profile, strict=True))
