"""Moving sources, such as videos: one at a time, frame by frame, into one file each.

The table of them is `sodeploy.runtime.media.kinds.MOVING`.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from sodeploy.runtime.media.kinds import MOVING
from sodeploy.runtime.media.mapping import Mapper
from sodeploy.runtime.media.pictures import Look
from sodeploy.runtime.media.sources import Item


class Conversion(Protocol):
    """A module that turns one moving source into one file."""

    def output_suffix(self, look: Look) -> str:
        """The suffix of the output, such as ".mp4"."""

    def convert(self, item: Item, target: Path, mapper: Mapper, look: Look) -> Sequence[str]:
        """Convert one item to the file `target`, whole or absent; returns notes on it, one line each.

        Raises:
            UserError: the item cannot be read; `target` is absent, or holds the part that could be read.
            OSError: the output cannot be written.
        """


def conversion(kind: str) -> Conversion:
    """The module that converts a moving source, by its kind."""
    return cast(Conversion, importlib.import_module(MOVING[kind].module))
