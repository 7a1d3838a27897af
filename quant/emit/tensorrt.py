"""The `tensorrt` dialect and its simulation: Q/DQ at the inputs of int8 layers, as NVIDIA's compilers want them.

Activations int8 with zero point 0, one scale per tensor; weights int8, one scale per output channel; biases float.
The simulation is the same graph with the same numbers, its weights already rounded, and every result of the fp16 body
rounded too, computed in fp32: what TensorRT's INT8 will cost in accuracy, on any machine.
"""

import json
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sodeploy.quant.emit.fp16 import round_to_half, to_half
from sodeploy.quant.graph import Network, channel_axis, integers
from sodeploy.quant.planning.decide import bias_correction, channels_read, dequantize_weight, quantize_weight
from sodeploy.quant.planning.plan import Layer, Plan, Precision
from sodeploy.quant.planning.ranges import fp16_scale
from sodeploy.runtime.contract import CALIBRATION_KEY, DIALECT_KEY, PRECISION_KEY, annotate


def emit_tensorrt(network: Network, plan: Plan) -> onnx.ModelProto:
    """The strongly typed graph for TensorRT and TensorRT-RTX: what is not int8 is fp16, or fp32 by the plan."""
    graph = to_half(_with_qdq(network, plan, simulate=False), keep=plan.nodes("fp32"))
    return label(graph, "int8", "tensorrt", plan)


def emit_simulation(network: Network, plan: Plan) -> onnx.ModelProto:
    """The `tensorrt` dialect's numbers as fake quantization, and roundings to fp16 between, in fp32 for onnxruntime."""
    quantized = replace(network, model=_with_qdq(network, plan, simulate=True))
    return label(round_to_half(quantized, keep=plan.nodes("fp32")), "int8", "simulation", plan)


def emit_half(network: Network, plan: Plan | None = None) -> onnx.ModelProto:
    """The fp16 graph: what the plan keeps in fp32 stays so, and without a plan nothing does."""
    return label(to_half(network.model, keep=plan.nodes("fp32") if plan else ()), "fp16")


def emit_half_simulation(network: Network, plan: Plan | None = None) -> onnx.ModelProto:
    """What the fp16 graph computes on a GPU, as roundings in fp32, for onnxruntime on a CPU."""
    return label(round_to_half(network, keep=plan.nodes("fp32") if plan else ()), "fp16", "simulation")


def label(
    model: onnx.ModelProto, precision: Precision, dialect: str | None = None, plan: Plan | None = None
) -> onnx.ModelProto:
    """Say in the model's metadata what it is and on which images its ranges were measured."""
    facts: dict[str, str] = {PRECISION_KEY: precision}
    if dialect is not None:
        facts[DIALECT_KEY] = dialect
    if plan is not None and plan.calibration is not None:
        images = plan.calibration.images
        facts[CALIBRATION_KEY] = json.dumps({"method": plan.calibration.method, "digests_sha256": sorted(images)})
    annotate(model, facts)
    return model


def _with_qdq(network: Network, plan: Plan, simulate: bool) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    graph = Rewriter(model)
    ranges = plan.range_of()

    for node in network.nodes:
        copy = graph.copy(node)
        layer = plan.layers.get(node.name)
        if layer is not None and layer.precision == "int8":
            index = quantized_input(network, node)
            shared = ranges[node.input[index]]
            if shared.shift is not None:
                copy.input[index] = _shifted(graph, copy, shared.shift)
            copy.input[index] = graph.quantize(copy.input[index], fp16_scale(shared.amax / 127), np.int8(0))
            if node.op_type != "Add":
                weight, scales, axis = quantized_weight(network, node, layer)
                if simulate:
                    copy.input[1] = graph.constant(f"{node.name}/weight", dequantize_weight(weight, scales, axis))
                else:
                    copy.input[1] = graph.dequantized_constant(f"{node.name}/weight", weight, scales, axis)
                bias = corrected_bias(network, node, layer)
                if shared.shift is not None:
                    # What the layer reads is lower by the shift, in all channels.
                    means = np.full(channels_read(node, weight), -shared.shift)
                    bias += bias_correction(node, dequantize_weight(weight, scales, axis), means)
                set_bias(copy, graph.constant(f"{node.name}/bias", bias))
        graph.append(copy)
    return graph.finish()


