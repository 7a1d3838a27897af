"""The graphs for CPUs: Q/DQ at the inputs and outputs of operators, so that integer kernels run.

Activations are uint8. The zero point is 0 for tensors without negative values (the ReLU itself becomes the saturation
of the layer before it); else it lies where the plan's range puts it (`Range.uint8`). Weights are int8
with one scale per output channel. Biases are int32 in units of input scale times weight scale. Between two integer
layers nothing is ever float.

The plan says which layers stay in float here, how many steps a weight has, and which layers take another form
(`sodeploy.quant.planning.targets`).
"""

import numpy as np
import onnx

from sodeploy.quant.emit.rewriter import Rewriter, corrected_bias, label, quantized_weight, set_bias
from sodeploy.quant.graph import Network
from sodeploy.quant.int8 import SMALLEST_SCALE, STEPS, bias_correction, dequantize_weight, quantize_weight
from sodeploy.quant.planning.plan import Layer, Plan, Range, TargetName
from sodeploy.quant.planning.ranges import held_in_int8
from sodeploy.quant.planning.targets import kind_of_cpu
from sodeploy.runtime.contract import CPU_KEY, annotate

_ELEMENTWISE = ("PRelu", "Add", "Sub", "Mul", "Div")
_LARGEST_BIAS = 2.0**30  # in steps; leaves the int32 accumulator as much again


def emit_cpu(network: Network, plan: Plan) -> onnx.ModelProto:
    """The graph for onnxruntime's CPU provider.

    Raises:
        UserError: the plan has no decisions for this graph.
    """
    graph = _emit(network, plan, "cpu")
    annotate(graph, {CPU_KEY: kind_of_cpu(plan)})
    return graph


def emit_openvino(network: Network, plan: Plan) -> onnx.ModelProto:
    """The graph for OpenVINO's CPU plugin.

    Raises:
        UserError: the plan has no decisions for this graph.
    """
    return _emit(network, plan, "openvino")


def _emit(network: Network, plan: Plan, target: TargetName) -> onnx.ModelProto:
    ours = plan.target(target)
    graph = Rewriter(network.model)
    integer = {name: layer for name, layer in plan.layers.items() if layer.precision == "int8"}
    integer = {name: layer for name, layer in integer.items() if name not in ours.layers}
    parts = {name for name, layer in ours.layers.items() if layer.form == "two int8 parts"}
    held = held_in_int8(network, integer, also_read_by=parts, outputs=ours.quantizes_outputs)
    ranges = {tensor: shared for tensor, shared in plan.range_of().items() if tensor in held}

    for node in network.nodes:
        new = graph.copy(node)
        for index, name in enumerate(node.input):
            if name in ranges and node.op_type not in ours.unquantized:
                new.input[index] = graph.quantize(name, *ranges[name].uint8_parameters)
        if node.name in integer and node.op_type != "Add":
            layer = integer[node.name]
            _integer_layer(graph, network, new, node, layer, ranges[node.input[0]], ours.weight_steps)
        elif node.name in ours.layers and ours.layers[node.name].form == "shifted planes":
            _as_shifted_planes(graph, network, new, node)
        elif node.name in parts:
            new = _as_two_parts(graph, network, new, node)
        elif target == "openvino" and node.op_type in _ELEMENTWISE:
            _with_constants_of_full_rank(graph, network, new)
        graph.append(new)
    return label(graph.finish(), "int8", target, plan)


def _integer_layer(
    graph: Rewriter,
    network: Network,
    new: onnx.NodeProto,
    node: onnx.NodeProto,
    layer: Layer,
    read: Range,
    weight_steps: int,
) -> None:
    """Give `new` an int8 weight of `weight_steps` on each side of zero, and an int32 bias."""
    scale, _ = read.uint8_parameters
    planned = dequantize_weight(*quantized_weight(network, node, layer))
    weight, scales, axis = quantized_weight(network, node, layer, weight_steps)
    bias = corrected_bias(network, node, layer, uint8=True)
    # A channel without effect has so small a scale that its bias would not fit 32 bits. Its weight then takes
    # larger steps; it is negligible beside the bias.
    wanted = np.maximum(scales, np.abs(bias) / (np.float64(scale) * _LARGEST_BIAS))
    kept = (wanted == scales).reshape([-1 if one == axis else 1 for one in range(weight.ndim)])
    weight = np.where(kept, weight, quantize_weight(network.weight(node), wanted, axis))
    scales = wanted
    if layer.input_means is not None:
        moved = dequantize_weight(weight, scales, axis) - planned
        bias = bias + bias_correction(node, moved, np.array(layer.input_means))
    bias_scales = (scale * scales).astype(np.float32)
    new.input[1] = graph.dequantized_constant(f"{node.name}/weight", weight, scales, axis)
    steps = np.rint(bias / bias_scales.astype(np.float64)).astype(np.int32)
    set_bias(new, graph.dequantized_constant(f"{node.name}/bias", steps, bias_scales, axis=0))


