"""The source that a user names, as the items in it: an image, a folder, a data set, a list, or standard input.

A new kind of source costs one entry of `SOURCES`; a new kind of file one entry of `sodeploy.runtime.media.kinds`.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from sodeploy.calib_data import synthetic
from sodeploy.calib_data.dataset import Dataset
from sodeploy.calib_data.lists import LIST_SUFFIXES
from sodeploy.calib_data.sources import open_dataset
from sodeploy.errors import UserError
from sodeploy.runtime.media.folders import add_others, data_set_at, protect_masks, search
from sodeploy.runtime.media.frame import Frame
from sodeploy.runtime.media.items import STREAM, Found, Item, item_of_file, item_of_sample, refusal
from sodeploy.runtime.media.reading import decode_frame


class SourceKind(NamedTuple):
    """A kind of source.

    Attributes:
        says: its name in messages.
        fits: whether the text that the user gave is of this kind.
        find: the content; the second argument is the destination, whose folder is never searched.
    """

    says: str
    fits: Callable[[str], bool]
    find: Callable[[str, Path | None], Found]


def find_source(source: str | Path | Dataset | Sequence[str | Path], output: Path | None = None) -> Found:
    """The content of a source; of an open data set its images.

    Args:
        source: several of them are files, images and videos.
        output: the destination; where it lies in the source, it is left out.

    Raises:
        UserError: there is nothing of the name, or nothing in it to make a picture of.
    """
    if isinstance(source, Dataset):
        return _of_samples(source)
    if not isinstance(source, str | Path):
        return find_source(source[0], output) if len(source) == 1 else _files(source)
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
    if reason := refusal(path):
        raise UserError(reason)
    found = Found([item_of_file(path, path.name)])
    protect_masks(found)
    return found


def _files(files: Sequence[str | Path]) -> Found:
    """Several files; an entry that is none is left out and told."""
    found = Found()
    for path in map(Path, files):
        if path.is_dir():
            found.failed[str(path)] = f"{path} is a folder; give a folder alone, not beside files"
        elif not path.is_file():
            found.failed[str(path)] = f"{path} does not exist"
        elif reason := refusal(path):
            found.failed[str(path)] = reason
        else:
            found.items.append(item_of_file(path, path.name))
    protect_masks(found)
    return found


def _data_set(text: str, output: Path | None) -> Found:
    """One or several data sets, or a list, as the other stages take them: the images, never the masks."""
    found = _of_samples(open_dataset(text, masks=False))
    root = Path(text)
    if (layout := data_set_at(root) if root.is_dir() else None) is not None:
        found.folder = root
        add_others(layout, found, layout.image_folder)
        if layout.mask_folder is None:
            found.notes.append(f"{root}: {len(layout.masks)} files beside images of their names are masks")
    return found


def _folder(text: str, output: Path | None) -> Found:
    return search(Path(text), output)


def _of_samples(dataset: Dataset) -> Found:
    found = Found([item_of_sample(sample) for sample in dataset])
    protect_masks(found)
    return found


def _is_data_set(text: str) -> bool:
    return os.path.isdir(text) and data_set_at(Path(text)) is not None


def _are_data_sets(text: str) -> bool:
    return "," in text and not os.path.lexists(text)


def _is_list(text: str) -> bool:
    return Path(text).suffix.lower() in LIST_SUFFIXES and Path(text).is_file()


SOURCES: list[SourceKind] = [
    SourceKind("- for standard input", lambda text: text == STREAM, _standard_input),
    SourceKind(synthetic.SYNTAX, lambda text: text.startswith(synthetic.PREFIX), _data_set),
    SourceKind("a list of images", _is_list, _data_set),
    SourceKind("a data set", _is_data_set, _data_set),
    SourceKind("several data sets with commas between them", _are_data_sets, _data_set),
    SourceKind("a folder", lambda text: Path(text).is_dir(), _folder),
    SourceKind("an image or a video", lambda text: os.path.lexists(text), _file),
    SourceKind("the number of a webcam", str.isdecimal, _webcam),
]
