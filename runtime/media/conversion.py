"""Moving sources, such as videos: one at a time, frame by frame, into one file each, or into a window.

The table of them is `sodeploy.runtime.media.kinds.MOVING`.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, cast, get_args

from sodeploy.calib_data.images import MOST_PIXELS
from sodeploy.errors import UserError
from sodeploy.runtime.media.items import Item
from sodeploy.runtime.media.kinds import MOVING
from sodeploy.runtime.media.mapping import Mapper
from sodeploy.runtime.media.pictures import Look
from sodeploy.runtime.media.targets import is_file_name

Smoothing = Literal["none", "median", "exponential"]
VideoFormat = Literal["mp4", "mov", "mkv", "webm"]


@dataclass(frozen=True)
class MotionOptions:
    """The choices of a user for sources that move.

    Attributes:
        smoothing: the way in which maps are smoothed in time (`sodeploy.runtime.video.smoothing`).
        format: the format of videos; by default the usual one for pictures with or without transparency.
        most_pixels: the largest width x height of a frame that is decoded.
    """

    smoothing: Smoothing = "none"
    format: VideoFormat | None = None
    most_pixels: int = MOST_PIXELS

    def for_output(self, output: Path) -> "MotionOptions":
        """The same, with the format that `output` asks for by its suffix, where it names a video file.

        Raises:
            UserError: it asks for another format than `format`, or for one that is not written.
        """
        if not is_file_name(output, MOVING["video"].suffixes):
            return self
        formats: dict[str, VideoFormat] = {f".{name}": name for name in get_args(VideoFormat)}
        format = formats.get(output.suffix.lower())
        if format is None or self.format not in (None, format):
            wanted = self.format or ", ".join(formats.values())
            raise UserError(f"--output {output} is no {wanted} video; give it such a suffix")
        return replace(self, format=format)


class Conversion(Protocol):
    """A module that turns one moving source into one file, or shows it."""

    def output_suffix(self, look: Look, options: MotionOptions) -> str:
        """The suffix of the output, such as ".mp4"."""

    def convert(self, item: Item, target: Path, mapper: Mapper, look: Look, options: MotionOptions) -> Sequence[str]:
        """Convert one item to the file `target`, whole or absent; returns notes on it, one line each.

        Raises:
            UserError: the item cannot be read; `target` is absent, or holds the part that could be read.
            OSError: the output cannot be written.
        """


def conversion(kind: str) -> Conversion:
    """The module that converts a moving source, by its kind."""
    return cast(Conversion, importlib.import_module(MOVING[kind].module))