def _as_shifted_planes(graph: Rewriter, network: Network, new: onnx.NodeProto, node: onnx.NodeProto) -> None:
    """Write a narrow convolution as a product that makes a plane per tap, and a sum of these planes, shifted.

    It is the same sum in another order. onnxruntime's kernels work on blocks of 8 or 16 output channels, so a head with
    one channel takes as long as one with 16; its taps fill the block. The product reads channels last, the layout in
    which the integer layer before it writes them.
    """
    weight = network.weight(node)
    outputs, inputs, height, width = weight.shape
    taps = outputs * height * width
    by_tap = graph.constant(f"{node.name}/weight", weight.transpose(1, 0, 2, 3).reshape(inputs, taps))
    last, product, planes = (f"{node.name}/{name}" for name in ("channels_last", "product", "planes"))
    for op, read, written, attributes in (
        ("Transpose", [new.input[0]], last, {"perm": [0, 2, 3, 1]}),
        ("MatMul", [last, by_tap], product, {}),
        ("Transpose", [product], planes, {"perm": [0, 3, 1, 2]}),
    ):
        graph.append(onnx.helper.make_node(op, read, [written], name=written, **attributes))
    shifts = np.eye(taps, dtype=np.float32).reshape(outputs, height, width, taps).transpose(0, 3, 1, 2)
    new.input[0] = planes
    new.input[1] = graph.constant(f"{node.name}/shifts", np.ascontiguousarray(shifts))


def _with_constants_of_full_rank(graph: Rewriter, network: Network, node: onnx.NodeProto) -> None:
    """Give the constants that a node reads, such as a PReLU's slopes, as many dimensions as its result.

    Broadcasting gives the same values. With fewer dimensions OpenVINO computes the node in planar layout, between
    integer layers that keep channels last: on CSNet its copies from one layout to the other take longer than all int8
    layers.
    """
    if not network.has_rank(node.output[0]):
        return
    rank = len(network.shape(node.output[0]))
    for index, name in enumerate(node.input):
        values = network.constants.get(name)
        if values is not None and 0 < values.ndim < rank:
            wide = values.reshape((1,) * (rank - values.ndim) + values.shape)
            node.input[index] = graph.constant(f"{name}/rank_{rank}", wide)


def _as_two_parts(graph: Rewriter, network: Network, new: onnx.NodeProto, node: onnx.NodeProto) -> onnx.NodeProto:
    """Write a head's weight as the sum of two int8 weights, each an output channel of its own; the node that adds them.

    The first holds the nearest steps, the second what they leave in steps 254 times as fine: together 16 bits.
    """
    weight, bias = network.weight(node).astype(np.float64), network.bias(node)
    along = (-1, *(1,) * (weight.ndim - 1))
    coarse = np.abs(weight).max(axis=tuple(range(1, weight.ndim))) / STEPS
    coarse = np.maximum(coarse, SMALLEST_SCALE).astype(np.float32)
    fine = coarse / np.float32(2 * STEPS)
    first = quantize_weight(weight, coarse, 0)
    second = quantize_weight(weight - first * coarse.astype(np.float64).reshape(along), fine, 0)
    channels = len(weight)
    new.input[1] = graph.dequantized_constant(
        f"{node.name}/weight", np.concatenate([first, second]), np.concatenate([coarse, fine]), axis=0
    )
    if bias is not None:
        values = np.concatenate([bias.reshape(-1), np.zeros(channels)]).astype(np.float32)
        set_bias(new, graph.constant(f"{node.name}/bias", values))
    new.output[0] = f"{node.name}/parts"
    graph.append(new)
    both = np.tile(np.eye(channels, dtype=np.float32), 2).reshape(channels, 2 * channels, *(1,) * (weight.ndim - 2))
    inputs = [new.output[0], graph.constant(f"{node.name}/both", both)]
    return onnx.helper.make_node("Conv", inputs, [node.output[0]], name=f"{node.name}/sum")
