"""The items of a source: one for each output that is made of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sodeploy.calib_data.dataset import FileSample, Sample
from sodeploy.calib_data.images import MOST_PIXELS
from sodeploy.errors import UserError
from sodeploy.runtime.media.frame import Frame
from sodeploy.runtime.media.kinds import UNREADABLE, kind_of
from sodeploy.runtime.media.reading import read_frame

STREAM = "-"  # standard input as a source, standard output as a destination


@dataclass(frozen=True)
class Item:
    """One thing in a source, of which one output is made.

    Attributes:
        name: path below the source, with "/" and the file's suffix, such as "animals/cat.jpg".
        kind: "image", or a key of `kinds.MOVING`.
        path: the file; None where there is none.
        decode: gives the frame of an image, with its transparency and profile if asked; None for other kinds.
    """

    name: str
    kind: str = "image"
    path: Path | None = None
    decode: Callable[[int, bool], Frame] | None = field(default=None, repr=False, compare=False)

    def read(self, most_pixels: int = MOST_PIXELS, whole: bool = True) -> Frame:
        """The frame of an image; see `sodeploy.runtime.media.reading.read_frame`.

        Raises:
            UserError: as there; or the item is no image.
        """
        if self.decode is None:
            raise UserError(f"{self} is no image")
        return self.decode(most_pixels, whole)

    def __str__(self) -> str:
        return self.name if self.path is None else str(self.path)


@dataclass
class Found:
    """The content of a source.

    Attributes:
        items: in a fixed order.
        folder: the folder whose tree holds the items; None for a single item, a list or standard input.
        protected: further files and folders that no output may replace, such as the masks of a data set.
        failed: entry of the source that cannot be an item -> why; one line each.
        notes: facts about entries that were left out on purpose.
    """

    items: list[Item] = field(default_factory=list)
    folder: Path | None = None
    protected: list[Path] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def item_of_file(path: Path, name: str) -> Item:
    """The item of a file; of any suffix, it may be an image: its first bytes tell."""
    kind = kind_of(path) or "image"
    return Item(name, kind, path, partial(read_frame, path) if kind == "image" else None)


def item_of_sample(sample: Sample) -> Item:
    """The item of a data set's sample."""
    if isinstance(sample, FileSample):
        return item_of_file(sample.image_path, f"{sample.name}{sample.image_path.suffix}")
    return Item(f"{sample.name}.png", decode=lambda most_pixels, whole: Frame(sample.image()))


def refusal(path: Path) -> str | None:
    """Why a file that holds a picture cannot be read, with the remedy; None for any other file."""
    remedy = UNREADABLE.get(path.suffix.lower())
    return f"{path} is not read: {remedy}" if remedy else None
