"""The `cpu` dialect: Q/DQ at the inputs and outputs of every operator, so that onnxruntime runs integer kernels only.

Activations uint8: zero point 0 where nothing is negative (the ReLU itself becomes the saturation of the layer before
it), else 128. Weights int8 per output channel. Biases int32 in units of input scale times weight scale. Between two
integer layers nothing is ever float.

An x86 CPU without VNNI adds two products of uint8 and int8 in 16 bits, which saturate. Neither 2 x 127 x 127 nor
2 x 255 x 64 does: so a range takes 127 steps to each side, as on TensorRT, and a weight that multiplies signed values
64 instead of 127. The graph then computes the same on every CPU.
"""

import numpy as np
import onnx

from quant.emit import Rewriter, corrected_bias, label, quantized_weight, set_bias
from quant.graph import Network, attribute
from quant.plan import Layer, Plan, Range
from quant.planning import HEAD_CHANNELS
from quant.ranges import SMALLEST_SCALE

_STEPS = 127  # of an activation's range to each side
_SIGNED_READ_STEPS = 64  # of a weight, where the activation that it multiplies uses all 255 of its own
_LARGEST_BIAS = 2.0**30  # in steps; leaves the int32 accumulator as much again


def emit_cpu(network: Network, plan: Plan) -> onnx.ModelProto:
    """The graph for onnxruntime's CPU provider."""
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    graph = Rewriter(model)
    ranges = plan.range_of()

    for node in network.nodes:
        copy = graph.copy(node)
        for index, name in enumerate(node.input):
            if name in ranges:
                copy.input[index] = graph.quantize(name, *_parameters(ranges[name]))
        layer = plan.layers.get(node.name)
        if layer is not None and layer.precision == "int8" and node.op_type != "Add":
            _integer_layer(graph, network, copy, node, layer, ranges[node.input[0]])
        elif _is_narrow(network, node):
            _as_shifted_planes(graph, network, copy, node)
        graph.append(copy)
    return label(graph.finish(), "int8", "cpu", plan)


def _parameters(shared: Range) -> tuple[np.float32, np.uint8]:
    """Scale and zero point."""
    scale = np.float32(max(shared.amax / _STEPS, SMALLEST_SCALE))
    if shared.shift is not None:
        return scale, np.uint8(np.clip(128 - np.rint(shared.shift / scale), 0, 255))
    return scale, np.uint8(128 if shared.signed else 0)


def _integer_layer(
    graph: Rewriter, network: Network, copy: onnx.NodeProto, node: onnx.NodeProto, layer: Layer, read: Range
) -> None:
    bias = corrected_bias(network, node, layer)
    scale, zero_point = _parameters(read)
    if zero_point:  # else the upper half of the codes holds what is beyond the range, and nothing is clipped
        bias += np.array(layer.input_correction or 0.0, np.float32)
    weight, scales, axis = quantized_weight(network, node, layer)
    # A channel that is as good as dead has so small a scale that its bias would not fit 32 bits. Its weight is then
    # expressed in larger steps; it was negligible beside the bias.
    smallest = np.abs(bias) / (np.float64(scale) * _LARGEST_BIAS)
    if zero_point:
        smallest = np.maximum(smallest, scales * (127 / _SIGNED_READ_STEPS))
    if np.any(scales < smallest):
        scales = np.maximum(scales, smallest).astype(np.float32)
        weight, scales, axis = quantized_weight(network, node, layer.rescaled(scales))
    bias_scales = (scale * scales).astype(np.float32)
    copy.input[1] = graph.dequantized_constant(f"{node.name}/weight", weight, scales, axis)
    steps = np.rint(bias / bias_scales.astype(np.float64)).astype(np.int32)
    set_bias(copy, graph.dequantized_constant(f"{node.name}/bias", steps, bias_scales, axis=0))


def _is_narrow(network: Network, node: onnx.NodeProto) -> bool:
    """A convolution with a window but hardly an output channel, as heads are."""
    if node.op_type != "Conv" or not network.is_weighted(node) or attribute(node, "group", 1) != 1:
        return False
    strides = next((list(a.ints) for a in node.attribute if a.name == "strides"), [1])
    weight = network.weight(node)
    return weight.ndim == 4 and weight.shape[0] < HEAD_CHANNELS and weight[0, 0].size > 1 and set(strides) == {1}


def _as_shifted_planes(graph: Rewriter, network: Network, copy: onnx.NodeProto, node: onnx.NodeProto) -> None:
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
        ("Transpose", [copy.input[0]], last, {"perm": [0, 2, 3, 1]}),
        ("MatMul", [last, by_tap], product, {}),
        ("Transpose", [product], planes, {"perm": [0, 3, 1, 2]}),
    ):
        graph.append(onnx.helper.make_node(op, read, [written], name=written, **attributes))
    shifts = np.eye(taps, dtype=np.float32).reshape(outputs, height, width, taps).transpose(0, 3, 1, 2)
    copy.input[0] = planes
    copy.input[1] = graph.constant(f"{node.name}/shifts", np.ascontiguousarray(shifts))
