"""Nodes that compute in fp32 because fp16 cannot hold what they read or make.

fp16 ends at 65504. Below 2**-14 its numbers get fewer bits the smaller they are, and below 2**-25 they are 0. Small
values matter as much as large ones where a normalization follows, or a layer with large weights. The rule is the same
at both ends, for constants and for what calibration images made of them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx

from sodeploy.quant.calibration.histogram import BINS, LOWER_EDGES, MagnitudeHistogram
from sodeploy.quant.calibration.statistics import Statistics
from sodeploy.quant.graph import PASSING, Network, channel_axis
from sodeploy.quant.int8 import LARGEST_FP16
from sodeploy.quant.planning.plan import Layer

SMALLEST_NORMAL = 2.0**-14
_HEADROOM = LARGEST_FP16 / 4  # images beyond the calibration set reach further
_LEAST_DB = 60.0  # signal to rounding noise of a tensor; 74 dB inside the normal range
_LEAST_DB_OF_CONSTANT = 45.0  # of one number the error is exact, not an average
_CANCELLED = 2.0**8  # fp16 has 11 bits; a sum that is smaller by more has hardly any of them right
_NORMALIZING = ("InstanceNormalization", "BatchNormalization", "GroupNormalization")
_NOT_ROUNDED = {"Resize": (1, 2)}


class _Problem(NamedTuple):
    """What fp16 cannot hold, and whether bf16 holds it: it has float32's range, but 8 bits."""

    reason: str
    bf16: bool


def beyond_fp16(network: Network, statistics: Statistics | None) -> dict[str, Layer]:
    """An fp32 entry, with its reason, for every node that fp16 would change.

    Args:
        statistics: what calibration counted; without them constants alone are looked at.
    """
    problems = _problems_of_tensors(network, statistics) if statistics is not None else {}
    layers = {}
    for node in network.nodes:
        reason = _problem_of_constants(network, node)
        if reason is not None and network.is_weighted(node):
            problems.setdefault(node.output[0], _Problem(f"the layer's {reason.removeprefix('its ')}", bf16=True))
        own = [] if reason is None else [_Problem(reason, bf16=True)]
        touched = (*node.input, *node.output, network.scope(node))
        found = [*own, *(problems[name] for name in touched if name in problems)]
        if found:
            in_bf16 = all(problem.bf16 for problem in found) or None
            layers[node.name] = Layer(op=node.op_type, precision="fp32", reason=found[0].reason, bf16=in_bf16)
    return layers


def fp16_decibels(histogram: MagnitudeHistogram) -> float:
    """Signal to noise of these values rounded to fp16; infinite for a tensor that is all zero."""
    occupied = np.nonzero(histogram.counts)[0]
    counts = histogram.counts[occupied].astype(np.float64)
    signal = float(np.sum(counts * _SQUARES[occupied]))
    noise = float(np.sum(counts * _NOISE[occupied]))
    return 10 * np.log10(signal / noise) if signal > 0 and noise > 0 else np.inf


def _tables() -> tuple[np.ndarray, np.ndarray]:
    """The mean square of a bin's values, and of their rounding error in fp16."""
    values = LOWER_EDGES.astype(np.float64) * (1 + 2.0**-10)
    values[0] = 0
    exponents = np.floor(np.log2(np.maximum(values, np.finfo(np.float64).tiny)))
    step = 2.0 ** (np.maximum(exponents, -14) - 10)
    squares = np.square(values)
    return squares, np.where(values < 2.0**-25, squares, step**2 / 12)


_SQUARES, _NOISE = _tables()
assert len(_SQUARES) == BINS


def _problems_of_tensors(network: Network, statistics: Statistics) -> dict[str, _Problem]:
    """Tensor -> what fp16 cannot hold of it, as calibration saw it."""
    problems: dict[str, _Problem] = {}
    for name, histogram in statistics.histograms.items():
        if histogram.maximum > _HEADROOM:
            reason = f"values reach {histogram.maximum:.3g} in calibration; fp16 ends at {LARGEST_FP16:.0f}"
            problems[name] = _Problem(reason, bf16=True)
        elif histogram.maximum and fp16_decibels(histogram) < _LEAST_DB:
            reason = (
                f"values end at {histogram.maximum:.3g} in calibration; fp16 loses bits below {SMALLEST_NORMAL:.3g}"
            )
            problems[name] = _Problem(reason, bf16=True)
    for node in network.nodes:
        result = statistics.histograms.get(node.output[0])
        if node.op_type in ("Add", "Sub") and result is not None and result.maximum:
            for name in node.input:
                read = statistics.histograms.get(name)
                if read is not None and read.maximum > _CANCELLED * result.maximum:
                    reason = f"values of {read.maximum:.3g} cancel to {result.maximum:.3g} in {node.name}"
                    problems[name] = _Problem(reason, bf16=False)
    for node in network.nodes:
        if node.op_type in (*PASSING, "Concat"):
            read_here = [problems[name] for name in node.input if name in problems]
            found = min(read_here, key=lambda problem: problem.bf16, default=None)
            if found is not None:
                problems |= dict.fromkeys((name for name in node.output if name in network.float_tensors), found)
        elif network.scope(node) in problems:
            problems.setdefault(node.output[0], problems[network.scope(node)])
    return problems


def _problem_of_constants(network: Network, node: onnx.NodeProto) -> str | None:
    for index, name in enumerate(node.input):
        values = network.constants.get(name)
        if values is None or values.dtype != np.float32 or index in _NOT_ROUNDED.get(node.op_type, ()):
            continue
        finite = values[np.isfinite(values)].astype(np.float64)
        if not finite.size:
            continue
        own = {0: "its constant", 1: "its weight", 2: "its bias"}.get(index) if network.is_weighted(node) else None
        own = own or f"its constant {name}"
        largest = float(np.abs(finite).max())
        if largest > LARGEST_FP16:
            return f"{own} reaches {largest:.3g}; fp16 ends at {LARGEST_FP16:.0f}"
        is_weight = network.is_weighted(node) and index == 1
        worst = min(map(_decibels, _parts(network, node, values))) if is_weight else _decibels(finite)
        if worst < (_LEAST_DB if is_weight else _LEAST_DB_OF_CONSTANT):
            return f"{own} ends at {largest:.3g}; fp16 loses bits below {SMALLEST_NORMAL:.3g}"
    return None


def _parts(network: Network, node: onnx.NodeProto, weight: np.ndarray) -> Iterator[np.ndarray]:
    """The weight; its channels one by one where each is brought to one magnitude afterwards."""
    tensor = network.scope(node)
    readers = network.consumers[tensor]
    readers = [
        *readers,
        *(later for one in readers if one.op_type in PASSING for later in network.consumers[one.output[0]]),
    ]
    if any(reader.op_type in _NORMALIZING for reader in readers):
        yield from np.moveaxis(weight, channel_axis(node), 0)
    else:
        yield weight


def _decibels(values: np.ndarray) -> float:
    """Signal to noise of constants rounded to fp16."""
    exact = values.astype(np.float64)
    noise = float(np.sum(np.square(exact - values.astype(np.float16).astype(np.float64))))
    return 10 * np.log10(float(np.sum(np.square(exact))) / noise) if noise > 0 else np.inf
