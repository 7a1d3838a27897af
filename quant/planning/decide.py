"""From statistics to a plan: which layers run in int8, with which ranges, scales and corrected biases."""

import numpy as np
import onnx

from sodeploy.errors import UserError
from sodeploy.quant.calibrate import Statistics
from sodeploy.quant.calibration.methods import DEFAULT, Method
from sodeploy.quant.emit.fp16 import LARGEST
from sodeploy.quant.graph import PASSING, Network, attribute, channel_axis, is_residual
from sodeploy.quant.planning.plan import Calibration, Layer, Plan, Range, short
from sodeploy.quant.planning.ranges import fp16_scale, groups_of, shared_range, sharing_a_range

HEAD_CHANNELS = 4  # with fewer, a layer at the end makes a map, not features
FP16_HEADROOM = LARGEST / 4  # images beyond the calibration set reach further


def make_plan(
    network: Network, statistics: Statistics, method: Method = DEFAULT, float_layers: dict[str, str] | None = None
) -> Plan:
    """Decide every layer and range of `network`.

    Args:
        statistics: of this network (`sodeploy.quant.calibrate`).
        float_layers: node -> reason, for layers to leave in fp16 on top of those that always are.

    Raises:
        UserError: the statistics are of another network, or `float_layers` names no node.
    """
    if statistics.network != network.digest:
        raise UserError(f"the statistics were gathered from another network than {network.path}; calibrate again")
    names = {node.name for node in network.nodes}
    for name in float_layers or {}:
        if name not in names:
            raise UserError(f"{network.path} has no node {name!r}; names are as Netron or quant/plan.py show them")

    layers = decide(network, statistics, float_layers or {}) | overflowing(network, statistics)
    return Plan(
        network=network.contract.network,
        onnx=network.path.name,
        onnx_sha256=network.digest,
        calibration=Calibration(method=method, images=dict(sorted(statistics.images.items()))),
        rounding=statistics.rounding,
        ranges=_ranges(network, layers, statistics, method),
        layers=layers,
    )


def all_ranges(network: Network, statistics: Statistics, method: Method) -> list[Range]:
    """The ranges of a plan that leaves no more layers in float than always are."""
    return _ranges(network, decide(network, None, {}), statistics, method)


def _ranges(network: Network, layers: dict[str, Layer], statistics: Statistics, method: Method) -> list[Range]:
    return [shared_range(network, tensors, statistics, method) for tensors in sharing_a_range(network, layers)]


def quantize_weight(weight: np.ndarray, scales: np.ndarray, axis: int) -> np.ndarray:
    """`weight` in steps of its channel's scale, int8 in [-127, 127], rounded half to even."""
    steps = weight / _along(scales, weight.ndim, axis)
    return np.clip(np.rint(steps), -127, 127).astype(np.int8)


def dequantize_weight(quantized: np.ndarray, scales: np.ndarray, axis: int) -> np.ndarray:
    """The float32 weight that an int8 layer really computes with."""
    return quantized.astype(np.float32) * _along(scales, quantized.ndim, axis)


def _along(scales: np.ndarray, ndim: int, axis: int) -> np.ndarray:
    shape = [1] * ndim
    shape[axis] = -1
    return np.asarray(scales, np.float32).reshape(shape)


def decide(network: Network, statistics: Statistics | None, float_layers: dict[str, str]) -> dict[str, Layer]:
    """An entry for every node with weights and every residual addition, in the graph's order.

    Args:
        statistics: for the correction of biases; without them there is none.
        float_layers: node -> reason, for layers to leave in fp16 on top of those that always are.
    """
    groups = groups_of(network)
    layers = {}
    heads = _heads(network)
    for node in network.nodes:
        if network.is_weighted(node):
            reason = float_layers.get(node.name, _reason_for_float(network, node, heads))
            layers[node.name] = int8_layer(network, node, statistics) if reason is None else _in_float(node, reason)
        elif is_residual(network, node):
            layers[node.name] = _in_float(node, float_layers.get(node.name, "its sum is not read in int8"))
    # An addition is int8 where its sum is read in int8. Elsewhere, in front of a PReLU say, its terms never need be.
    int8 = [node for node in network.nodes if node.name in layers and layers[node.name].precision == "int8"]
    read = {groups[node.input[0]] for node in int8}
    for node in reversed(network.model.graph.node):
        lowerable = node.op_type == "Add" and node.name in layers and node.name not in float_layers
        if lowerable and groups[network.scope(node)] in read:
            layers[node.name] = Layer(op="Add", precision="int8", reason="its sum is read in int8")
            read |= {groups[name] for name in node.input}
    return layers


