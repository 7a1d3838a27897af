"""Searching a folder for images and videos, with its subfolders. The masks of data sets in it are never images."""

from pathlib import Path

from sodeploy.calib_data.layouts import Layout, find_layout
from sodeploy.errors import UserError
from sodeploy.runtime.media.items import Found, item_of_file, refusal
from sodeploy.runtime.media.kinds import kind_of


def search(root: Path, output: Path | None = None) -> Found:
    """The items in a folder, named by their paths below it.

    Args:
        output: the destination; where it lies in the folder, it is not searched.
    """
    found = Found(folder=root)
    _walk(root, root, found, set(), output)
    protect_masks(found)
    return found


def data_set_at(folder: Path) -> Layout | None:
    """The layout of the data set that lies in a folder, if one does.

    Masks in a folder of their own make a data set. Masks among the images do so only if every image has one: a folder
    of photographs may hold a few pictures of the same names.
    """
    try:
        layout = find_layout(folder)
    except (UserError, OSError):  # two folders claim one place, or one cannot be read: a folder like any other
        return None
    whole = layout.mask_folder is not None or set(layout.images) <= set(layout.masks)
    return layout if layout.images and layout.masks and whole else None


def add_others(layout: Layout, found: Found, root: Path) -> None:
    """Add what lies among the images of a data set and is no image of a data set: HEIC, videos, raw files."""
    for entry in sorted(layout.image_folder.iterdir()):
        if entry.is_dir() or entry.name.startswith(".") or entry in (*layout.images.values(), *layout.masks.values()):
            continue
        _add(entry, entry.relative_to(root).as_posix(), found)


def protect_masks(found: Found) -> None:
    """Protect the masks of the data sets that the images of a source belong to."""
    folders = dict.fromkeys(item.path.resolve().parent for item in found.items if item.path is not None)
    for folder in folders:
        for place in (folder, folder.parent):
            layout = data_set_at(place)
            if layout is not None and layout.image_folder.samefile(folder):
                found.protected += [*layout.masks.values(), *([layout.mask_folder] if layout.mask_folder else [])]


def _walk(folder: Path, root: Path, found: Found, seen: set[tuple[int, int]], output: Path | None) -> None:
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:
        found.notes.append(f"{folder} leads to a folder that is searched already")
        return
    seen.add((status.st_dev, status.st_ino))
    layout = data_set_at(folder)
    if layout is not None:
        found.notes.append(f"{folder} is a data set: {len(layout.masks)} masks in it are left out")
        found.items += [item_of_file(path, path.relative_to(root).as_posix()) for path in layout.images.values()]
        add_others(layout, found, root)
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        found.failed[str(folder)] = f"{folder} cannot be read ({error.strerror}); correct its permissions"
        return
    for entry in entries:
        if entry.name.startswith("."):  # ._x.jpg: macOS's own
            continue
        if not entry.is_dir():
            _add(entry, entry.relative_to(root).as_posix(), found)
        elif output is not None and output.is_dir() and entry.samefile(output):
            found.notes.append(f"{entry} is the destination and is not searched")
        else:
            _walk(entry, root, found, seen, output)


def _add(file: Path, name: str, found: Found) -> None:
    if reason := refusal(file):
        found.failed[str(file)] = reason
    elif kind_of(file):
        found.items.append(item_of_file(file, name))
