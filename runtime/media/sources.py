"""The source that a user names, as the items in it: an image, a folder, a data set, a list, or standard input.

A new kind of source costs one entry of `SOURCES`; a new kind of file one entry of `sodeploy.runtime.media.kinds`.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sodeploy.calib_data import synthetic
from sodeploy.calib_data.dataset import Dataset, FileSample, Sample
from sodeploy.calib_data.images import MOST_PIXELS
from sodeploy.calib_data.layouts import Layout, find_layout
from sodeploy.calib_data.lists import LIST_SUFFIXES
from sodeploy.calib_data.sources import open_dataset
from sodeploy.errors import UserError
from sodeploy.runtime.media.frame import Frame
from sodeploy.runtime.media.kinds import UNREADABLE, kind_of
from sodeploy.runtime.media.reading import decode_frame, read_frame

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


class Source(NamedTuple):
    """A kind of source.

    Attributes:
        says: its name in messages.
        fits: whether the text that the user gave is of this kind.
        find: the content; the second argument is the destination, whose folder is never searched.
    """

    says: str
    fits: Callable[[str], bool]
    find: Callable[[str, Path | None], Found]


def find_source(source: str | Path | Dataset, output: Path | None = None) -> Found:
    """The content of a source; of an open data set its images.

    Args:
        output: the destination; where it lies in the source, it is left out.

    Raises:
        UserError: there is nothing of the name, or nothing in it to make a picture of.
    """
    if isinstance(source, Dataset):
        return _samples(source)
    text = str(source)
    kind = next((kind for kind in SOURCES if kind.fits(text)), None)
    if kind is None:
        known = ", ".join(kind.says for kind in SOURCES)
        raise UserError(f"{text} does not exist; give one of: {known}")
    found = kind.find(text, output)
    if not found.items and not found.failed:
        raise UserError(f"{text} has no images; give a folder with .jpg or .png files")
    return found


def _standard_input(text: str, output: Path | None) -> Found:
    def decode(most_pixels: int, whole: bool) -> Frame:
        data = sys.stdin.buffer.read()
        if not data:
            raise UserError("stdin is empty; pipe an image into it")
        return decode_frame(data, "stdin", most_pixels, whole)

    return Found([Item("stdin", decode=decode)])


def _webcam(text: str, output: Path | None) -> Found:
    return Found([Item(text, "webcam")])


def _file(text: str, output: Path | None) -> Found:
    path = Path(text)
    if reason := _unreadable(path):
        raise UserError(reason)
    # A file of any suffix may be an image: its first bytes tell.
    return Found([_item(path, path.name)])


def _dataset(text: str, output: Path | None) -> Found:
    """A data set as the other stages take it: its images, never its masks."""
    found = _samples(open_dataset(text, masks=False))
    root = Path(text)
    if root.is_dir():
        layout = find_layout(root)
        found.folder, found.protected = root, _masks(layout)
        if layout.masks and layout.mask_folder is None:
            found.notes.append(f"{root}: {len(layout.masks)} PNG files beside photographs of their names are masks")
    return found


def _folder(text: str, output: Path | None) -> Found:
    """A folder of files and folders; where a data set lies in it, its images, never its masks."""
    root = Path(text)
    found = Found(folder=root)
    _walk(root, root, found, set(), output)
    around = _layout(root.resolve().parent)
    if around is not None and around.masks and around.image_folder.samefile(root):
        found.protected += _masks(around)
    return found


def _walk(folder: Path, root: Path, found: Found, seen: set[tuple[int, int]], output: Path | None) -> None:
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:  # a link that leads upward
        return
    seen.add((status.st_dev, status.st_ino))
    layout = _layout(folder)
    if layout is not None and layout.masks:
        found.protected += _masks(layout)
        found.notes.append(f"{folder} is a data set: {len(layout.masks)} masks in it are left out")
        found.items += [_item(path, _below(path, root)) for path in layout.images.values()]
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        found.failed[str(folder)] = f"{folder} cannot be read ({error.strerror}); correct its permissions"
        return
    for entry in entries:
        if entry.name.startswith("."):  # ._x.jpg: macOS's own
            continue
        name = _below(entry, root)
        if entry.is_dir():
            if output is not None and output.is_dir() and entry.samefile(output):
                found.notes.append(f"{entry} is the destination and is not searched")
                continue
            _walk(entry, root, found, seen, output)
        elif reason := _unreadable(entry):
            found.failed[str(entry)] = reason
        elif kind_of(entry):
            found.items.append(_item(entry, name))


def _layout(folder: Path) -> Layout | None:
    """The layout of a data set with images and masks, if the folder has one."""
    try:
        return find_layout(folder)
    except (UserError, OSError):  # two folders claim one place, or one cannot be read: a folder like any other
        return None


def _masks(layout: Layout) -> list[Path]:
    return [*layout.masks.values(), *([layout.mask_folder] if layout.mask_folder else [])]


def _item(path: Path, name: str) -> Item:
    kind = kind_of(path) or "image"
    return Item(name, kind, path, partial(read_frame, path) if kind == "image" else None)


def _samples(dataset: Dataset) -> Found:
    return Found([_of_sample(sample) for sample in dataset])


def _of_sample(sample: Sample) -> Item:
    if isinstance(sample, FileSample):
        path = sample.image_path
        return Item(f"{sample.name}{path.suffix}", "image", path, partial(read_frame, path))
    return Item(f"{sample.name}.png", decode=lambda most_pixels, whole: Frame(sample.image()))


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _unreadable(path: Path) -> str | None:
    remedy = UNREADABLE.get(path.suffix.lower())
    return f"{path} is not read: {remedy}" if remedy else None


def _is_data_set(text: str) -> bool:
    """Whether a folder lies as a data set does, with masks for all of its images."""
    layout = _layout(Path(text)) if os.path.isdir(text) else None
    return layout is not None and bool(layout.masks) and set(layout.images) <= set(layout.masks)


def _is_list(text: str) -> bool:
    return Path(text).suffix.lower() in LIST_SUFFIXES and Path(text).is_file()


SOURCES: list[Source] = [
    Source("- for standard input", lambda text: text == STREAM, _standard_input),
    Source(synthetic.SYNTAX, lambda text: text.startswith(synthetic.PREFIX), _dataset),
    Source("a list of images", _is_list, _dataset),
    Source("a data set", _is_data_set, _dataset),
    Source("a folder", lambda text: Path(text).is_dir(), _folder),
    Source("an image or a video", lambda text: os.path.lexists(text), _file),
    Source("the number of a webcam", str.isdecimal, _webcam),
]
