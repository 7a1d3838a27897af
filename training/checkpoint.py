"""Checkpoint files: reading weights from whatever form they have, and writing our own."""

import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from sodeploy import artifacts, terminal
from sodeploy.errors import UserError
from sodeploy.runtime.contract import parse_contract
from sodeploy.training.checkpoint_file import (
    broken,
    foreign_objects,
    is_safetensors,
    not_plain,
    require_checkpoint,
    unreadable_pickle,
)
from sodeploy.training.fitting import Weights, few, fit, state_dicts
from sodeploy.training.models.network import SaliencyNetwork
from sodeploy.training.signatures import networks_fitting

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


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
    own_name = next(iter(networks_fitting(own)), type(network).__name__)
    found = fit(read_checkpoint(path), own, own_name, path)
    _require_values(found.weights, own, path)
    if found.leftovers:
        terminal.note(
            f"{path}: left out {len(found.leftovers)} tensors that are not of the network: {few(found.leftovers)}"
        )
    if found.label and found.others:
        terminal.note(f"{path}: took the weights under {found.label}; it also holds {few(found.others)}")
    network.load_state_dict(own | found.weights)


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
    path = require_checkpoint(path)
    if is_safetensors(path):
        return _read_safetensors(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that the next lines refuse
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not re.search("unsupported (global|class)|GLOBAL", str(error), re.IGNORECASE):
            raise unreadable_pickle(path) from None
        raise foreign_objects(path) from None
    except ImportError:  # of a module that torch needs
        raise
    except Exception:  # on mutated files torch raises nearly everything that there is
        raise broken(path) from None


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


def _require_values(weights: Weights, own: Weights, path: str | Path) -> None:
    for key, tensor in weights.items():
        name = artifacts.one_line(key)
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise not_plain(path, name)
        if own[key].is_floating_point() and tensor.dtype not in _FLOATS:
            raise UserError(
                f"{path}: {name} is {str(tensor.dtype).removeprefix('torch.')}, where the network has float32; give "
                "the weights from before they were quantized, in float32, float16 or bfloat16"
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {name} has values that are NaN or infinite; take an earlier checkpoint")