def _shifted(graph: "Rewriter", node: onnx.NodeProto, shift: float) -> str:
    """The name of what `node` reads, less `shift`.

    The zeros that a convolution pads with have to be shifted too, so they are put there before.
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
    """Which input an int8 layer reads through Q/DQ: of an addition the residual one, which is the older.

    The other comes straight from a layer, which then adds in float.
    """
    if node.op_type != "Add":
        return 0
    age = {name: index for index, name in enumerate(network.producer)}
    return min((0, 1), key=lambda index: age.get(node.input[index], -1))


def quantized_weight(network: Network, node: onnx.NodeProto, layer: Layer) -> tuple[np.ndarray, np.ndarray, int]:
    """An int8 layer's weight in steps, the scales, and the axis they run along."""
    assert layer.weight_scales is not None
    scales, axis = np.array(layer.weight_scales, np.float32), channel_axis(node)
    weight = network.weight(node)
    steps = quantize_weight(weight, scales, axis) if layer.steps is None else layer.steps.reshape(weight.shape)
    return steps, scales, axis


def corrected_bias(network: Network, node: onnx.NodeProto, layer: Layer) -> np.ndarray:
    """`(C_out,) float32`: the layer's bias, or zeros, with the plan's corrections."""
    assert layer.weight_scales is not None
    bias = network.bias(node)
    bias = np.zeros(len(layer.weight_scales)) if bias is None else bias.reshape(-1)
    corrections = (layer.bias_correction, layer.input_correction)
    return (bias + sum(np.array(each) for each in corrections if each is not None)).astype(np.float32)


def set_bias(node: onnx.NodeProto, name: str) -> None:
    if len(node.input) > 2:
        node.input[2] = name
    else:
        node.input.append(name)


class Rewriter:
    """A graph being written anew, node by node, in order."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._made: set[str] = set()

    def copy(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """A copy to be changed and then appended."""
        new = onnx.NodeProto()
        new.CopyFrom(node)
        return new

    def append(self, node: onnx.NodeProto) -> None:
        self._nodes.append(node)

    def constant(self, name: str, values: np.ndarray) -> str:
        self._constants[name] = numpy_helper.from_array(np.asarray(values), name)
        return name

    def quantize(self, tensor: str, scale: np.ndarray | np.float32, zero_point: np.int8 | np.uint8) -> str:
        """The name of `tensor` after Q/DQ; the pair is added at its first use and shared by all later ones."""
        parameters = [
            self.constant(f"{tensor}/scale", np.float32(scale)),
            self.constant(f"{tensor}/zero_point", np.asarray(zero_point)),
        ]
        steps = self.once("QuantizeLinear", [tensor, *parameters], f"{tensor}/quantized", f"{tensor}/QuantizeLinear")
        return self.once(
            "DequantizeLinear", [steps, *parameters], f"{tensor}/dequantized", f"{tensor}/DequantizeLinear"
        )

    def once(self, op: str, inputs: list[str], output: str, name: str | None = None) -> str:
        """Add a node that makes `output`, unless it stands there already; returns `output`."""
        if output not in self._made:
            self._made.add(output)
            self.append(helper.make_node(op, inputs, [output], name=name or output))
        return output

    def dequantized_constant(self, name: str, steps: np.ndarray, scales: np.ndarray, axis: int) -> str:
        """A constant stored as integers and dequantized along `axis` in the graph."""
        inputs = [
            self.constant(f"{name}/quantized", steps),
            self.constant(f"{name}/scale", scales.astype(np.float32)),
            self.constant(f"{name}/zero_point", np.zeros(len(scales), steps.dtype)),
        ]
        self.append(helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}/DequantizeLinear", axis=axis))
        return name

    def finish(self) -> onnx.ModelProto:
        """The model, with only the constants that are read and types inferred."""
        graph = self._model.graph
        read = {name for node in self._nodes for name in node.input}
        old = [tensor for tensor in graph.initializer if tensor.name in read and tensor.name not in self._constants]
        new = [tensor for name, tensor in self._constants.items() if name in read]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend([*old, *new])
        return onnx.shape_inference.infer_shapes(self._model)
