"""Ranges of activations: which tensors share one, and where it ends.

An int8 scale has 127 steps on each side of zero. Values that hardly go below zero, for example after a PReLU, a SiLU or
a sigmoid, would leave one side nearly empty. Where an engine computes such values in float anyway, the middle of their
range is subtracted before they are quantized (`Range.shift`), so that a step is up to half as large. The bias of the
layer that reads them makes up for the subtraction. Zero points stay 0, as NVIDIA's parsers require.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping

import numpy as np
import onnx

from sodeploy.quant.calibration.histogram import MagnitudeHistogram
from sodeploy.quant.calibration.methods import LEVELS, Method, chosen, expected_decibels
from sodeploy.quant.calibration.statistics import Statistics
from sodeploy.quant.disjoint_sets import DisjointSets
from sodeploy.quant.graph import PASSING, WEIGHTED, Network, is_residual, pads_itself
from sodeploy.quant.int8 import LARGEST_FP16, UINT8_STEPS, fp16_scale
from sodeploy.quant.planning.plan import Layer, Range, short

_LOPSIDED = 0.92  # half of a range's width / its largest magnitude; above, a shift gains too little for its node

# An engine quantizes the results of these operators in the kernel that computes them.
_FUSED = (*WEIGHTED, "Relu")


def sharing_a_range(
    network: Network, layers: Mapping[str, Layer], also_read_by: Collection[str] = ()
) -> list[list[str]]:
    """The tensors that int8 layers read and write, in groups that must share a scale.

    Args:
        also_read_by: names of other nodes whose first input is wanted too.
    """
    groups = groups_of(network, {name for name, layer in layers.items() if layer.precision == "fp32"})
    members = defaultdict(list)
    for tensor, group in groups.items():
        members[group].append(tensor)
    stored = _seeds(network, layers, also_read_by)
    return [members[group] for group in dict.fromkeys(groups[tensor] for tensor in stored)]


def held_in_int8(
    network: Network, layers: Mapping[str, Layer], also_read_by: Collection[str] = (), outputs: bool = True
) -> set[str]:
    """The tensors that a graph holds in int8, as the graphs for CPUs do between their integer layers.

    They are the tensors that int8 layers read and write, those that a MaxPool, Resize or Concat passes on to an int8
    layer, and those that it makes of int8 values alone. A tensor that shares a range with them, but that only float
    layers read, is not among them: it would be rounded for nothing.

    Args:
        also_read_by: names of other nodes whose first input is wanted too.
        outputs: the results of int8 layers too, whoever reads them.
    """
    in_fp32 = {name for name, layer in layers.items() if layer.precision == "fp32"}
    held = set(_seeds(network, layers, also_read_by, outputs))
    nodes = [node for node in network.nodes if node.name not in in_fp32]
    passing = [(node, passed) for node in nodes if (passed := _passed(network, node))]
    for node, passed in reversed(passing):
        if not held.isdisjoint(node.output):
            held |= passed
    for node, passed in passing:
        if passed <= held:
            held |= network.float_tensors.intersection(node.output)
    return held


def _seeds(
    network: Network, layers: Mapping[str, Layer], also_read_by: Collection[str], outputs: bool = True
) -> list[str]:
    """The tensors that int8 layers read and write, then the first inputs of `also_read_by`."""
    int8 = [node for node in network.nodes if node.name in layers and layers[node.name].precision == "int8"]
    stored = [tensor for node in int8 for tensor in network.stored(node)[: None if outputs else -1]]
    return stored + [node.input[0] for node in network.nodes if node.name in also_read_by]


def _passed(network: Network, node: onnx.NodeProto) -> set[str]:
    """The float tensors whose values a node passes on."""
    inputs = node.input if node.op_type == "Concat" else node.input[:1] if node.op_type in PASSING else ()
    return network.float_tensors.intersection(inputs)


def groups_of(network: Network, in_fp32: Collection[str] = ()) -> dict[str, str]:
    """Float tensor -> representative of the tensors that must share its scale.

    Args:
        in_fp32: names of nodes that compute in fp32; no int8 values pass through them.
    """
    sets = DisjointSets[str]()
    for node in network.nodes:
        if node.name in in_fp32:
            continue
        for name in _passed(network, node):
            for output in network.float_tensors.intersection(node.output):
                sets.join(output, name)
    order = [network.input, *(output for node in network.nodes for output in node.output)]
    return {name: sets.find(name) for name in order if name in network.float_tensors}


def shared_range(network: Network, tensors: list[str], statistics: Statistics, method: Method) -> Range:
    """The range of tensors that share a scale, read from the values of all of them."""
    histogram = summed(statistics.histograms, tensors)
    clip, used = chosen(histogram, method)
    amax, shift, levels_of_clip = clip, None, LEVELS
    if _can_be_shifted(network, tensors) and (levels := magnitudes(histogram)) > LEVELS:
        further, used_further = chosen(histogram, method, levels)
        low, high = max(histogram.low, -further), min(histogram.high, further)
        if _is_lopsided(low, high) and max(high, -low) <= LARGEST_FP16:  # also without the values that are clipped
            clip, used, levels_of_clip = further, used_further, levels
            amax, shift = _centered(low, high)
    return Range(
        tensors=tensors,
        amax=short(amax),
        shift=None if shift is None else short(shift),
        maximum=short(histogram.maximum),
        signed=histogram.signed,
        clipped=short(histogram.share_above(clip)),
        method=None if used == method else used,
        decibels=_decibels(histogram, clip, levels_of_clip),
        uint8=_uint8_range(histogram, method),
    )


def _uint8_range(histogram: MagnitudeHistogram, method: Method) -> tuple[float, float]:
    """The interval of 255 steps, with zero in it, for the graphs for CPUs.

    A magnitude gets up to twice the steps that int8 gives it, so that less must be clipped. kl counts how many values
    are clipped, not how far they lie outside: with finer steps it clips the largest values, which saliency maps are
    made of, and mse takes its place (benchmarks/cpu_variants.py).
    """
    if histogram.maximum == 0:
        return 0.0, 0.0
    levels = int(UINT8_STEPS * histogram.maximum / (histogram.high - histogram.low)) + 1
    clip, _ = chosen(histogram, "mse" if method == "kl" else method, levels)
    return short(max(histogram.low, -clip)), short(min(histogram.high, clip))


def _decibels(histogram: MagnitudeHistogram, clip: float, levels: int) -> float | None:
    """Signal to noise of the tensors in int8, to a tenth; None where nothing is lost."""
    known = expected_decibels(histogram, clip, levels) if clip > 0 else np.inf
    return round(known, 1) if np.isfinite(known) else None


def summed(histograms: dict[str, MagnitudeHistogram], tensors: list[str]) -> MagnitudeHistogram:
    """The histogram of the values of several tensors; a tensor without counts adds nothing."""
    total = MagnitudeHistogram()
    for tensor in tensors:
        if tensor in histograms:
            total += histograms[tensor]
    return total


def magnitudes(histogram: MagnitudeHistogram) -> int:
    """How many magnitudes int8 has for the larger side of these values, once their middle is shifted to zero.

    `LEVELS`, the number without a shift, where a shift would gain little.
    """
    if not _is_lopsided(histogram.low, histogram.high):
        return LEVELS
    return int((2 * LEVELS - 1) * histogram.maximum / (histogram.high - histogram.low))


def _is_lopsided(low: float, high: float) -> bool:
    return 0 < (high - low) / 2 <= _LOPSIDED * max(high, -low)


def _centered(low: float, high: float) -> tuple[float, float]:
    """(amax, shift) of the range [low, high]. Zero, the value that convolutions pad with, falls on a step."""
    amax = (high - low) / 2
    scale = fp16_scale(amax / (LEVELS - 1))
    return amax, float(np.float16(np.rint((low + high) / 2 / scale) * scale))


def _can_be_shifted(network: Network, tensors: list[str]) -> bool:
    """Whether an engine can subtract before it quantizes at little cost, and every reader can make up for it.

    A convolution quantizes its result after its own ReLU, in the same kernel, and a sum with its result too; after any
    other function values are float anyway. A reader that has no bias, such as a sum, cannot make up for a shift.
    """
    read = [(tensor, node) for tensor in tensors for node in network.consumers[tensor]]
    if any(is_residual(network, node) or (node.op_type == "Conv" and pads_itself(node)) for _, node in read):
        return False
    if not any(network.is_weighted(node) and node.input[0] == tensor for tensor, node in read):
        return True  # only the graph for CPUs quantizes these, and it has zero points
    age = {name: index for index, name in enumerate(network.producer)}
    makers = [network.producer[tensor] for tensor in tensors if tensor in network.producer]
    # A sum is made in the kernel of the layer that gives its later term.
    later = [max(maker.input, key=lambda name: age.get(name, -1)) for maker in makers if maker.op_type == "Add"]
    makers += [network.producer[name] for name in later if name in network.producer]
    return not any(maker.op_type in _FUSED for maker in makers)
