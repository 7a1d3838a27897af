"""A graph in a short float type and its simulation: every float tensor but those of the nodes that stay in fp32."""

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sodeploy.quant.emit.float_types import FloatType
from sodeploy.quant.emit.fp32_only import FLOAT32_INPUTS, fp32_only, rename_captured
from sodeploy.quant.graph import Network
from sodeploy.quant.weights_aside import without_constants
from sodeploy.runtime.onnx_file import captured, reads

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def converted(model: onnx.ModelProto, body: FloatType, keep: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of `model` that computes in `body`.

    Inputs and outputs of the graph stay float32. Casts are added after the inputs, before the outputs and around the
    kept nodes.

    Args:
        model: float32, with inferred types; scales of Q/DQ nodes are converted too.
        keep: names of the nodes that stay in fp32.
    """
    return _Converter(model, body, keep).model


class _Converter:
    """One conversion: visits the nodes in order and records the types in which each float tensor exists."""

    def __init__(self, model: onnx.ModelProto, body: FloatType, keep: Collection[str]) -> None:
        self.model = without_constants(model)
        self.body = body
        graph = self.model.graph
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.made: dict[tuple[str, int], str] = {}  # (tensor, type) -> the name under which it exists in that type
        self.type_of = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        self.type_of |= {
            info.name: info.type.tensor_type.elem_type for info in (*graph.input, *graph.value_info, *graph.output)
        }
        outputs = {output.name for output in graph.output}
        self.nodes: list[onnx.NodeProto] = []
        self.used: set[str] = set()
        keep = {*keep, *fp32_only(model, body)}
        for node in graph.node:
            self._convert(node, TensorProto.FLOAT if node.name in keep else body.element, outputs)
        del graph.node[:]
        graph.node.extend(self.nodes)
        del graph.value_info[:]  # types have changed; engines infer them anew
        graph.initializer.extend(tensor for name, tensor in self.initializers.items() if name in self.used)

    def _convert(self, node: onnx.NodeProto, body: int, outputs: set[str]) -> None:
        is_float = {name for name in (*node.input, *node.output) if self.type_of.get(name, 0) in _FLOATS}
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            # Treated as an initializer: each reader gets it in the type that it needs.
            tensor = node.attribute[0].t
            tensor.name = node.output[0]
            self.initializers[tensor.name] = tensor
            self.type_of[tensor.name] = tensor.data_type
            return
        for index, name in enumerate(node.input):
            if name in is_float and index not in FLOAT32_INPUTS.get(node.op_type, ()):
                node.input[index] = self._as(name, body)
            self.used.add(node.input[index])
        inside = [name for name in captured(node) if self.type_of.get(name, 0) in _FLOATS]
        rename_captured(node, {name: self._as(name, TensorProto.FLOAT) for name in inside})
        self.used |= set(captured(node))
        self._state_type(node, body)
        self.nodes.append(node)
        for index, name in enumerate(node.output):
            if self.type_of.get(name, 0) not in _FLOATS:
                continue
            self.type_of[name] = body
            if name in outputs and body != TensorProto.FLOAT:  # the graph's output keeps its name and type
                node.output[index] = f"{name}/{self.body.name}"
                self.type_of[node.output[index]] = body
                self.nodes.append(_cast(node.output[index], name, TensorProto.FLOAT))
                self.made[name, body] = node.output[index]
                self.type_of[name] = TensorProto.FLOAT

    def _as(self, name: str, wanted: int) -> str:
        """The name of a tensor in type `wanted`; adds a copy of the initializer, or a cast, where there is none yet."""
        if self.type_of[name] == wanted:
            return name
        if (name, wanted) not in self.made:
            suffix = self.body.name if wanted == self.body.element else "fp32"
            new = self.made[name, wanted] = f"{name}/{suffix}"
            if name in self.initializers:
                values = numpy_helper.to_array(self.initializers[name])
                self.initializers[new] = self._constant(values, wanted, new)
            else:
                self.nodes.append(_cast(name, new, wanted))
            self.type_of[new] = wanted
        return self.made[name, wanted]

    def _state_type(self, node: onnx.NodeProto, body: int) -> None:
        """Let a node whose attributes say which float type it makes make `body`."""
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in _FLOATS:
                attribute.i = body
            elif node.op_type == "ConstantOfShape" and attribute.name == "value" and attribute.t.data_type in _FLOATS:
                attribute.t.CopyFrom(self._constant(numpy_helper.to_array(attribute.t), body, attribute.t.name))

    def _constant(self, values: np.ndarray, element: int, name: str) -> onnx.TensorProto:
        """A constant of the body's type or of float32."""
        if element == self.body.element:
            return self.body.tensor(values, name)
        return numpy_helper.from_array(values.astype(np.float32), name)


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=to)


