"""The `cpu` dialect: Q/DQ at the inputs and outputs of every operator, so that onnxruntime runs integer kernels only.

Activations uint8: zero point 0 where nothing is negative (the ReLU itself becomes the saturation of the layer before
it), else in the middle of the range or where its shift puts it. Weights int8 per output channel. Biases int32 in units
of input scale times weight scale. Between two integer layers nothing is ever float.

An x86 CPU without VNNI adds two products of uint8 and int8 in 16 bits, which saturate. 2 x 255 x 64 does not: so a
weight takes 64 steps to each side instead of 127, and a range all 255. Rounding a weight costs less than rounding what
it multiplies, once biases are corrected. The graph then computes the same on every CPU.

What a PReLU reads is not quantized: onnxruntime has no integer kernel for it, and most of the eight bits would go to
negative values of which it leaves hardly anything. The layers that make it stay in float.
"""

import copy

import numpy as np
import onnx

from sodeploy.quant.emit.rewriter import Rewriter, corrected_bias, label, quantized_weight, set_bias
from sodeploy.quant.graph import PASSING, Network, attribute
from sodeploy.quant.int8 import SMALLEST_SCALE, STEPS, bias_correction, dequantize_weight
from sodeploy.quant.planning.decide import HEAD_CHANNELS
from sodeploy.quant.planning.plan import Layer, Plan, Range
from sodeploy.quant.planning.ranges import sharing_a_range

_WEIGHT_STEPS = 64  # to each side
_LARGEST_BIAS = 2.0**30  # in steps; leaves the int32 accumulator as much again


def emit_cpu(network: Network, plan: Plan) -> onnx.ModelProto:
    """The graph for onnxruntime's CPU provider."""
    model = copy.deepcopy(network.model)
    graph = Rewriter(model)
    layers = integer_layers(network, plan)
    stored = {tensor for group in sharing_a_range(network, layers) for tensor in group}
    ranges = {tensor: shared for tensor, shared in plan.range_of().items() if tensor in stored}

    for node in network.nodes:
        new = graph.copy(node)
        for index, name in enumerate(node.input):
            if name in ranges:
                new.input[index] = graph.quantize(name, *_parameters(ranges[name]))
        layer = layers.get(node.name)
        if layer is not None and node.op_type != "Add":
            _integer_layer(graph, network, new, node, layer, ranges[node.input[0]])
        elif node.input and node.input[0] in ranges and _is_narrow(network, node):
            _as_shifted_planes(graph, network, new, node)
        graph.append(new)
    return label(graph.finish(), "int8", "cpu", plan)


def _parameters(shared: Range) -> tuple[np.float32, np.uint8]:
    """Scale and zero point."""
    if not shared.signed and shared.shift is None:
        return np.float32(max(shared.amax / 255, SMALLEST_SCALE)), np.uint8(0)
    scale = np.float32(max(shared.amax / STEPS, SMALLEST_SCALE))
    return scale, np.uint8(np.clip(128 - np.rint((shared.shift or 0) / scale), 0, 255))


def integer_layers(network: Network, plan: Plan) -> dict[str, Layer]:
    """The plan's int8 layers without those whose result, or a sum of it with others, a PReLU reads."""
    activated: set[str] = set()  # tensors that a PReLU reads, directly or not
    for node in reversed(network.model.graph.node):
        if node.op_type == "PRelu":
            activated.add(node.input[0])
        elif node.op_type in (*PASSING, "Concat", "Add") and not activated.isdisjoint(node.output):
            activated |= set(node.input)
    int8 = plan.nodes("int8")
    return {
        node.name: plan.layers[node.name]
        for node in network.nodes
        if node.name in int8 and activated.isdisjoint(node.output)
    }


def _integer_layer(
    graph: Rewriter, network: Network, new: onnx.NodeProto, node: onnx.NodeProto, layer: Layer, read: Range
) -> None:
    scale, _ = _parameters(read)
    weight, scales, axis = quantized_weight(network, node, layer)
    planned = dequantize_weight(weight, scales, axis)
    bias = corrected_bias(network, node, layer)
    # A channel that is as good as dead has so small a scale that its bias would not fit 32 bits. Its weight is then
    # expressed in still larger steps; it was negligible beside the bias.
    scales = np.maximum(scales * (STEPS / _WEIGHT_STEPS), np.abs(bias) / (np.float64(scale) * _LARGEST_BIAS))
    weight, scales, _ = quantized_weight(network, node, layer.rescaled(scales))
    if layer.input_means is not None:
        moved = dequantize_weight(weight, scales, axis) - planned
        bias = bias + bias_correction(node, moved, np.array(layer.input_means))
    bias_scales = (scale * scales).astype(np.float32)
    new.input[1] = graph.dequantized_constant(f"{node.name}/weight", weight, scales, axis)
    steps = np.rint(bias / bias_scales.astype(np.float64)).astype(np.int32)
    set_bias(new, graph.dequantized_constant(f"{node.name}/bias", steps, bias_scales, axis=0))


def _is_narrow(network: Network, node: onnx.NodeProto) -> bool:
    """A convolution with a window but hardly an output channel, as heads are."""
    if node.op_type != "Conv" or not network.is_weighted(node) or attribute(node, "group", 1) != 1:
        return False
    strides = next((list(a.ints) for a in node.attribute if a.name == "strides"), [1])
    weight = network.weight(node)
    return weight.ndim == 4 and weight.shape[0] < HEAD_CHANNELS and weight[0, 0].size > 1 and set(strides) == {1}


def _as_shifted_planes(graph: Rewriter, network: Network, new: onnx.NodeProto, node: onnx.NodeProto) -> None:
    """Write a narrow convolution as a product that makes a plane per tap, and a sum of these planes, shifted.

    It is the same sum in another order. onnxruntime's kernels work on blocks of 8 or 16 output channels, so that a head
    with one takes as long as 16 would; its taps fill the block. The product reads channels last, as the integer layer
    before it wrote them.
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
