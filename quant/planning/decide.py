"""Makes a plan: which layers run in int8, with which ranges, scales and corrected biases."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx

from sodeploy.errors import UserError
from sodeploy.quant.calibration.methods import DEFAULT, Method
from sodeploy.quant.calibration.statistics import Statistics
from sodeploy.quant.graph import WEIGHTED, Network, channel_axis, feature_heads, heads_of, is_residual, load_network
from sodeploy.quant.int8 import bias_correction, dequantize_weight, quantize_weight, weight_scales
from sodeploy.quant.planning.evidence import Evidence
from sodeploy.quant.planning.fp16_range import beyond_fp16
from sodeploy.quant.planning.plan import Calibration, Layer, Plan, Range, short
from sodeploy.quant.planning.ranges import groups_of, shared_range, sharing_a_range
from sodeploy.quant.planning.shared_scale import lost_in_a_shared_scale
from sodeploy.quant.planning.targets import decide_targets
from sodeploy.stages import command

_COARSE_DB = 30.0  # of the input of an int8 layer; U2-Netp's layers have 31 or more, CSNet's 22


def make_plan(
    network: Network | str | Path,
    evidence: Evidence | Statistics,
    method: Method = DEFAULT,
    float_layers: Mapping[str, str] | None = None,
) -> Plan:
    """Decide every layer and range of `network`.

    Args:
        network: a float32 network, or its ONNX file.
        evidence: measured of this network; statistics alone leave every weight at its nearest step.
        float_layers: node -> reason, for more layers to leave in fp16 than the rules do.

    Raises:
        UserError: the statistics are of another network, or `float_layers` names a node that does not exist.
    """
    network = network if isinstance(network, Network) else load_network(network)
    evidence = evidence if isinstance(evidence, Evidence) else Evidence(evidence)
    statistics = evidence.statistics
    if statistics.network != network.digest:
        raise UserError(f"the statistics were gathered from another network than {network.path}; calibrate again")
    names = {node.name for node in network.nodes}
    for name in float_layers or {}:
        if name not in names:
            raise UserError(f"{network.path} has no node {name!r}; Netron and {command('plan')} show the names")

    in_fp32 = beyond_fp16(network, statistics)
    layers = decide(network, evidence, in_fp32, float_layers)
    ranges = _ranges(network, layers, evidence, method)
    if lost := lost_in_a_shared_scale(network, layers, ranges, statistics):
        layers = decide(network, evidence, in_fp32, {**lost, **(float_layers or {})})
        ranges = _ranges(network, layers, evidence, method)
    _state_coarse_inputs(network, layers, ranges)
    return Plan(
        network=network.contract.network,
        onnx=network.path.name,
        onnx_sha256=network.digest,
        calibration=Calibration(method=method, images=dict(sorted(statistics.images.items()))),
        rounding=evidence.rounding,
        ranges=ranges,
        layers=layers,
        targets=decide_targets(network, layers, ranges),
    )


def _state_coarse_inputs(network: Network, layers: Mapping[str, Layer], ranges: Iterable[Range]) -> None:
    """Add to the reason of an int8 layer how little int8 leaves of its input, where that is little."""
    decibels = {tensor: shared.decibels for shared in ranges for tensor in shared.tensors}
    for node in network.nodes:
        layer = layers.get(node.name)
        left = decibels.get(node.input[0]) if node.input else None
        if layer is not None and layer.precision == "int8" and left is not None and left < _COARSE_DB:
            layer.reason += f"; int8 leaves {left} dB of its input"


def all_ranges(network: Network, statistics: Statistics, method: Method) -> list[Range]:
    """The ranges of a plan that leaves only the layers in float that the rules leave."""
    return _ranges(network, decide(network, None, beyond_fp16(network, statistics)), Evidence(statistics), method)


def _ranges(network: Network, layers: dict[str, Layer], evidence: Evidence, method: Method) -> list[Range]:
    """Also of the tensors that heads read, which are int8 in the graph for OpenVINO."""
    known = {tuple(shared.tensors): shared for shared in evidence.ranges.get(method, ())}
    groups = sharing_a_range(network, layers, also_read_by=feature_heads(network))
    return [
        known.get(tuple(tensors)) or shared_range(network, tensors, evidence.statistics, method) for tensors in groups
    ]


def decide(
    network: Network,
    evidence: Evidence | None,
    fp32_layers: Mapping[str, Layer],
    float_layers: Mapping[str, str] | None = None,
) -> dict[str, Layer]:
    """An entry for every node with weights, residual addition and node in fp32, in the graph's order.

    Args:
        evidence: for corrected biases and rounded weights; without it there are none.
        fp32_layers: the entries of nodes that fp16 would change.
        float_layers: node -> reason, for more layers to leave in fp16 than the rules do.
    """
    float_layers = float_layers or {}
    groups = groups_of(network, fp32_layers)
    layers: dict[str, Layer] = {}
    heads = heads_of(network)
    for node in network.nodes:
        if node.name in fp32_layers:
            layers[node.name] = fp32_layers[node.name]
        elif network.is_weighted(node):
            reason = float_layers.get(node.name, _reason_for_float(network, node, heads))
            layers[node.name] = int8_layer(network, node, evidence) if reason is None else _in_float(node, reason)
        elif node.op_type in WEIGHTED:
            layers[node.name] = _in_float(node, f"left alone: {network.why_left_alone(node)}")
        elif is_residual(network, node):
            layers[node.name] = _in_float(node, float_layers.get(node.name, "its sum is not read in int8"))
    # An addition is int8 where its sum is read in int8. Elsewhere, for example before a PReLU, no engine gains by it.
    int8 = [node for node in network.nodes if node.name in layers and layers[node.name].precision == "int8"]
    read = {groups[node.input[0]] for node in int8}
    for node in reversed(network.model.graph.node):
        lowerable = node.op_type == "Add" and node.name in layers and node.name not in {*float_layers, *fp32_layers}
        if lowerable and is_residual(network, node) and groups[network.scope(node)] in read:
            layers[node.name] = Layer(op="Add", precision="int8", reason="its sum is read in int8")
            read |= {groups[name] for name in node.input}
    return layers


def _in_float(node: onnx.NodeProto, reason: str) -> Layer:
    return Layer(op=node.op_type, precision="fp16", reason=reason)


def _reason_for_float(network: Network, node: onnx.NodeProto, heads: set[str]) -> str | None:
    """The rule that leaves a layer with weights in float; None where no rule does."""
    if node.op_type == "ConvTranspose":
        return "engines run a ConvTranspose with Q/DQ in fp16 anyway, with an extra kernel for its weight"
    if node.op_type == "MatMul":
        return "attention and token mixing stay in float"
    if node.input[0] not in network.float_tensors:
        return "its input does not depend on the image"
    if node.name in heads:
        return "head: every rounding step would show in the map"
    return None


def int8_layer(network: Network, node: onnx.NodeProto, evidence: Evidence | None) -> Layer:
    """The entry of a node with weights: the scales of the weight and, given evidence, the correction of the bias."""
    weight, axis = network.weight(node), channel_axis(node)
    scales = weight_scales(weight, axis)
    steps = quantize_weight(weight, scales, axis)
    layer = Layer(
        op=node.op_type, precision="int8", reason="features", weight_scales=[short(scale) for scale in scales]
    )
    if evidence is not None:
        layer.take_rounded(node.name, evidence.steps)
        steps = evidence.steps.get(node.name, steps)
        error = dequantize_weight(steps, scales, axis) - weight
        means = evidence.statistics.channel_means(node.input[0])
        layer.input_means = [short(value) for value in means]
        correction = bias_correction(node, error, means)
        layer.bias_correction = [short(value) for value in correction]
        if node.input[0] in evidence.input_errors:
            kept = bias_correction(node, error + weight, evidence.input_errors[node.input[0]])
            layer.input_correction = [short(value) for value in kept]
        if node.input[0] in evidence.input_errors_uint8:
            kept = bias_correction(node, error + weight, evidence.input_errors_uint8[node.input[0]])
            layer.input_correction_uint8 = [short(value) for value in kept]
    return layer
