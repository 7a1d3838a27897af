"""Refusals of a checkpoint file that need no PyTorch, whose import takes longer than all of them together."""

import zipfile
from pathlib import Path

from sodeploy import artifacts
from sodeploy.errors import UserError
from sodeploy.file_kinds import kind_of
from sodeploy.training.fitting import fit
from sodeploy.training.outline import BrokenError, ForeignError, NotUnderstoodError, outline
from sodeploy.training.signatures import shapes_of

_SAVE_WEIGHTS = (
    "if you trust it, load it where it was made, c = torch.load(PATH, weights_only=False), and save its weights alone: "
    "torch.save(c.state_dict(), NEW) of a network, torch.save(c['state_dict'], NEW) of a dict"
)

_PICKLE_PROTOCOL = 2  # of torch.save, unless it is told another
_PROTOCOL_MARK = 0x80  # a pickle's first byte; the second is its protocol
_DEFLATED = 1032  # bytes that one byte can stand for, at the greatest compression that deflate has
_MOST_UNPACKED = 4 << 30  # bytes of an archive that was compressed, as torch.save does not


def refuse_misfit(path: str | Path, network: str) -> None:
    """Refuse a checkpoint that a registered network cannot take, as far as names and shapes show it.

    `sodeploy.training.checkpoint.load_checkpoint` checks a file that passes once more, with its values.

    Raises:
        UserError: as `load_checkpoint`, but for values that are not finite.
    """
    path = require_checkpoint(path)
    own = shapes_of(network)
    if own is None:
        return
    try:
        content = outline(path)
    except NotUnderstoodError:
        return
    except BrokenError:
        raise broken(path) from None
    except ForeignError:
        raise foreign_objects(path) from None
    for key, tensor in fit(content, own, network, path).weights.items():
        if not tensor.is_plain:
            raise not_plain(path, key)


def require_checkpoint(path: str | Path) -> Path:
    """`path`, if it may be a checkpoint.

    Raises:
        UserError: it is missing, cannot be read, is of another kind, TorchScript, or grows beyond measure.
    """
    path = artifacts.require_file(path, "give a .pth or .safetensors file")
    try:
        with open(path, "rb") as file:
            begin = file.read(512)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); correct its permissions or fetch it again"
        ) from None
    kind = kind_of(begin)
    if kind is not None and kind.family not in ("torch", "safetensors"):
        raise UserError(f"{path} is no PyTorch checkpoint: it is {kind.name}; {kind.remedy or 'give a .pth file'}")
    if path.suffix == ".onnx":
        raise UserError(f"{path} is no PyTorch checkpoint, but an ONNX file by its name: sodeploy adopt {path}")
    if begin.startswith(b"PK"):
        _require_archive(path)
    return path


def is_safetensors(path: Path) -> bool:
    """Whether a file is one of safetensors, by its name or its first bytes."""
    with open(path, "rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def broken(path: Path) -> UserError:
    """The error of a damaged file."""
    return UserError(f"{path} is broken or no PyTorch checkpoint; fetch or train it again")


def unreadable_pickle(path: Path) -> UserError:
    """The error of a file whose pickle PyTorch does not take: of a newer protocol than torch.save's own, or damaged."""
    if protocol_of(path) <= _PICKLE_PROTOCOL:
        return broken(path)
    return UserError(
        f"{path} is a pickle of a form that PyTorch loads only by running its code; if you trust it, save it again: "
        "torch.save(torch.load(PATH, weights_only=False), NEW), or with pickle.load in place of torch.load"
    )


def protocol_of(path: Path) -> int:
    """The protocol of the pickle in a checkpoint file; 0 where there is none to be found."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                with archive.open(name) as file:
                    begin = file.read(2)
        else:
            with open(path, "rb") as plain:
                begin = plain.read(2)
    except Exception:  # zipfile has no common base class for its errors
        return 0
    return begin[1] if len(begin) == 2 and begin[0] == _PROTOCOL_MARK and begin[1] < 16 else 0


def foreign_objects(path: Path) -> UserError:
    """The error of a file with objects that PyTorch loads only by running code."""
    return UserError(f"{path} holds Python objects, which loading would execute, beside its tensors; {_SAVE_WEIGHTS}")


def not_plain(path: str | Path, name: str) -> UserError:
    """The error of a tensor that holds no ordinary numbers."""
    what = "is no plain tensor (sparse, quantized or without data)"
    return UserError(f"{path}: {artifacts.one_line(name)} {what}; save it dense")


def _require_archive(path: Path) -> None:
    """Refuse a TorchScript file, and an archive that would grow beyond measure when it is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # zipfile has no common base class for its errors
        raise broken(path) from None
    names = [entry.filename for entry in entries]
    if any(name.endswith("archive_format") for name in names):
        raise UserError(
            f"{path} is a program of torch.export with its weights; save the weights alone: "
            "torch.save(dict(torch.export.load(PATH).state_dict), NEW)"
        )
    if names and all(name.endswith(".npy") for name in names):
        raise UserError(
            f"{path} holds NumPy arrays; save them as tensors: "
            "torch.save({key: torch.from_numpy(value) for key, value in numpy.load(PATH).items()}, NEW)"
        )
    if names and not any(name.endswith("data.pkl") for name in names):
        raise UserError(f"{path} is a zip archive, not a file of torch.save; unpack it and give the file inside")
    if any("/code/" in entry.filename for entry in entries):
        raise UserError(
            f"{path} is a TorchScript file, a program with its weights; save the weights alone: "
            "torch.save(torch.jit.load(PATH, map_location='cpu').state_dict(), NEW)"
        )
    packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if any(entry.file_size > _DEFLATED * entry.compress_size + 64 for entry in packed):
        raise broken(path)
    if sum(entry.file_size for entry in packed) > _MOST_UNPACKED:
        raise UserError(f"{path} unpacks to more than {_MOST_UNPACKED >> 30} GiB; save it anew with torch.save")
