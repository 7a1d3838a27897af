"""Checkpoint files: reading weights from whatever form they have, and writing our own."""

import pickle
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sodeploy import artifacts
from sodeploy.errors import UserError
from sodeploy.training.models import NETWORKS
from sodeploy.training.models.network import SaliencyNetwork

_WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net", "params", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")  # DataParallel, torch.compile, wrapping classes

Weights = dict[str, torch.Tensor]


def load_checkpoint(path: str | Path, network: SaliencyNetwork) -> None:
    """Give `network` the weights in a checkpoint file; nothing is loaded unless everything fits.

    Read as `read_weights` does. A missing `num_batches_tracked` (written before PyTorch 0.4.1) stays as it is.

    Raises:
        UserError: the file cannot be read, or is of another network, which is named if it is one of ours.
    """
    own = network.state_dict()
    weights = without_prefix(read_weights(path), own)
    lacking = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    foreign = [key for key in weights if key not in own]
    reshaped = [key for key in own if key in weights and own[key].shape != weights[key].shape]
    if lacking or foreign or reshaped:
        faults = [
            f"{fault} {_few(keys)}"
            for fault, keys in (
                ("it lacks", lacking),
                ("it has", foreign),
                ("of another shape is", [_shapes(key, weights[key], own[key]) for key in reshaped]),
            )
            if keys
        ]
        others = " or ".join(networks_fitting(weights))
        remedy = f"it is a checkpoint of {others}: use that network" if others else "it fits none of our networks"
        raise UserError(f"{path} does not fit {_name_of(network)}: {'; '.join(faults)}; {remedy}")
    network.load_state_dict(own | weights)


def read_weights(path: str | Path) -> Weights:
    """The tensors of a checkpoint file by name, on the CPU: a plain state dict, or one inside a training checkpoint.

    Only tensors and plain containers are unpickled, so no code in the file is ever run.

    Raises:
        UserError: the file is missing, broken, holds objects that unpickling would execute, or no weights.
    """
    return weights_in(read_checkpoint(path), path)


def read_checkpoint(path: str | Path) -> Any:
    """Whatever a file of `torch.save` holds, on the CPU, tensors and plain containers only.

    Raises:
        UserError: the file is missing, broken, or holds objects that unpickling would execute.
    """
    path = artifacts.require_file(path, "give a .pth file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not re.search("unsupported (global|class)", str(error), re.IGNORECASE):
            raise UserError(f"{path} is broken or no PyTorch checkpoint; fetch or train it again") from None
        raise UserError(
            f"{path} holds Python objects, which loading would execute, beside its tensors; "
            "where it was made, save the weights alone: torch.save(network.state_dict(), PATH)"
        ) from None
    except (RuntimeError, EOFError, ValueError, LookupError, struct.error):  # all seen on random bytes
        raise UserError(f"{path} is broken or no PyTorch checkpoint; fetch or train it again") from None


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
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None


def weights_in(checkpoint: Any, path: str | Path) -> Weights:
    """The state dict in what a checkpoint file held.

    Raises:
        UserError: there is none.
    """
    if _is_state_dict(checkpoint):
        return dict(checkpoint)
    if isinstance(checkpoint, Mapping):
        for key in _WRAPPERS:
            if _is_state_dict(checkpoint.get(key)):
                return dict(checkpoint[key])
        raise UserError(f"{path} holds {_few(list(map(str, checkpoint)))}, none of which is a state dict; save one")
    raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a state dict; save network.state_dict()")


def without_prefix(weights: Weights, own: Mapping[str, torch.Tensor]) -> Weights:
    """`weights` without the prefixes that wrappers put before every name, unless `own` has them too."""
    for prefix in _PREFIXES * 2:  # wrappers nest
        if all(key.startswith(prefix) for key in weights) and not any(key.startswith(prefix) for key in own):
            weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items()}
    return weights


def networks_fitting(weights: Weights) -> list[str]:
    """The registered networks whose names and shapes are those of `weights`."""
    fitting = []
    for name, entry in NETWORKS.items():
        with torch.device("meta"):  # no memory, no initialisation
            own = entry.make().state_dict()
        shapes = {key: tensor.shape for key, tensor in without_prefix(weights, own).items()}
        unmatched = {key: tensor.shape for key, tensor in own.items() if shapes.pop(key, None) != tensor.shape}
        if not shapes and all(key.endswith("num_batches_tracked") for key in unmatched):
            fitting.append(name)
    return fitting


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(torch.is_tensor(item) for item in value.values())


def _name_of(network: SaliencyNetwork) -> str:
    return next(iter(networks_fitting(network.state_dict())), type(network).__name__)


def _few(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _shapes(key: str, theirs: torch.Tensor, own: torch.Tensor) -> str:
    return f"{key} ({tuple(theirs.shape)}, not {tuple(own.shape)})"
