"""The names and shapes in a checkpoint file, read without PyTorch, whose import takes longer than most refusals should.

Nothing in the file is run: every class that its pickle names is replaced by a record. A file that this module does not
understand is left to PyTorch, which has the last word.
"""

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch.save before version 1.6
_MOST = 1 << 28  # bytes of names and shapes; the tensors themselves are not read
_PLAIN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
}
_MAYBE_ALLOWED = ("collections", "builtins", "__builtin__", "_codecs", "copyreg", "numpy")  # PyTorch knows


class Outline(NamedTuple):
    """A tensor without its numbers; `is_plain` is False for a sparse or quantized one, and one without data."""

    shape: tuple[int, ...]
    is_plain: bool = True


class NotUnderstoodError(Exception):
    """The file is of a form that this module does not read; PyTorch may."""


class BrokenError(Exception):
    """The file is damaged: no reader can take it."""


class ForeignError(Exception):
    """The file holds objects of classes that PyTorch does not load without running code."""


class _Named:
    """A class or function that a pickle names."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self, *given: Any) -> Any:
        if self.name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            if len(given) < 4 or not isinstance(given[0], _Storage) or not _is_shape(given[2]):
                raise BrokenError
            return Outline(tuple(given[2]))
        if self.name == "_rebuild_parameter" and given and isinstance(given[0], Outline):
            return given[0]
        if self.name == "_rebuild_meta_tensor_no_storage" and len(given) > 1 and _is_shape(given[1]):
            return Outline(tuple(given[1]), is_plain=False)
        if self.name == "_rebuild_sparse_tensor" and len(given) > 1 and isinstance(given[1], tuple):
            shape = next((part for part in given[1] if _is_shape(part)), ())
            return Outline(tuple(shape), is_plain=False)
        if self.name == "_get_layout" and given:
            return str(given[0])
        if self.name == "Size" and given and _is_shape(given[0]):
            return tuple(given[0])
        raise NotUnderstoodError


class _Storage:
    """The numbers of a tensor, which are not read."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        room = module.split(".")[0]
        if room == "torch" and not module.startswith("torch.nn.modules"):
            return _Named(module, name)
        if room in _MAYBE_ALLOWED:
            raise NotUnderstoodError
        raise ForeignError

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], _Named):
            raise BrokenError
        return _Storage()


def outline(path: Path) -> Any:
    """The content of a checkpoint file, with an `Outline` in the place of each tensor.

    Raises:
        NotUnderstoodError: PyTorch must read it.
        BrokenError: it is damaged.
        ForeignError: it holds objects that PyTorch loads only by running code.
    """
    with open(path, "rb") as file:
        begin = file.read(9)
        if begin[8:] == b"{":
            return _of_safetensors(path)
        if begin.startswith(b"PK"):
            return _of_archive(path)
        file.seek(0)
        return _of_pickles(file)


def _of_archive(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
            if len(entries) != 1 or entries[0].file_size > _MOST:
                raise NotUnderstoodError
            data = archive.read(entries[0])
    except NotUnderstoodError:
        raise
    except Exception:  # zipfile has no common base class for its errors
        raise NotUnderstoodError from None
    return _unpickled(io.BytesIO(data))


def _of_pickles(file: Any) -> Any:
    """A file of torch.save before version 1.6: magic number, protocol, facts of the machine, content, keys, numbers."""
    head = io.BytesIO(file.read(_MOST))
    magic, protocol = _unpickled(head), _unpickled(head)
    if magic != _MAGIC:
        raise NotUnderstoodError
    if protocol != _PROTOCOL:
        raise BrokenError
    _unpickled(head)
    content = _unpickled(head)
    keys = _unpickled(head)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise BrokenError
    return content


def _unpickled(data: io.BytesIO) -> Any:
    try:
        return _Unpickler(data).load()
    except (NotUnderstoodError, BrokenError, ForeignError):
        raise
    except Exception:  # of a damaged pickle nearly everything is raised
        raise BrokenError from None


def _of_safetensors(path: Path) -> Mapping[str, Outline]:
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MOST:
                raise BrokenError
            header = json.loads(file.read(length))
        return {key: Outline(tuple(value["shape"])) for key, value in header.items() if key != "__metadata__"}
    except Exception:  # of a damaged header nearly everything is raised; the library says what
        raise NotUnderstoodError from None


def _is_shape(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(type(side) is int and side >= 0 for side in value)
