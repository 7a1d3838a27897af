"""Writes a graph anew with Q/DQ nodes, for all int8 emitters, and labels the result."""

import copy
import json
from typing import Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sodeploy.quant.graph import Network, channel_axis
from sodeploy.quant.int8 import STEPS, quantize_weight, scales_of
from sodeploy.quant.planning.plan import Layer, Plan
from sodeploy.quant.weights_aside import with_weights_aside, without_constants
from sodeploy.runtime.contract import CALIBRATION_KEY, DIALECT_KEY, PRECISION_KEY, annotate
from sodeploy.runtime.onnx_file import reads

GraphPrecision = Literal["fp16", "bf16", "int8"]  # the lowest in a graph


class Rewriter:
    """Writes the nodes of a graph anew, one by one, in order. `model` itself is not changed."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = without_constants(model)
        self._old = model.graph.initializer
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._made: set[str] = set()

    def copy(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """A copy of a node, to change and then append."""
        return copy.deepcopy(node)

    def append(self, node: onnx.NodeProto) -> None:
        self._nodes.append(node)

    def constant(self, name: str, values: np.ndarray) -> str:
        self._constants[name] = numpy_helper.from_array(np.asarray(values), name)
        return name

    def quantize(self, tensor: str, scale: np.ndarray | np.float32, zero_point: np.int8 | np.uint8) -> str:
        """Add Q/DQ behind `tensor` at its first use; later uses share the pair. The name of the result."""
        parameters = [
            self.constant(f"{tensor}/scale", np.float32(scale)),
            self.constant(f"{tensor}/zero_point", np.asarray(zero_point)),
        ]
        steps = self.once("QuantizeLinear", [tensor, *parameters], f"{tensor}/quantized", f"{tensor}/QuantizeLinear")
        return self.once(
            "DequantizeLinear", [steps, *parameters], f"{tensor}/dequantized", f"{tensor}/DequantizeLinear"
        )

    def once(self, op: str, inputs: list[str], output: str, name: str | None = None) -> str:
        """Add a node that makes `output`, unless there is one; returns `output`."""
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
        """The model, with types inferred and without constants that no node reads."""
        graph = self._model.graph
        read = reads(*self._nodes)
        old = [tensor for tensor in self._old if tensor.name in read and tensor.name not in self._constants]
        new = [tensor for name, tensor in self._constants.items() if name in read]
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend([*old, *new])
        return with_weights_aside(onnx.shape_inference.infer_shapes, self._model)


def quantized_weight(
    network: Network, node: onnx.NodeProto, layer: Layer, weight_steps: int = STEPS
) -> tuple[np.ndarray, np.ndarray, int]:
    """The weight of an int8 layer in `weight_steps` on each side of zero, its scales, and the axis of the scales."""
    assert layer.weight_scales is not None
    scales, axis = scales_of(np.array(layer.weight_scales), weight_steps), channel_axis(node)
    weight, rounded = network.weight(node), layer.rounded(weight_steps)
    steps = quantize_weight(weight, scales, axis) if rounded is None else rounded.reshape(weight.shape)
    return steps, scales, axis


def corrected_bias(network: Network, node: onnx.NodeProto, layer: Layer, uint8: bool = False) -> np.ndarray:
    """`(C_out,) float32`: the bias of the layer, zero where it has none, with the plan's corrections.

    Args:
        uint8: the layer reads uint8, as in the graphs for CPUs, instead of int8.
    """
    assert layer.weight_scales is not None
    bias = network.bias(node)
    bias = np.zeros(len(layer.weight_scales)) if bias is None else bias.reshape(-1)
    of_input = layer.input_correction
    if uint8 and layer.input_correction_uint8 is not None:  # plans of older versions have the other alone
        of_input = layer.input_correction_uint8
    corrections = (layer.bias_correction, of_input)
    return (bias + sum(np.array(each) for each in corrections if each is not None)).astype(np.float32)


def set_bias(node: onnx.NodeProto, name: str) -> None:
    if len(node.input) > 2:
        node.input[2] = name
    else:
        node.input.append(name)


def label(
    model: onnx.ModelProto, precision: GraphPrecision, dialect: str | None = None, plan: Plan | None = None
) -> onnx.ModelProto:
    """Write precision, dialect, calibration method and the digests of the calibration images into the metadata."""
    facts: dict[str, str] = {PRECISION_KEY: precision}
    if dialect is not None:
        facts[DIALECT_KEY] = dialect
    if plan is not None and plan.calibration is not None:
        images = plan.calibration.images
        facts[CALIBRATION_KEY] = json.dumps({"method": plan.calibration.method, "digests_sha256": sorted(images)})
    annotate(model, facts)
    return model