def rounded(network: Network, body: FloatType, keep: Collection[str] = ()) -> onnx.ModelProto:
    """The network in fp32 with every constant and every result rounded to `body`, as `converted` computes on a GPU.

    onnxruntime's CPU provider has no kernels for short floats. It runs an fp16 graph in fp32 without the roundings
    between operators, so an overflow never shows, and no bf16 graph; it keeps explicit casts. Sums inside an operator
    are fp32 here, as on tensor cores. Nothing is rounded between an operator and the ReLU that engines fuse with it,
    nor in fake quantization, where kernels read integers.

    Args:
        keep: names of the nodes that stay in fp32. Other nodes read their results rounded all the same.
    """
    return _Rounder(network, body, keep).model


# Scales are fp16 numbers already.
_UNROUNDED_INPUTS = {**FLOAT32_INPUTS, "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2)}


class _Rounder:
    """One simulation: visits the nodes in order and records which tensors are not rounded."""

    def __init__(self, network: Network, body: FloatType, keep: Collection[str]) -> None:
        self.network = network
        self.body = body
        self.model = without_constants(network.model)
        graph = self.model.graph
        self.exact = {network.input}  # tensors that are not rounded where they are made
        self.made: dict[str, str] = {}  # tensor -> its rounded copy
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        keep = {*keep, *fp32_only(network.model, body)}
        for node in graph.node:
            if node.name in keep:
                self.exact |= set(node.output)
                self.nodes.append(node)
            else:
                self._round(node, keep)
        del graph.node[:]
        graph.node.extend(self.nodes)
        read = reads(*self.nodes)
        kept = [tensor for tensor in network.model.graph.initializer if tensor.name in read]
        graph.initializer.extend([*kept, *self.constants])

    def _round(self, node: onnx.NodeProto, keep: Collection[str]) -> None:
        before = self.network.producer.get(node.input[0]) if node.input else None
        is_int8 = self.network.is_weighted(node) and before is not None and before.op_type == "DequantizeLinear"
        unrounded = (1,) if is_int8 else _UNROUNDED_INPUTS.get(node.op_type, ())
        for index, name in enumerate(node.input):
            if index not in unrounded:
                node.input[index] = self._read(name)
        self.nodes.append(node)
        readers = self.network.consumers[node.output[0]]
        fused = self.network.scope(node) != node.output[0] and readers[0].name not in keep
        if fused or node.op_type == "DequantizeLinear":
            return
        for index, name in enumerate(node.output):
            if name in self.network.float_tensors:
                node.output[index] = f"{name}/exact"
                self.nodes.extend(_rounding(f"{name}/exact", name, self.body))

    def _read(self, name: str) -> str:
        """The name under which a node in the short type reads a tensor; adds a rounded copy where there is none yet."""
        constant = self.network.constants.get(name)
        if name not in self.made and constant is not None and constant.dtype == np.float32:
            self.made[name] = f"{name}/rounded"
            values = self.body.rounded(constant).astype(np.float32)
            self.constants.append(numpy_helper.from_array(values, self.made[name]))
        elif name not in self.made and name in self.exact and name in self.network.float_tensors:
            self.made[name] = f"{name}/rounded"
            self.nodes.extend(_rounding(name, self.made[name], self.body))
        return self.made.get(name, name)


def _rounding(source: str, target: str, body: FloatType) -> list[onnx.NodeProto]:
    """Nodes that round a tensor to `body` and back."""
    short = f"{target}/{body.name}"
    return [_cast(source, short, body.element), _cast(short, target, TensorProto.FLOAT)]
