"""Checkpoint files: reading weights from whatever form they have, and writing our own."""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sodeploy import artifacts, terminal
from sodeploy.errors import UserError
from sodeploy.runtime.contract import parse_contract
from sodeploy.training.models.network import SaliencyNetwork
from sodeploy.training.signatures import networks_fitting

# Where training code keeps the weights in a checkpoint, in the order of preference.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net", "params", "weights")
_AVERAGED = (
    "ema",
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "ema_model",
    "params_ema",
    "shadow",
    "averaged_model",
)
_DEPTH = 4  # of dicts in dicts that are looked into

# Parts beside a network that change nothing about it: losses, metrics, and the classifier of a backbone.
_HARMLESS = re.compile(
    r"(.*\.)?(total_ops|total_params)|(loss|losses|criterion|metric|metrics|lpips|perceptual|discriminator)(_\w+)?\..*"
    r"|(backbone|encoder|bkbone|resnet|base)\.(fc|head|classifier)\..*|n_averaged"
)
_SECOND = re.compile(r"teacher|ema|averag")  # networks that stand beside the one that is trained
_SAVE_WEIGHTS = (
    "if you trust it, load it where it was made, c = torch.load(PATH, weights_only=False), and save its weights alone: "
    "torch.save(c.state_dict(), NEW) of a network, torch.save(c['state_dict'], NEW) of a dict"
)

_DEFLATED = 1032  # bytes that one byte can stand for, at the greatest compression that deflate has
_MOST_UNPACKED = 4 << 30  # bytes of an archive that was compressed, as torch.save does not

Weights = dict[str, torch.Tensor]


def load_checkpoint(path: str | Path, network: SaliencyNetwork) -> None:
    """Give `network` the weights in a checkpoint file; nothing is loaded unless everything fits.

    The file may be a state dict, hold one under any key (weights proper are preferred to their moving average), or be a
    safetensors file. Prefixes of wrapping classes are removed. Parts beside the network that cannot change it, such as
    a profiler's counters or a loss's weights, are left out, and a note says so. A missing `num_batches_tracked` (files
    from before PyTorch 0.4.1) stays as it is.

    Raises:
        UserError: the file cannot be read, holds NaN, or is of another network, which is named if it is one of ours.
    """
    own = network.state_dict()
    found = list(state_dicts(read_checkpoint(path), path))
    fitted = [(label, *_fitted(weights, own)) for label, weights in found]
    label, weights, leftovers, faults = min(fitted, key=lambda one: sum(map(len, one[3].values())))
    if faults:
        own_name = next(iter(networks_fitting(own)), type(network).__name__)
        others = " or ".join(dict.fromkeys(name for _, each in found for name in networks_fitting(each)))
        remedy = f"it is a checkpoint of {others}: use that network" if others else "it fits none of our networks"
        raise UserError(f"{path} does not fit {own_name}: {_described(faults)}; {remedy}")
    _require_values(weights, path)
    if leftovers:
        terminal.note(f"{path}: left out {len(leftovers)} tensors that are not of the network: {_few(leftovers)}")
    if label and len(found) > 1:
        rest = [other for other, _ in found if other != label]
        terminal.note(f"{path}: took the weights under {label}; it also holds {_few(rest)}")
    network.load_state_dict(own | weights)


def read_weights(path: str | Path) -> Weights:
    """The tensors of a checkpoint file by name, on the CPU: a plain state dict, or one inside a training checkpoint.

    Only tensors and plain containers are unpickled, so no code in the file is ever run.

    Raises:
        UserError: the file is missing, broken, holds objects that unpickling would execute, or no weights.
    """
    return next(state_dicts(read_checkpoint(path), path))[1]


def read_checkpoint(path: str | Path) -> Any:
    """The content of a file of `torch.save` or of safetensors, on the CPU: tensors and plain containers only.

    Raises:
        UserError: the file is missing, broken, TorchScript, or holds objects that unpickling would execute.
    """
    path = artifacts.require_file(path, "give a .pth or .safetensors file")
    try:
        with open(path, "rb") as file:
            begin = file.read(9)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); correct its permissions or fetch it again"
        ) from None
    if path.suffix == ".safetensors" or begin[8:] == b"{":
        return _read_safetensors(path)
    _require_archive(path, begin)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that the next lines refuse
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not re.search("unsupported (global|class)|GLOBAL", str(error), re.IGNORECASE):
            raise _broken(path) from None
        raise UserError(
            f"{path} holds Python objects, which loading would execute, beside its tensors; {_SAVE_WEIGHTS}"
        ) from None
    except ImportError:  # of a module that torch needs
        raise
    except Exception:  # on mutated files torch raises nearly everything that there is
        raise _broken(path) from None


def _require_archive(path: Path, begin: bytes) -> None:
    """Refuse a TorchScript file, and an archive that would grow beyond measure when it is read."""
    if not begin.startswith(b"PK"):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # zipfile has no common base class for its errors
        raise _broken(path) from None
    if any("/code/" in entry.filename for entry in entries):
        raise UserError(
            f"{path} is a TorchScript file, a program with its weights; save the weights alone: "
            "torch.save(torch.jit.load(PATH, map_location='cpu').state_dict(), NEW)"
        )
    packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if any(entry.file_size > _DEFLATED * entry.compress_size + 64 for entry in packed):
        raise _broken(path)
    if sum(entry.file_size for entry in packed) > _MOST_UNPACKED:
        raise UserError(f"{path} unpacks to more than {_MOST_UNPACKED >> 30} GiB; save it anew with torch.save")


def _read_safetensors(path: Path) -> Weights:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{path} is a safetensors file; to read it: pip install safetensors") from None
    try:
        return dict(load_file(path))
    except Exception as error:  # its errors come from Rust and have no base class of ours
        raise UserError(
            f"{path} is broken or no safetensors file ({artifacts.one_line(error)}); fetch or save it again"
        ) from None


