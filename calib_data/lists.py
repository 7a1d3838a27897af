"""Lists of images: a path, or an image and its mask, on each line."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from sodeploy.artifacts import one_line, read_bytes
from sodeploy.calib_data.dataset import FileSample
from sodeploy.calib_data.images import SUFFIXES
from sodeploy.calib_data.layouts import MASK_PLACES, Layout, find_layout
from sodeploy.errors import UserError

LIST_SUFFIXES = (".txt", ".lst")

_REMEDY = "give a list with one image, or an image and its mask, per line"
_GAPS = re.compile(r"\t+|,|[ ]+")


class _Columns(NamedTuple):
    """The parts of a line: the image, and its mask where the line names one."""

    image: str
    mask: Path | None = None


def list_samples(path: Path, masks: bool, root: Path | None = None) -> list[FileSample]:
    """The samples that a list names, in its order.

    A line is the path of an image, or `dataset/name`, or an image and its mask with a tab, a comma or spaces between
    them; names may hold any of these. `#` begins a comment line.

    Args:
        masks: find the mask of each image.
        root: the folder that the lines are relative to; by default the list's folder.

    Raises:
        UserError: the list is not text, is empty, or a line leads nowhere or repeats another.
    """
    try:
        lines = read_bytes(path, _REMEDY, most=1 << 28).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; {_REMEDY}") from None
    base = path.parent if root is None else root
    layout_of = cache(find_layout if masks else _layout_if_clear)  # a list names the same few folders again and again
    samples: list[FileSample] = []
    outside: list[tuple[FileSample, Path]] = []  # with the root of its data set
    line_of: dict[Path, int] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        where = f"{path}, line {number}: {one_line(line)}"
        try:
            columns = _columns(base, line, masks)
            sample, its_root = _listed_sample(base, columns, masks, layout_of)
        except LookupError as error:
            raise UserError(f"{where}: {one_line(error.args[0], 2000)}") from None
        except (OSError, ValueError) as error:  # a name that no file can have: too long, or with a zero byte
            raise UserError(f"{where}: {getattr(error, 'strerror', None) or error}; correct it") from None
        if (first := line_of.setdefault(sample.image_path, number)) != number:
            raise UserError(f"{where} already stands in line {first}; remove one")
        samples.append(sample)
        if Path(columns.image).is_absolute() or ".." in Path(columns.image).parts:
            outside.append((sample, its_root))
    if not samples:
        raise UserError(f"{path} lists no images; write one path, or dataset/name, per line")
    _name_by_data_set(outside, {sample.name for sample in samples} - {sample.name for sample, _ in outside})
    return samples


def _columns(folder: Path, line: str, masks: bool) -> _Columns:
    """The image of a line, and its mask where the line names both.

    Raises:
        LookupError: the line names an image that exists and a mask that does not.
    """
    if (folder / line).is_file():
        return _Columns(line)
    alone: tuple[str, str] | None = None
    for image, mask in _splits(line):
        if (folder / image).is_file():
            if (folder / mask).is_file():
                return _Columns(image, folder / mask)
            alone = alone or (image, mask)
    if alone is None:
        return _Columns(line)
    if masks:
        raise LookupError(f"no such mask; looked for {folder / alone[1]}")
    return _Columns(alone[0])


def _splits(line: str) -> Iterator[tuple[str, str]]:
    """Each way to read a line as two names. Tabs are the likeliest to separate, spaces the least."""
    gaps = sorted(_GAPS.finditer(line), key=lambda gap: "\t, ".index(gap[0][0]))
    for gap in gaps:
        image, mask = line[: gap.start()].strip(), line[gap.end() :].strip()
        if image and mask:
            yield image, mask


def _listed_sample(
    folder: Path, columns: _Columns, masks: bool, layout_of: Callable[[Path], Layout]
) -> tuple[FileSample, Path]:
    """The sample that a line of a list names, and the root of its data set.

    Raises:
        LookupError: something is missing; the text says what.
    """
    line = columns.image
    path = folder / line
    name = Path(line).with_suffix("") if path.suffix.lower() in SUFFIXES else Path(line)
    if columns.mask is not None:
        return FileSample(name.as_posix(), path, columns.mask), path.parent
    if path.is_file():  # masks are found from the image's own folder (x.png beside x.jpg), or the one above it
        roots = [root for root in (path.parent, path.parent.parent) if path in layout_of(root).images.values()]
        layout = next((layout_of(root) for root in roots if layout_of(root).masks), None)
        root = roots[-1] if roots else path.parent
        if masks and not layout:
            raise LookupError(f"has no mask; looked in {path.parent.parent} ({MASK_PLACES})")
    else:
        root = folder / name.parent
        layout = layout_of(root) if root.is_dir() else None
        if not layout or name.name not in layout.images:
            if root.is_dir():
                find_layout(root)  # raises where two files have the name
            raise LookupError(
                f"no such image; looked for {path} and {layout.image_folder if layout else root}/{name.name}.*"
            )
        path = layout.images[name.name]
    if not masks or not layout:
        return FileSample(name.as_posix(), path), root
    if name.name not in layout.masks:
        raise LookupError(f"has no mask {name.name}.* in {layout.mask_folder or layout.image_folder}")
    return FileSample(name.as_posix(), path, layout.masks[name.name]), root


def _layout_if_clear(root: Path) -> Layout:
    """The layout of a folder, empty where two of its files claim one place: an image that a line names is clear."""
    try:
        return find_layout(root)
    except UserError:
        return Layout(root, None, {}, {})


def _name_by_data_set(samples: list[tuple[FileSample, Path]], taken: set[str]) -> None:
    """Name samples as dataset/name, with more folders in front only where two names would be the same.

    The names go into plans and statistics, which must not depend on where a machine keeps its data sets.

    Args:
        samples: each with the root of its data set.
        taken: the names of the other samples.
    """
    folders = {id(sample): Path(os.path.abspath(root)).parts[1:] for sample, root in samples}
    left, count = samples, 1
    while left:
        for sample, _ in left:
            sample.name = "/".join((*folders[id(sample)][-count:], sample.image_path.stem))
        names = Counter(sample.name for sample, _ in samples)
        longer = [one for one in left if len(folders[id(one[0])]) > count]
        left = [one for one in longer if names[one[0].name] > 1 or one[0].name in taken]
        count += 1
