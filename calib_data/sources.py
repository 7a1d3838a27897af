"""Opening data sets from what the user typed: a folder, a list of images, a name under a root, or `synthetic:...`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sodeploy.calib_data import synthetic
from sodeploy.calib_data.dataset import Dataset, FileSample, Sample
from sodeploy.calib_data.layouts import IMAGE_PLACES, MASK_PLACES, Layout, find_layout
from sodeploy.calib_data.lists import LIST_SUFFIXES, list_samples
from sodeploy.errors import UserError

Source = str | Path | Dataset

# The letters by which SOD100K and PoolNet (`--sal_mode`) choose a test set.
SHORT_NAMES = {
    "e": "ECSSD",
    "t": "DUTS-TE",
    "d": "DUT-OMRON",
    "h": "HKU-IS",
    "p": "PASCAL-S",
    "s": "SOD",
    "o": "SOD",
}

_KINDS = f"give a folder, a .txt list of images, or {synthetic.SYNTAX}"
_SAYS_NOTHING = ("test", "train", "val")  # names of lists that every data set has


def open_dataset(source: Source | Sequence[Source], masks: bool = True, root: str | Path | None = None) -> Dataset:
    """Find the samples of a data set, in an order that depends on nothing but their names or the list.

    Files are found and paired here and read later. Without `masks`, none is looked for.

    Args:
        source: a folder in one of the layouts of `layouts.py`; or, without masks, of images; or a .txt or .lst list
            (`lists.py`); or `synthetic:train|val|calib|eval[:COUNT[:SIZE]]`; or an open data set, which is returned as
            it is. Several, in a sequence or as a text with commas between them, become one data set, in which the
            names of files are SET/name.
        root: the folder that holds the data sets, in which they are found by name (`DUTS-TE`, or its letter in
            `SHORT_NAMES`), and that the lines of a list are relative to.

    Raises:
        UserError: nothing there, an image without its mask or the reverse, a line that leads nowhere, or one data set
            given twice.
    """
    opened = open_datasets(source, masks, root)
    if len(opened) == 1:
        return opened[0]
    samples = [_of_set(sample, dataset.name) for dataset in opened for sample in dataset]
    return Dataset("+".join(dataset.name for dataset in opened), samples)


def open_datasets(
    sources: Source | Sequence[Source], masks: bool = True, root: str | Path | None = None
) -> list[Dataset]:
    """Open several data sets, each by itself; arguments and errors as of `open_dataset`."""
    folder = None if root is None else Path(root)
    if folder is not None and not folder.is_dir():
        raise UserError(f"--root {folder} is no folder; give the one that holds the data sets")
    opened = [_open(one, masks, folder) for one in one_by_one(sources, folder)]
    names = [dataset.name for dataset in opened]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"the data set {twice} is given twice; give each once, under a name of its own")
    if not opened:
        raise UserError(f"no data set is given; {_KINDS}")
    return opened


def one_by_one(sources: Source | Sequence[Source], root: Path | None = None) -> Iterator[Source]:
    """The sources one by one; a text with commas that is no path of its own is several."""
    for source in [sources] if isinstance(sources, (str, Path, Dataset)) else sources:
        is_one = isinstance(source, Dataset) or "," not in str(source)
        if is_one or Path(str(source)).exists() or (root and (root / str(source)).exists()):
            yield source
        else:
            yield from filter(None, (part.strip() for part in str(source).split(",")))


def _open(source: Source, masks: bool, root: Path | None) -> Dataset:
    if isinstance(source, Dataset):
        return source
    path = located(source, root)
    if path is None:
        return synthetic.open_synthetic(str(source))
    if path.is_dir():
        return Dataset(path.resolve().name, _folder_samples(path, masks))
    if path.suffix.lower() in LIST_SUFFIXES and path.is_file():
        says_nothing = path.suffix.lower() == ".lst" and path.stem.lower() in _SAYS_NOTHING
        return Dataset(path.resolve().parent.name if says_nothing else path.stem, list_samples(path, masks, root))
    raise UserError(f"{path} {'is no data set' if path.exists() else 'does not exist'}; {_KINDS}")


def located(name: str | Path, root: Path | None = None) -> Path | None:
    """The folder or list that `name` means: a path, or the name of a data set under `root`; None for a drawn set.

    Raises:
        UserError: there is a root, and neither it nor the working folder has such a data set.
    """
    if str(name).startswith(synthetic.PREFIX):
        return None
    source, meant = Path(name), SHORT_NAMES.get(str(name), str(name))
    if root is None:
        return source if source.exists() else Path(meant)
    for one in (source, meant):
        if (root / one).exists():
            return root / one
    there = _places(root)
    for places in there:
        found = [place for place in places if _alike(place.name, meant)]
        found = found or [place for place in places if place.is_file() and _alike(place.stem, meant)]
        if len(found) > 1:
            raise UserError(f"{source} can be {found[0]} or {found[1]}; give the path of one")
        if found:
            return found[0]
    if source.exists():
        return source
    known = [place.name for place in there[0] if place.is_dir()][:12]
    raise UserError(f"{root} has no data set {meant}; it holds {', '.join(known) or 'no folders'}")


def _places(root: Path) -> tuple[list[Path], list[Path]]:
    """The folders and lists in `root`, and those one level down, as in DIS5K/DIS-VD."""
    first = [place for place in sorted(root.iterdir()) if _can_be_set(place)]
    second = [place for folder in first if folder.is_dir() for place in sorted(folder.iterdir()) if _can_be_set(place)]
    return first, second


def _can_be_set(place: Path) -> bool:
    return place.is_dir() or place.suffix.lower() in LIST_SUFFIXES


def _alike(name: str, other: str) -> bool:
    """Whether two names differ in nothing but case, dashes and underscores: PASCAL-S and pascals."""
    plain, wanted = ("".join(filter(str.isalnum, text)).casefold() for text in (name, other))
    return plain == wanted and bool(plain)


def _of_set(sample: Sample, dataset: str) -> Sample:
    """The sample under the name SET/name. A drawn sample keeps its name, which holds its set's."""
    return replace(sample, name=f"{dataset}/{sample.name}") if isinstance(sample, FileSample) else sample


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
    parts = [str(entry) for entry in sorted(root.iterdir()) if entry.is_dir() and _has_masks(entry)]
    return f"; did you mean {' or '.join(parts[:4])}?" if parts else ""


def _has_masks(folder: Path) -> bool:
    try:
        return bool(find_layout(folder).masks)
    except UserError:  # two of its folders claim the same place
        return False
