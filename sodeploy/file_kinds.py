"""Files that are something else than their name says, recognized by their first bytes."""

import re
from pathlib import Path
from typing import NamedTuple

# Of checkpoints: weights without a graph, for PyTorch.
CHECKPOINT_SUFFIXES = frozenset((".ckpt", ".pt", ".pth", ".safetensors", ".tar"))

_FIRST = 512  # bytes that are looked at


class Kind(NamedTuple):
    """The kind of a file.

    Attributes:
        name: for messages, for example "a web page (HTML)".
        remedy: the next step for whoever expected any other kind; "" if it depends on the kind expected.
        of_model: the next step for whoever expected an ONNX file.
        family: torch | safetensors | text | image | other.
    """

    name: str
    remedy: str = ""
    of_model: str = ""
    family: str = "other"


_EXPORT = "export it: sodeploy to_onnx --model NAME --checkpoint FILE --output OUT.onnx"
_UNPACK = "unpack it and give the file inside"
_EMPTY = Kind("empty (0 bytes)", "copy or download it again")
_KINDS: tuple[tuple[re.Pattern[bytes], Kind], ...] = (
    (
        re.compile(rb"version https://git-lfs\.github\.com/"),
        Kind("a pointer of Git LFS, not the file itself", "fetch the file: git lfs pull"),
    ),
    (
        re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<!--.*?-->\s*)?<(?:!doctype html|html|head|body)", re.I | re.S),
        Kind("a web page (HTML)", "download the file itself, not the page about it"),
    ),
    (
        re.compile(rb"(?:\xef\xbb\xbf)?\s*<\?xml"),
        Kind("XML text, perhaps an error of a download", "download the file again"),
    ),
    (re.compile(rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF.{4}WEBP", re.S), Kind("an image", family="image")),
    (re.compile(rb"\x89HDF\r\n"), Kind("an HDF5 file, as Keras writes", of_model="convert it with tf2onnx")),
    (re.compile(rb".{4}TFL3", re.S), Kind("a TensorFlow Lite file", of_model="convert it with tf2onnx --tflite")),
    (re.compile(rb"\x1f\x8b"), Kind("a gzip archive", _UNPACK)),
    (re.compile(rb"7z\xbc\xaf\x27\x1c|Rar!\x1a\x07"), Kind("an archive", _UNPACK)),
    (re.compile(rb".{257}ustar", re.S), Kind("a tar archive", _UNPACK)),
    (re.compile(rb"ftrt|ptrt"), Kind("a TensorRT engine", of_model="give the ONNX file that it was built from")),
    (re.compile(rb".{7}\0\{\s*\"", re.S), Kind("a safetensors file", of_model=_EXPORT, family="safetensors")),
    (re.compile(rb"PK\x03\x04"), Kind("a zip archive, such as a checkpoint", of_model=_EXPORT, family="torch")),
    (re.compile(rb"\x80[\x02-\x05]"), Kind("a pickle, such as a checkpoint", of_model=_EXPORT, family="torch")),
    (re.compile(rb"[\x20-\x7e\s]{16,}"), Kind("text", "give the file itself", family="text")),
)


def kind_of(data: bytes) -> Kind | None:
    """The kind that the first bytes of a file show; None for any other, such as ONNX, which has no mark."""
    if not data:
        return _EMPTY
    begin = data[:_FIRST]
    return next((kind for pattern, kind in _KINDS if pattern.match(begin)), None)


def kind_of_file(path: str | Path) -> Kind | None:
    """`kind_of` of the file at `path`.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return kind_of(file.read(_FIRST))
