"""How salient-object data sets lie on disk: which folder holds the images, which the masks.

    ECSSD/         images/                ground_truth_mask/
    DUTS-TR/       DUTS-TR-Image/         DUTS-TR-Mask/             (DUTS-TE likewise)
    HKU-IS/        imgs/                  gt/
    DUT-OMRON/     DUT-OMRON-image/       pixelwiseGT-new-PNG/
    DIS-TR/        im/                    gt/                       (DIS5K; DIS-VD, DIS-TE1 to 4 likewise)
    PASCAL-S/      Imgs/: x.jpg and its mask x.png side by side     (SOD and MSRA10K likewise)
    AIM-500/       original/              mask/                     (its trimap/ is not read)
    P3M-500-P/     blurred_image/         mask/                     (P3M-500-NP: original_image/)
    UHRSD_TE_2K/   image/                 mask/                     (UHRSD_TR_2K likewise)
    Test/          Image/                 GT_Object/                (COD10K; its Train/ likewise)
    HRSOD_test/    the images themselves  ../HRSOD_test_mask/       (HRSOD_train likewise)
    any/           images/                masks/

The parts combine freely, in any case of letters: what people repack (`Imgs` + `GT`, `image` + `mask`) is found too. A
mask has the stem of its image, or that stem and an ending: x.jpg and x_mask.png, x-gt.png, x_segmentation.png.
"""

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sodeploy.calib_data.images import SUFFIXES
from sodeploy.errors import UserError

_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "im", "original")  # or *-image, *_image
_MASK_FOLDERS = ("masks", "mask", "ground_truth_mask", "gt", "gts", "gt_object", "pixelwisegt-new-png")  # or *-mask
_PAIRED = ("_mask", "-mask", "_masks", "_gt", "-gt")  # X/ holds the images, X_mask/ their masks

IMAGE_PLACES = "images/, image/, imgs/, img/, im/, original/, *-Image/, *_image/"
MASK_PLACES = (
    "masks/, mask/, gt/, gts/, ground_truth_mask/, GT_Object/, *-Mask/, pixelwiseGT-new-PNG/, or x.png beside x.jpg, "
    "or x_mask.png, x_gt.png, x_segmentation.png beside x"
)

_ENDING = re.compile(r"[_.-](mask|gt|segmentation)$", re.IGNORECASE)  # of a mask's stem
_PHOTOGRAPHS = (".jpg", ".jpeg", ".jfif")


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
    image_folder, mask_folder = _folders(root)
    files = image_files(image_folder)
    if mask_folder:
        masks = image_files(mask_folder)
        images = files
    else:
        masks = _masks_among(files)
        images = sorted(set(files) - set(masks))
    by_stem = _by_stem(images)
    return Layout(image_folder, mask_folder, by_stem, _masks_by_stem(masks, by_stem))


def without_ending(stem: str) -> str:
    """The stem of the image that a mask of that stem belongs to: `x_mask`, `x-gt` and `x_segmentation` become `x`."""
    return _ENDING.sub("", stem)


def _folders(root: Path) -> tuple[Path, Path | None]:
    """The folder of the images and that of the masks; None: they lie among the images, or there are none."""
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir())
    images = _one(root, [one for one in folders if _is_named(one, _IMAGE_FOLDERS, ("-image", "_image"))])
    pairs = [(one, mask) for one in folders if (mask := _paired(one, folders))]
    if not images and pairs:
        if len(pairs) > 1:
            raise UserError(f"{root} holds several data sets; give {' or '.join(str(one) for one, _ in pairs[:4])}")
        return pairs[0]
    masks = _one(root, [one for one in folders if _is_named(one, _MASK_FOLDERS, ("-mask", "_mask"))])
    if images or masks:
        return images or root, masks
    place = root.resolve()
    with contextlib.suppress(OSError):  # the folder above may not be ours to read
        return root, _paired(place, [entry for entry in place.parent.iterdir() if entry.is_dir()])
    return root, None


def _is_named(folder: Path, names: tuple[str, ...], endings: tuple[str, ...]) -> bool:
    name = folder.name.lower()
    return name in names or name.endswith(endings)


def _one(root: Path, found: list[Path]) -> Path | None:
    if len(found) > 1:
        raise UserError(
            f"{root} has both {found[0].name}/ and {found[1].name}/; keep one, or give a .txt list of images"
        )
    return found[0] if found else None


def _paired(folder: Path, folders: list[Path]) -> Path | None:
    """The folder beside `folder` that has its name and an ending for masks."""
    names = {folder.name.lower() + ending for ending in _PAIRED}
    return next((other for other in folders if other.name.lower() in names), None)


def _masks_among(files: list[Path]) -> list[Path]:
    """The masks that lie beside their images: x_mask.png beside x.jpg or x.png, and x.png beside x.jpg."""
    stems = {file.stem for file in files}
    photographs = {file.stem for file in files if file.suffix.lower() in _PHOTOGRAPHS}
    return [
        file
        for file in files
        if (file.stem in photographs and file.suffix.lower() not in _PHOTOGRAPHS)
        or (file.stem != (short := without_ending(file.stem)) and short in stems)
    ]


def _masks_by_stem(masks: Iterable[Path], images: dict[str, Path]) -> dict[str, Path]:
    """The masks by the stems of their images; a mask without an image keeps its own stem."""
    found: dict[str, Path] = {}
    for mask in masks:
        short = without_ending(mask.stem)
        stem = mask.stem if mask.stem in images or short not in images else short
        if (other := found.setdefault(stem, mask)) != mask:
            raise UserError(f"{other} and {mask.name} share a name; rename or remove one")
    return found


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder, sorted by name; an archive's doubled folder (`x/x/`) is looked through once."""
    files = _directly_in(folder)
    doubled = folder / folder.resolve().name  # "." and "/" have no name of their own
    return files if files or doubled == folder or not doubled.is_dir() else _directly_in(doubled)


def _directly_in(folder: Path) -> list[Path]:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))  # ._x.jpg: macOS's own
    return [entry for entry in entries if entry.suffix.lower() in SUFFIXES]


def _by_stem(files: Iterable[Path]) -> dict[str, Path]:
    stems: dict[str, Path] = {}
    for file in files:
        if (other := stems.setdefault(file.stem, file)) != file:
            raise UserError(f"{other} and {file.name} share a name; rename or remove one")
    return stems
