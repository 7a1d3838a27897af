"""The kinds of files that a source may hold, by their suffixes.

`MOVING` is the table of media that are converted one at a time, frame by frame; a new one costs one entry. The rest of
the files that hold pictures are images, or are refused with a remedy: none is passed over without a word.
"""

from pathlib import Path
from typing import NamedTuple

from sodeploy.calib_data.images import SUFFIXES

# Formats that OpenCV reads, beside the ones that data sets are made of.
IMAGES = SUFFIXES | {".avif", ".gif", ".jfif", ".jp2", ".jpe", ".pbm", ".pgm", ".pnm", ".ppm", ".heic", ".heif", ".hif"}

_RAW = "it is a camera's raw file; develop it into JPEG or TIFF"
UNREADABLE = {
    **dict.fromkeys((".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"), _RAW),
    ".jxl": "JPEG XL is not supported; convert it to PNG, for example by djxl",
    ".pdf": "it is a document; save its pages as PNG",
    ".psd": "it is a Photoshop document; save it as PNG",
    ".svg": "it is a drawing; save it as PNG",
}


class Moving(NamedTuple):
    """A kind of moving source.

    Attributes:
        suffixes: of its files, in lower case; empty where it is no file.
        module: a module that is a `sodeploy.runtime.media.conversion.Conversion`; imported when it is used.
        live: it is shown while it lasts, and no file is made of it.
    """

    suffixes: frozenset[str]
    module: str
    live: bool = False


_VIDEOS = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"))
MOVING: dict[str, Moving] = {
    "video": Moving(_VIDEOS, "sodeploy.runtime.video.conversion"),
    "webcam": Moving(frozenset(), "sodeploy.runtime.video.live", live=True),
}


def kind_of(path: Path) -> str | None:
    """ "image", a key of `MOVING`, or None for a file that holds no picture."""
    suffix = path.suffix.lower()
    if suffix in IMAGES:
        return "image"
    return next((kind for kind, moving in MOVING.items() if suffix in moving.suffixes), None)
