"""How salient-object data sets lie on disk: which folder holds the images, which the masks.

    ECSSD/      images/              ground_truth_mask/
    DUTS-TR/    DUTS-TR-Image/       DUTS-TR-Mask/             (DUTS-TE likewise)
    HKU-IS/     imgs/                gt/
    DUT-OMRON/  DUT-OMRON-image/     pixelwiseGT-new-PNG/
    DIS-TR/     im/                  gt/                       (DIS5K; DIS-VD, DIS-TE1 to 4 likewise)
    PASCAL-S/   Imgs/: x.jpg and its mask x.png side by side   (SOD and MSRA10K likewise)
    any/        images/              masks/

The parts combine freely, in any case of letters: what people repack (`Imgs` + `GT`, `image` + `mask`) is found too.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sodeploy.calib_data.images import SUFFIXES
from sodeploy.errors import UserError

_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "im")  # or *-image
_MASK_FOLDERS = ("masks", "mask", "ground_truth_mask", "gt", "gts", "pixelwisegt-new-png")  # or *-mask

IMAGE_PLACES = "images/, image/, imgs/, img/, im/, *-Image/"
MASK_PLACES = "masks/, mask/, gt/, gts/, ground_truth_mask/, *-Mask/, pixelwiseGT-new-PNG/, or x.png beside x.jpg"


@dataclass(frozen=True)
class Layout:
    """The files of one data set by their stems, sorted."""

    image_folder: Path
    mask_folder: Path | None
    images: dict[str, Path]
    masks: dict[str, Path]


def find_layout(root: Path) -> Layout:
    """Which files under the folder `root` are images and which are masks; either may come out empty.

    Raises:
        UserError: two folders, or two files, claim the same place.
    """
    image_folder = _subfolder(root, _IMAGE_FOLDERS, "-image") or root
    mask_folder = _subfolder(root, _MASK_FOLDERS, "-mask")
    if mask_folder:
        images, masks = image_files(image_folder), image_files(mask_folder)
    else:
        files = image_files(image_folder)
        photographs = {file.stem for file in files if file.suffix.lower() in (".jpg", ".jpeg")}
        masks = [file for file in files if file.suffix.lower() == ".png" and file.stem in photographs]
        images = sorted(set(files) - set(masks))
    return Layout(image_folder, mask_folder, _by_stem(images), _by_stem(masks))


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder, sorted by name; an archive's doubled folder (`x/x/`) is looked through once."""
    files = _directly_in(folder)
    doubled = folder / folder.resolve().name  # "." and "/" have no name of their own
    return files if files or doubled == folder or not doubled.is_dir() else _directly_in(doubled)


def _directly_in(folder: Path) -> list[Path]:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))  # ._x.jpg: macOS's own
    return [entry for entry in entries if entry.suffix.lower() in SUFFIXES]


def _subfolder(root: Path, names: tuple[str, ...], ending: str) -> Path | None:
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir())
    found = [folder for folder in folders if folder.name.lower() in names or folder.name.lower().endswith(ending)]
    if len(found) > 1:
        raise UserError(
            f"{root} has both {found[0].name}/ and {found[1].name}/; keep one, or give a .txt list of images"
        )
    return found[0] if found else None


def _by_stem(files: Iterable[Path]) -> dict[str, Path]:
    stems: dict[str, Path] = {}
    for file in files:
        if (other := stems.setdefault(file.stem, file)) != file:
            raise UserError(f"{other} and {file.name} share a name; rename or remove one")
    return stems
