"""The fit of a checkpoint to a network, by names and shapes alone: of tensors, or of outlines of them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sodeploy import artifacts
from sodeploy.errors import UserError, first_few
from sodeploy.training.outline import Outline
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
Weights = dict[str, Any]  # tensors of PyTorch, or outlines of them; both have a shape


class Fit(NamedTuple):
    """The weights of a checkpoint by the names of a network.

    Attributes:
        label: the keys that lead to them in the file; "" for the file's own.
        leftovers: names that are left out, because they change nothing about the network.
        others: the labels of the other state dicts in the file.
    """

    label: str
    weights: Weights
    leftovers: list[str]
    others: list[str]


def fit(checkpoint: Any, own: Mapping[str, Any], name: str, path: str | Path) -> Fit:
    """The state dict in a checkpoint's content that fits best.

    Args:
        own: the network's names, with their shapes.
        name: the network's name.

    Raises:
        UserError: there is no state dict, or none fits; the network that one fits is named if it is one of ours.
    """
    found = list(state_dicts(checkpoint, path))
    fitted = [(label, *_fitted(weights, own)) for label, weights in found]
    label, weights, leftovers, faults = min(fitted, key=lambda one: sum(map(len, one[3].values())))
    if faults:
        others = " or ".join(dict.fromkeys(other for _, each in found for other in networks_fitting(each)))
        remedy = f"it is a checkpoint of {others}: use that network" if others else "it fits none of our networks"
        raise UserError(f"{path} does not fit {name}: {_described(faults)}; {remedy}")
    return Fit(label, weights, leftovers, [other for other, _ in found if other != label])


def state_dicts(checkpoint: Any, path: str | Path) -> Iterator[tuple[str, Weights]]:
    """Each state dict in the content of a checkpoint file, at least one, with the keys that lead to it.

    Weights proper come first, then their moving averages, then all others. What is not a tensor, such as a number of
    epochs among the weights, is left out.

    Raises:
        UserError: there is none.
    """
    if not isinstance(checkpoint, Mapping):
        kind = "Tensor" if isinstance(checkpoint, Outline) else type(checkpoint).__name__
        raise UserError(f"{path} holds a {kind}, not a state dict; save network.state_dict()")
    found = sorted(_state_dicts(checkpoint, "", _DEPTH), key=lambda one: _preference(one[0]))
    if not found:
        keys = few([str(key) for key in checkpoint])
        raise UserError(f"{path} holds {keys or 'nothing'}, none of which is a state dict; save network.state_dict()")
    yield from found


def _state_dicts(content: Mapping[Any, Any], label: str, depth: int) -> Iterator[tuple[str, Weights]]:
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and _is_tensor(value)}
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


def _fitted(weights: Weights, own: Mapping[str, Any]) -> tuple[Weights, list[str], dict[str, list[str]]]:
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


def without_prefix(weights: Weights, own: Mapping[str, Any]) -> Weights:
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


def _is_tensor(value: object) -> bool:
    return isinstance(value, Outline) or (type(value).__module__.split(".")[0] == "torch" and hasattr(value, "shape"))


def _described(faults: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{fault} {few(keys)}" for fault, keys in faults.items())


def few(names: Sequence[str]) -> str:
    """The first names of a file, shortened to one line, and the number of the others."""
    return first_few([artifacts.one_line(name, 120) for name in names])


def _shapes(key: str, theirs: Any, own: Any) -> str:
    return f"{key} ({tuple(theirs.shape)}, not {tuple(own.shape)})"