def _broken(path: Path) -> UserError:
    return UserError(f"{path} is broken or no PyTorch checkpoint; fetch or train it again")


def trained_size(checkpoint: Path, model: str) -> tuple[int, int] | None:
    """(height, width) in the manifest that training left beside a checkpoint; None without a manifest of this file."""
    manifest = artifacts.read_manifest(checkpoint)
    if (
        manifest.get("network") != model
        or "contract" not in manifest
        or manifest.get("sha256") != artifacts.sha256(checkpoint)
    ):
        return None
    contract = parse_contract(json.dumps(manifest["contract"]), artifacts.manifest_path(checkpoint))
    terminal.note(f"{checkpoint} was trained at {contract.height}x{contract.width}, which is taken as its size")
    return contract.height, contract.width


def write_checkpoint(content: Any, path: str | Path) -> None:
    """Write tensors in plain containers, atomically.

    Raises:
        OSError: for example no space is left; names `path`.
    """
    with artifacts.atomic_write(path) as temporary:
        try:
            # Through a file of Python's: given a path, torch reports a full disk as a RuntimeError about positions.
            with open(temporary, "wb") as file:
                torch.save(content, file)
        except (OSError, RuntimeError) as error:
            # torch ends its archive after a failed write too, and its complaint about that hides the first error.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            if cause is None:
                raise
            raise OSError(cause.errno, cause.strerror, str(path)) from None


def state_dicts(checkpoint: Any, path: str | Path) -> Iterator[tuple[str, Weights]]:
    """Each state dict in the content of a checkpoint file, at least one, with the keys that lead to it.

    Weights proper come first, then their moving averages, then all others. What is not a tensor, such as a number of
    epochs among the weights, is left out.

    Raises:
        UserError: there is none.
    """
    if not isinstance(checkpoint, Mapping):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a state dict; save network.state_dict()")
    found = sorted(_state_dicts(checkpoint, "", _DEPTH), key=lambda one: _preference(one[0]))
    if not found:
        keys = _few([str(key) for key in checkpoint])
        raise UserError(f"{path} holds {keys or 'nothing'}, none of which is a state dict; save network.state_dict()")
    yield from found


def _state_dicts(content: Mapping[Any, Any], label: str, depth: int) -> Iterator[tuple[str, Weights]]:
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and torch.is_tensor(value)}
    if tensors:
        yield label, tensors
    for key, value in content.items():
        if isinstance(value, Mapping) and depth and isinstance(key, str) and not key.startswith("optim"):
            yield from _state_dicts(value, f"{label}.{key}" if label else key, depth - 1)


def _preference(label: str) -> int:
    names = label.split(".")
    if not label or set(names) <= set(_WRAPPERS):
        return 0
    return 1 if set(names) & set(_AVERAGED) else 2


def _fitted(weights: Weights, own: Mapping[str, torch.Tensor]) -> tuple[Weights, list[str], dict[str, list[str]]]:
    """`weights` by the names of `own`; the names that are left out; and what does not fit, by kind of fault."""
    taken = without_prefix(weights, own)
    kept = {id(tensor) for key, tensor in taken.items() if key in own}
    leftovers = [key for key, tensor in weights.items() if id(tensor) not in kept]
    within = {key: tensor for key, tensor in taken.items() if key in own or not _HARMLESS.fullmatch(key)}
    lacking = [key for key in own if key not in within and not key.endswith("num_batches_tracked")]
    foreign = [key for key in within if key not in own]
    reshaped = [key for key in own if key in within and own[key].shape != within[key].shape]
    faults = {
        "it lacks": lacking,
        "it has": foreign,
        "of another shape is": [_shapes(key, within[key], own[key]) for key in reshaped],
    }
    return within, leftovers, {kind: keys for kind, keys in faults.items() if keys}


def without_prefix(weights: Weights, own: Mapping[str, torch.Tensor]) -> Weights:
    """`weights` without the prefix that wrappers put before every name, such as `module.` or `student.model.`.

    Where all names of `own` stand behind one prefix, the tensors without it are of other modules and are left out.
    Where not, a prefix that all names share and `own` lacks is removed.
    """
    wanted = [key for key in own if not key.endswith("num_batches_tracked")]
    if wanted and not set(wanted) <= weights.keys():
        ends = [key[: -len(wanted[0])] for key in weights if key.endswith(f".{wanted[0]}")]
        for prefix in sorted(ends, key=lambda prefix: bool(_SECOND.search(prefix))):
            if all(prefix + key in weights for key in wanted):
                return {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
    while weights:
        first, dot, _ = next(iter(weights)).partition(".")
        prefix = first + dot
        if not dot or not all(key.startswith(prefix) for key in weights) or any(key.startswith(prefix) for key in own):
            break
        weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items()}
    return weights


def _require_values(weights: Weights, path: str | Path) -> None:
    for key, tensor in weights.items():
        name = artifacts.one_line(key)
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise UserError(f"{path}: {name} is no plain tensor (sparse, quantized or without data); save it dense")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {name} has values that are NaN or infinite; take an earlier checkpoint")


def _described(faults: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{fault} {_few(keys)}" for fault, keys in faults.items())


def _few(names: Sequence[str], count: int = 3) -> str:
    shown = ", ".join(artifacts.one_line(name, 120) for name in names[:count])
    return shown + (f" and {len(names) - count} more" if len(names) > count else "")


def _shapes(key: str, theirs: torch.Tensor, own: torch.Tensor) -> str:
    return f"{key} ({tuple(theirs.shape)}, not {tuple(own.shape)})"
