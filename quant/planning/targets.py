"""Decisions for one graph alone, where an engine wants something else than the plan's layers say.

Emitters carry these decisions out and make none of their own. A new engine with decisions of its own costs one function
here and its entry in `_DECIDE`.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from math import prod
from typing import Literal, get_args

import onnx

from sodeploy.quant.graph import HEAD_CHANNELS, PASSING, Network, attribute, feature_heads, integers
from sodeploy.quant.int8 import STEPS
from sodeploy.quant.planning.plan import Layer, Plan, Range, TargetLayer, TargetName, TargetPlan
from sodeploy.quant.planning.ranges import held_in_int8

CpuKind = Literal["any", "vnni"]
CPU_KINDS: tuple[CpuKind, ...] = get_args(CpuKind)
_WEIGHT_STEPS: dict[CpuKind, int] = {"any": 64, "vnni": STEPS}
_NARROW = "few output channels: a plane per tap fills the blocks of 8 or 16 in which onnxruntime computes"
_TWO_PARTS = "head: its weight in 16 bits, as the sum of two int8 weights; float kernels take longer"
_MISCOMPUTED = "OpenVINO's int8 kernel for CPUs with AMX may compute a window of this size wrongly (2026.4)"
_PRELU = "a PReLU reads its result: onnxruntime has no integer kernel for it, and few of 8 bits would be used"


def decide_targets(
    network: Network, layers: Mapping[str, Layer], ranges: Iterable[Range]
) -> dict[TargetName, TargetPlan]:
    """The decisions for each graph, by the rules of its engine.

    Args:
        layers: the layers of a plan with int8.
        ranges: the ranges of that plan.
    """
    known = {tensor for shared in ranges for tensor in shared.tensors}
    return {name: decide(network, layers, known) for name, decide in _DECIDE.items()}


def for_cpu(plan: Plan, kind: CpuKind) -> Plan:
    """The plan with the graph for onnxruntime made for another kind of x86 CPU: `any`, or only those with VNNI.

    An x86 CPU without VNNI adds two products of uint8 and int8 in 16 bits, which saturate. 2 x 255 x 64 does not, so a
    graph for any CPU has 64 weight steps on each side of zero.
    """
    if "cpu" not in plan.targets:
        return plan
    cpu = plan.targets["cpu"].model_copy(update={"weight_steps": _WEIGHT_STEPS[kind]})
    return plan.model_copy(update={"targets": plan.targets | {"cpu": cpu}})


def kind_of_cpu(plan: Plan) -> CpuKind:
    """The CPUs that the plan's graph for onnxruntime is made for."""
    return "any" if plan.target("cpu").weight_steps <= _WEIGHT_STEPS["any"] else "vnni"


def _for_openvino(network: Network, layers: Mapping[str, Layer], known: Collection[str]) -> TargetPlan:
    """The graph for OpenVINO on a CPU.

    OpenVINO computes a PReLU, and the Q behind it, in the kernel of the convolution before it: what a PReLU reads is
    not quantized, and no layer is left in float for it. Its float kernels for a head are slow, as they compute 16
    output channels for the one that is there. In int8 a second output channel costs nothing, and two int8 weights hold
    16 bits of a head's weight together.

    Layers that its int8 kernels compute wrongly stay in float.
    """
    heads = feature_heads(network)
    parts = {
        node.name: TargetLayer(precision="int8", form="two int8 parts", reason=_TWO_PARTS)
        for node in network.nodes
        if node.name in heads and node.input[0] in known and layers[node.name].precision == "fp16"
    }
    in_float = {
        node.name: TargetLayer(precision="fp32", reason=_MISCOMPUTED)
        for node in network.nodes
        if node.name in layers and layers[node.name].precision == "int8" and _is_miscomputed(network, node)
    }
    return TargetPlan(weight_steps=STEPS, quantizes_outputs=False, layers=in_float | parts)


def _is_miscomputed(network: Network, node: onnx.NodeProto) -> bool:
    """Whether OpenVINO's int8 kernel for AMX may compute a convolution wrongly.

    Measured in OpenVINO 2026.4 on 50 shapes: the map of such a layer had less than 5 dB, in some strides and sizes.
    The kernel joins the channels and one side of the window, and reads them in blocks of 64 values. All wrong layers
    fill more than one block in this way and not by their channels alone, in windows of 4 or more, as in the spatial
    reduction of a PVT.
    """
    if node.op_type != "Conv":
        return False
    _, channels, *sides = network.weight_shape(node)
    side = max(sides)
    joined = channels * side
    return side >= 4 and channels % 64 != 0 and joined > 64 and joined % 64 == 0


def _for_cpu(network: Network, layers: Mapping[str, Layer], known: Collection[str]) -> TargetPlan:
    """The graph for onnxruntime on a CPU.

    A weight takes 64 steps on each side of zero (`for_cpu`) and a range all 255: once biases are corrected, rounding a
    weight costs less than rounding the values that it multiplies.
    """
    in_float = {
        name: TargetLayer(precision="fp32", reason=_PRELU)
        for name in _activated_by_prelu(network)
        if name in layers and layers[name].precision == "int8"
    }
    integer = {name: layer for name, layer in layers.items() if layer.precision == "int8" and name not in in_float}
    quantized = held_in_int8(network, integer)
    for node in network.nodes:
        if node.name not in integer and node.input and node.input[0] in quantized and _is_narrow(network, node):
            in_float[node.name] = TargetLayer(precision="fp32", form="shifted planes", reason=_NARROW)
    order = [node.name for node in network.nodes if node.name in in_float]
    return TargetPlan(weight_steps=_WEIGHT_STEPS["any"], layers={name: in_float[name] for name in order})


def _activated_by_prelu(network: Network) -> list[str]:
    """Names of the nodes whose result, or a sum of it with others, a PReLU reads."""
    activated: set[str] = set()  # tensors that a PReLU reads, directly or not
    for node in reversed(network.model.graph.node):
        if node.op_type == "PRelu":
            activated.add(node.input[0])
        elif node.op_type in (*PASSING, "Concat", "Add") and not activated.isdisjoint(node.output):
            activated |= set(node.input)
    return [node.name for node in network.nodes if not activated.isdisjoint(node.output)]


def _is_narrow(network: Network, node: onnx.NodeProto) -> bool:
    """Whether a node is a convolution with a window and very few output channels, such as a head."""
    if node.op_type != "Conv" or not network.is_weighted(node) or attribute(node, "group", 1) != 1:
        return False
    shape = network.weight_shape(node)
    few = len(shape) == 4 and shape[0] < HEAD_CHANNELS and prod(shape[2:]) > 1
    return few and set(integers(node, "strides", [1])) == {1}


_DECIDE: dict[TargetName, Callable[[Network, Mapping[str, Layer], Collection[str]], TargetPlan]] = {
    "cpu": _for_cpu,
    "openvino": _for_openvino,
}
