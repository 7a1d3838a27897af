"""Reading .npz files that may be anybody's: sizes are checked before memory is taken, and nothing is unpickled."""

import zipfile
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from sodeploy.artifacts import one_line, require_file
from sodeploy.errors import UserError

_MOST_BYTES = 1 << 32  # of all arrays of a file, once they are unpacked
_DEFLATED = 1032  # bytes that one byte can stand for, at the greatest compression that deflate has


def read_arrays(path: str | Path, contents: str, remedy: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name.

    Args:
        contents: the purpose of the arrays, for the message.

    Raises:
        UserError: missing, broken, with Python objects, or with more bytes than such a file can have; the message ends
            with `remedy`.
    """
    path = require_file(path, remedy)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > _MOST_BYTES:
                raise ValueError("its arrays are too large")
            for entry in entries:
                _check_size(archive, entry)
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # zipfile, zlib and numpy each have their own
        reason = one_line(error) or type(error).__name__
        raise UserError(f"{path} holds no {contents} ({reason}); {remedy}") from None


def _check_size(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Refuse an array that declares more bytes than its entry holds; NumPy would take memory for all of them."""
    if entry.file_size > _DEFLATED * entry.compress_size + 64:
        raise ValueError(f"{entry.filename} declares {entry.file_size} bytes, which {entry.compress_size} cannot hold")
    with archive.open(entry) as file:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"{entry.filename} holds Python objects")
    size = dtype.itemsize
    for length in shape:
        size *= int(length)
    if size > entry.file_size:
        raise ValueError(f"{entry.filename} declares {size} bytes and holds {entry.file_size}")