def overflowing(network: Network, statistics: Statistics) -> dict[str, Layer]:
    """An fp32 entry for every node that makes or reads values which came near fp16's end in calibration."""
    reach = {name: histogram.maximum for name, histogram in statistics.histograms.items()}
    layers = {}
    for node in network.nodes:
        read = max((reach.get(name, 0.0) for name in node.input), default=0.0)
        if node.op_type in (*PASSING, "Concat"):
            reach[node.output[0]] = read
        largest = max(read, reach.get(network.scope(node), 0.0))
        if largest > FP16_HEADROOM:
            reason = f"values reach {largest:.3g} in calibration; fp16 ends at {LARGEST:.0f}"
            layers[node.name] = Layer(op=node.op_type, precision="fp32", reason=reason)
    return layers


def _in_float(node: onnx.NodeProto, reason: str) -> Layer:
    return Layer(op=node.op_type, precision="fp16", reason=reason)


def _heads(network: Network) -> set[str]:
    """Names of the layers that make maps, not features: few output channels, and no features are made of them again."""
    heads: set[str] = set()
    made_into_features: set[str] = set()  # tensors that a layer which is no head reads, directly or not
    for node in reversed(network.model.graph.node):
        if network.is_weighted(node):
            few = network.weight(node).shape[channel_axis(node)] < HEAD_CHANNELS
            if few and node.output[0] not in made_into_features:
                heads.add(node.name)
            else:
                made_into_features |= set(node.input)
        elif made_into_features & set(node.output):
            made_into_features |= set(node.input)
    return heads


def _reason_for_float(network: Network, node: onnx.NodeProto, heads: set[str]) -> str | None:
    """Why a layer with weights is always left in float, or None."""
    if node.op_type == "ConvTranspose":
        return "engines run a ConvTranspose with Q/DQ in half precision anyway, plus a kernel for its weight"
    if node.op_type == "MatMul":
        return "attention and token mixing: left in float on purpose"
    if node.input[0] not in network.float_tensors:
        return "its input does not depend on the image"
    if node.name in heads:
        return "head: every rounding step would show in the map"
    return None


def int8_layer(network: Network, node: onnx.NodeProto, statistics: Statistics | None) -> Layer:
    """The entry of a node with weights: their scales and, given statistics, the correction of its bias."""
    weight, axis, scales = network.weight(node), channel_axis(node), weight_scales(network, node)
    steps = quantize_weight(weight, scales, axis)
    layer = Layer(
        op=node.op_type, precision="int8", reason="features", weight_scales=[short(scale) for scale in scales]
    )
    if statistics is not None:
        if node.name in statistics.steps:
            steps = layer.steps = statistics.steps[node.name]
        error = dequantize_weight(steps, scales, axis) - weight
        means = statistics.channel_means(node.input[0])
        layer.input_means = [short(value) for value in means]
        correction = bias_correction(node, error, means)
        layer.bias_correction = [short(value) for value in correction]
        if node.input[0] in statistics.input_errors:
            kept = bias_correction(node, error + weight, statistics.input_errors[node.input[0]])
            layer.input_correction = [short(value) for value in kept]
    return layer


def channels_read(node: onnx.NodeProto, weight: np.ndarray) -> int:
    """How many channels the input of a Conv or Gemm with this weight has."""
    if node.op_type == "Gemm":
        return int(weight.shape[1 - channel_axis(node)])
    return int(weight.shape[1]) * attribute(node, "group", 1)


def weight_scales(network: Network, node: onnx.NodeProto) -> np.ndarray:
    """`(C_out,) float32`: what a step of each output channel's int8 weight is worth."""
    weight, axis = network.weight(node), channel_axis(node)
    return fp16_scale(np.abs(weight).max(axis=tuple(a for a in range(weight.ndim) if a != axis)) / 127)


def bias_correction(node: onnx.NodeProto, error: np.ndarray, means: np.ndarray) -> np.ndarray:
    """What to add to a layer's bias so that its mean output stays where it was: -sum((W_q - W) * E[x]).

    Inputs after a ReLU have large positive means, so the rounding errors of a kernel do not cancel but add up to one
    offset per output channel, layer after layer (M. Nagel et al., "Data-Free Quantization Through Weight Equalization
    and Bias Correction", ICCV 2019, section 4.2, with measured instead of modelled means).

    Args:
        error: W_q - W, as the node lays its weight out.
        means: `(C_in,)`, each input channel's mean in the float32 network. Where it is x that errs and not W, W and
            the error's means say the same: -sum(W * E[x_q - x]).

    Returns:
        `(C_out,) float64`.
    """
    if node.op_type == "Gemm":
        return -(means @ (error.T if channel_axis(node) == 0 else error)).astype(np.float64)
    per_channel = error.astype(np.float64).sum(axis=tuple(range(2, error.ndim)))  # (C_out, C_in / groups)
    groups = attribute(node, "group", 1)
    by_group = per_channel.reshape(groups, -1, per_channel.shape[1])  # (groups, C_out / groups, C_in / groups)
    return -np.einsum("goi,gi->go", by_group, means.reshape(groups, -1)).reshape(-1)
