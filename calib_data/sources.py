"""Opening a data set from what the user typed: a folder, a .txt list of images, or `synthetic:...`."""

import os
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

from sodeploy.artifacts import one_line, read_bytes
from sodeploy.calib_data import synthetic
from sodeploy.calib_data.dataset import Dataset, FileSample
from sodeploy.calib_data.images import SUFFIXES
from sodeploy.calib_data.layouts import IMAGE_PLACES, MASK_PLACES, Layout, find_layout
from sodeploy.errors import UserError


def open_dataset(source: str | Path, masks: bool = True) -> Dataset:
    """Find the samples of a data set, in an order that depends on nothing but their names or the list.

    Files are found and paired here and read later. Without `masks`, none is looked for.

    Args:
        source: a folder in one of the layouts of `layouts.py`; or, without masks, of images; or a .txt list whose lines
            are paths, or `dataset/name`, both relative to the list's folder, `#` beginning a comment; or
            `synthetic:train|val|calib|eval[:COUNT[:SIZE]]`.

    Raises:
        UserError: nothing there, an image without its mask or the reverse, a line that leads nowhere.
    """
    if str(source).startswith(synthetic.PREFIX):
        return synthetic.open_synthetic(str(source))
    path = Path(source)
    if path.is_dir():
        return Dataset(path.resolve().name, _folder_samples(path, masks))
    if path.suffix.lower() == ".txt" and path.is_file():
        return Dataset(path.stem, _list_samples(path, masks))
    if not path.exists():
        raise UserError(f"{path} does not exist; give a folder, a .txt list of images, or {synthetic.SYNTAX}")
    raise UserError(f"{path} is no data set; give a folder, a .txt list of images, or {synthetic.SYNTAX}")


def _folder_samples(root: Path, masks: bool) -> list[FileSample]:
    layout = find_layout(root)
    if not layout.images:
        raise UserError(f"{root} has no images; looked in {layout.image_folder} ({IMAGE_PLACES}){_parts(root)}")
    if not masks:
        return [FileSample(stem, path) for stem, path in layout.images.items()]
    if not layout.masks:
        raise UserError(f"{root} has no masks; looked in {layout.mask_folder or root} ({MASK_PLACES}){_parts(root)}")
    _require_pairs(layout)
    return [FileSample(stem, path, layout.masks[stem]) for stem, path in layout.images.items()]


def _require_pairs(layout: Layout) -> None:
    for these, others, kind, missing in (
        (layout.images, layout.masks, "image", "mask"),
        (layout.masks, layout.images, "mask", "image"),
    ):
        alone = [path for stem, path in these.items() if stem not in others]
        if alone:
            more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
            folder = layout.mask_folder or layout.image_folder if kind == "image" else layout.image_folder
            raise UserError(
                f"{kind} {alone[0]}{more} has no {missing} of the same name in {folder}; add it or remove the {kind}"
            )


def _parts(root: Path) -> str:
    """Where to look instead: the data sets one level down, as in a DUTS folder with DUTS-TR and DUTS-TE."""
    parts = [entry.name for entry in sorted(root.iterdir()) if entry.is_dir() and find_layout(entry).masks]
    return f"; did you mean {' or '.join(str(root / part) for part in parts[:4])}?" if parts else ""


def _list_samples(path: Path, masks: bool) -> list[FileSample]:
    try:
        text = read_bytes(path, "give a list with one image per line", most=1 << 28).decode("utf-8-sig")
        lines = text.splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; give a list with one image per line") from None
    layout_of = cache(find_layout)  # a list names the same few folders again and again
    samples: list[FileSample] = []
    outside: list[tuple[FileSample, Path]] = []  # with the root of its data set
    line_of: dict[Path, int] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        where = f"{path}, line {number}: {one_line(line)}"
        try:
            sample, root = _listed_sample(path.parent, line, masks, layout_of)
        except LookupError as error:
            raise UserError(f"{where}: {one_line(error.args[0], 2000)}") from None
        except (OSError, ValueError) as error:  # a name that no file can have: too long, or with a zero byte
            raise UserError(f"{where}: {getattr(error, 'strerror', None) or error}; correct it") from None
        if (first := line_of.setdefault(sample.image_path, number)) != number:
            raise UserError(f"{where} already stands in line {first}; remove one")
        samples.append(sample)
        if Path(line).is_absolute() or ".." in Path(line).parts:
            outside.append((sample, root))
    if not samples:
        raise UserError(f"{path} lists no images; write one path, or dataset/name, per line")
    _name_by_data_set(outside, {sample.name for sample in samples} - {sample.name for sample, _ in outside})
    return samples


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


def _listed_sample(
    folder: Path, line: str, masks: bool, layout_of: Callable[[Path], Layout]
) -> tuple[FileSample, Path]:
    """The sample that a line of a list names, and the root of its data set.

    Raises:
        LookupError: something is missing; the text says what.
    """
    path = folder / line
    name = Path(line).with_suffix("") if path.suffix.lower() in SUFFIXES else Path(line)
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
            raise LookupError(
                f"no such image; looked for {path} and {layout.image_folder if layout else root}/{name.name}.*"
            )
        path = layout.images[name.name]
    if not masks or not layout:
        return FileSample(name.as_posix(), path), root
    if name.name not in layout.masks:
        raise LookupError(f"has no mask {name.name}.* in {layout.mask_folder or layout.image_folder}")
    return FileSample(name.as_posix(), path, layout.masks[name.name]), root
