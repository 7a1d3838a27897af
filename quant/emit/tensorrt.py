"""The int8 graph for TensorRT and its simulation: Q/DQ at the inputs of int8 layers, the form of NVIDIA's compilers.

Activations are int8 with zero point 0 and one scale per tensor; weights are int8 with one scale per output channel;
biases are float. The simulation computes the same numbers in fp32: its weights are rounded already, and every result of
the fp16 body is rounded to fp16. It shows the accuracy of TensorRT's INT8 on any machine.
"""

from dataclasses import replace

import numpy as np
import onnx

from sodeploy.quant.emit.fp16 import round_to_fp16, to_fp16
from sodeploy.quant.emit.rewriter import Rewriter, corrected_bias, label, quantized_weight, set_bias
from sodeploy.quant.graph import Network, integers
from sodeploy.quant.int8 import STEPS, bias_correction, channels_read, dequantize_weight, fp16_scale
from sodeploy.quant.planning.plan import Plan


def emit_tensorrt(network: Network, plan: Plan) -> onnx.ModelProto:
    """The strongly typed graph for TensorRT and TensorRT-RTX. Nodes that are not int8 are fp16, or fp32 by the plan."""
    graph = to_fp16(_with_qdq(network, plan, simulate=False), keep=plan.nodes("fp32"))
    return label(graph, "int8", "tensorrt", plan)


def emit_simulation(network: Network, plan: Plan) -> onnx.ModelProto:
    """The simulation of `emit_tensorrt`, for onnxruntime: fake quantization and roundings to fp16, computed in fp32."""
    quantized = replace(network, model=_with_qdq(network, plan, simulate=True))
    return label(round_to_fp16(quantized, keep=plan.nodes("fp32")), "int8", "simulation", plan)


def with_fake_quantization(network: Network, plan: Plan, part: onnx.ModelProto) -> onnx.ModelProto:
    """Some nodes of the network, with the int8 layers among them as fake quantization, and everything else in fp32."""
    return _with_qdq(network, plan, simulate=True, part=part)


def _with_qdq(network: Network, plan: Plan, simulate: bool, part: onnx.ModelProto | None = None) -> onnx.ModelProto:
    model = part or network.model
    graph = Rewriter(model)
    ranges = plan.range_of()

    for node in model.graph.node:
        new = graph.copy(node)
        layer = plan.layers.get(node.name)
        if layer is not None and layer.precision == "int8":
            index = quantized_input(network, node)
            shared = ranges[node.input[index]]
            if shared.shift is not None:
                new.input[index] = _shifted(graph, new, shared.shift)
            new.input[index] = graph.quantize(new.input[index], fp16_scale(shared.amax / STEPS), np.int8(0))
            if node.op_type != "Add":
                weight, scales, axis = quantized_weight(network, node, layer)
                if simulate:
                    new.input[1] = graph.constant(f"{node.name}/weight", dequantize_weight(weight, scales, axis))
                else:
                    new.input[1] = graph.dequantized_constant(f"{node.name}/weight", weight, scales, axis)
                bias = corrected_bias(network, node, layer)
                if shared.shift is not None:
                    # All channels of the layer's input are lower by the shift.
                    means = np.full(channels_read(node, weight), -shared.shift)
                    bias += bias_correction(node, dequantize_weight(weight, scales, axis), means)
                set_bias(new, graph.constant(f"{node.name}/bias", bias))
        graph.append(new)
    return graph.finish()


def _shifted(graph: Rewriter, node: onnx.NodeProto, shift: float) -> str:
    """Subtract `shift` from the input of `node`, once for all readers of one padding; the name of the result.

    The zeros that a convolution pads with must be shifted too, so the input is padded before.
    """
    tensor: str = node.input[0]
    pads = integers(node, "pads")
    if any(pads):
        half = len(pads) // 2
        around = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
        padded = f"{tensor}/padded_{'_'.join(map(str, pads))}"
        tensor = graph.once("Pad", [tensor, graph.constant(f"{padded}/pads", around)], padded)
        next(a for a in node.attribute if a.name == "pads").ints[:] = [0] * len(pads)
    amount = graph.constant(f"{node.input[0]}/shift", np.float32(shift))
    return graph.once("Sub", [tensor, amount], f"{tensor}/shifted")


def quantized_input(network: Network, node: onnx.NodeProto) -> int:
    """The index of the input that an int8 layer reads through Q/DQ.

    Of an addition it is the older input, the residual. The other comes directly from a layer, which adds in float.
    """
    if node.op_type != "Add":
        return 0
    age = {name: index for index, name in enumerate(network.producer)}
    return min((0, 1), key=lambda index: age.get(node.input[index], -1))
