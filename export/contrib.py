"""Operators that onnxruntime's optimizer fuses into its own, taken apart into ONNX's.

A file that onnxruntime has saved after optimization holds operators of the domain com.microsoft, which no other engine
reads. (Definitions: onnxruntime's docs/ContribOperators.md.)
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sodeploy.errors import UserError
from sodeploy.runtime.onnx_file import graphs

_STANDARD = ("", "ai.onnx")
_MICROSOFT = "com.microsoft"


class _Parts:
    """The nodes and constants that take the place of one fused node."""

    def __init__(self, node: onnx.NodeProto, opset: int, ranks: dict[str, int]) -> None:
        self.node, self.opset, self.ranks = node, opset, ranks
        self.base = node.name or node.output[0]
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def attribute(self, name: str, default: Any) -> Any:
        return next((helper.get_attribute_value(a) for a in self.node.attribute if a.name == name), default)

    def input(self, index: int) -> str:
        return self.node.input[index] if index < len(self.node.input) else ""

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"{self.base}/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(self, op_type: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        output = output or f"{self.base}/part_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=f"{output}/{op_type}", **attributes))
        return output


def unfuse(model: onnx.ModelProto, source: str | Path) -> list[str]:
    """Take fused operators apart, in place; which there were.

    Raises:
        UserError: an operator is neither ONNX's nor one that can be taken apart; it is named.
    """
    found = []
    opset = max((int(entry.version) for entry in model.opset_import if entry.domain in _STANDARD), default=1)
    for graph in graphs(model.graph):
        nodes: list[onnx.NodeProto] = []
        ranks = {
            value.name: len(value.type.tensor_type.shape.dim)
            for value in (*graph.value_info, *graph.input)
            if value.type.tensor_type.HasField("shape")
        } | {tensor.name: len(tensor.dims) for tensor in graph.initializer}
        for node in graph.node:
            rule = _RULES.get((node.domain, node.op_type))
            if rule is None:
                if node.domain not in _STANDARD:
                    raise UserError(f"{source}: {_no_rule(node)}")
                nodes.append(node)
                continue
            parts = _Parts(node, opset, ranks)
            rule(parts)
            if not parts.nodes:
                raise UserError(f"{source}: {_no_rule(node)}")
            nodes.extend(parts.nodes)
            graph.initializer.extend(parts.constants)
            found.append(node.op_type)
        del graph.node[:]
        graph.node.extend(nodes)
    return found


def _no_rule(node: onnx.NodeProto) -> str:
    where = f"node {node.name or node.output[0]} is {node.domain}::{node.op_type}, which is not an operator of ONNX"
    if node.domain.startswith("com.m"):
        return (
            f"{where}: onnxruntime's optimizer made it; adopt the file from before the optimization, or save it with "
            "ORT_ENABLE_BASIC"
        )
    return f"{where}; export the network without that plugin or custom operator"


def _activation(parts: _Parts, name: str) -> None:
    """The node's activation behind tensor `name`, into the node's own output."""
    kind = parts.attribute("activation", b"").decode()
    numbers = [float(value) for value in parts.attribute("activation_params", [])]
    output = parts.node.output[0]
    if kind in ("", "Relu", "Sigmoid", "Tanh"):
        parts.add(kind or "Identity", [name], output)
    elif kind == "LeakyRelu":
        parts.add(kind, [name], output, alpha=numbers[0] if numbers else 0.01)
    elif kind == "HardSigmoid":
        alpha, beta = numbers if len(numbers) == 2 else (0.2, 0.5)
        parts.add(kind, [name], output, alpha=alpha, beta=beta)
    elif kind == "Clip" and len(numbers) == 2:
        bounds = [parts.constant(value) for value in numbers]
        parts.add("Min", [parts.add("Max", [name, bounds[0]]), bounds[1]], output)  # the same in every opset
    elif kind == "HardSwish":
        parts.add("Mul", [name, parts.add("HardSigmoid", [name], alpha=1 / 6, beta=0.5)], output)
    else:
        parts.nodes.clear()


def _fused_conv(parts: _Parts) -> None:
    names = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    attributes = {name: parts.attribute(name, None) for name in names}
    inputs = [name for name in (parts.input(index) for index in range(3)) if name]
    made = parts.add("Conv", inputs, **{name: value for name, value in attributes.items() if value is not None})
    if parts.input(3):
        made = parts.add("Add", [made, parts.input(3)])
    _activation(parts, made)


def _fused_gemm(parts: _Parts) -> None:
    attributes = {name: parts.attribute(name, None) for name in ("alpha", "beta", "transA", "transB")}
    made = parts.add(
        "Gemm", list(parts.node.input), **{name: value for name, value in attributes.items() if value is not None}
    )
    _activation(parts, made)


def _fused_matmul(parts: _Parts) -> None:
    if any(parts.attribute(name, 0) for name in ("transBatchA", "transBatchB")):
        return
    factors = [parts.input(0), parts.input(1)]
    for index, flag in enumerate(("transA", "transB")):
        if parts.attribute(flag, 0):
            rank = parts.ranks.get(factors[index], 0)
            if rank < 2:
                return  # a transposition needs it, and the file does not say it
            axes = [*range(rank - 2), rank - 1, rank - 2]
            factors[index] = parts.add("Transpose", [factors[index]], perm=axes)
    made = parts.add("MatMul", factors)
    parts.add("Mul", [made, parts.constant(parts.attribute("alpha", 1.0))], parts.node.output[0])


def _erf_gelu(parts: _Parts, name: str) -> None:
    inner = parts.add("Erf", [parts.add("Mul", [name, parts.constant(1 / math.sqrt(2))])])
    gate = parts.add("Mul", [parts.add("Add", [inner, parts.constant(1.0)]), parts.constant(0.5)])
    parts.add("Mul", [name, gate], parts.node.output[0])


def _gelu(parts: _Parts) -> None:
    _erf_gelu(parts, parts.input(0))


def _bias_gelu(parts: _Parts) -> None:
    _erf_gelu(parts, parts.add("Add", [parts.input(0), parts.input(1)]))


def _fast_gelu(parts: _Parts) -> None:
    x = parts.add("Add", [parts.input(0), parts.input(1)]) if parts.input(1) else parts.input(0)
    cube = parts.add("Mul", [parts.add("Mul", [x, x]), x])
    inner = parts.add("Add", [x, parts.add("Mul", [cube, parts.constant(0.044715)])])
    tanh = parts.add("Tanh", [parts.add("Mul", [inner, parts.constant(math.sqrt(2 / math.pi))])])
    gate = parts.add("Mul", [parts.add("Add", [tanh, parts.constant(1.0)]), parts.constant(0.5)])
    parts.add("Mul", [x, gate], parts.node.output[0])


def _quick_gelu(parts: _Parts) -> None:
    scaled = parts.add("Mul", [parts.input(0), parts.constant(parts.attribute("alpha", 1.702))])
    parts.add("Mul", [parts.input(0), parts.add("Sigmoid", [scaled])], parts.node.output[0])


def _layer_norm(parts: _Parts, name: str, scale: str, bias: str) -> None:
    """Layer norm over the last axis. Written out: the operator of ONNX exists from opset 17 on only."""

    def mean(tensor: str) -> str:
        if parts.opset >= 18:
            return parts.add("ReduceMean", [tensor, parts.constant([-1], np.int64)], keepdims=1)
        return parts.add("ReduceMean", [tensor], axes=[-1], keepdims=1)

    centred = parts.add("Sub", [name, mean(name)])
    variance = mean(parts.add("Mul", [centred, centred]))
    epsilon = parts.constant(parts.attribute("epsilon", 1e-12))
    deviation = parts.add("Sqrt", [parts.add("Add", [variance, epsilon])])
    normal = parts.add("Mul", [parts.add("Div", [centred, deviation]), scale])
    if bias:
        parts.add("Add", [normal, bias], parts.node.output[0])
    else:
        parts.add("Identity", [normal], parts.node.output[0])


def _skip_layer_norm(parts: _Parts) -> None:
    total = parts.add("Add", [parts.input(0), parts.input(1)])
    if parts.input(4):
        total = parts.add("Add", [total, parts.input(4)])
    if len(parts.node.output) > 3 and parts.node.output[3]:
        parts.add("Identity", [total], parts.node.output[3])
    _layer_norm(parts, total, parts.input(2), parts.input(3))


def _identity(parts: _Parts) -> None:
    parts.add("Identity", [parts.input(0)], parts.node.output[0])


def _grid_sample(parts: _Parts) -> None:
    names = ("align_corners", "mode", "padding_mode")
    attributes = {name: parts.attribute(name, None) for name in names}
    kept = {name: value for name, value in attributes.items() if value is not None}
    parts.add("GridSample", list(parts.node.input), parts.node.output[0], **kept)


_RULES: dict[tuple[str, str], Callable[[_Parts], None]] = {
    (_MICROSOFT, "FusedConv"): _fused_conv,
    (_MICROSOFT, "FusedGemm"): _fused_gemm,
    (_MICROSOFT, "FusedMatMul"): _fused_matmul,
    (_MICROSOFT, "Gelu"): _gelu,
    (_MICROSOFT, "BiasGelu"): _bias_gelu,
    (_MICROSOFT, "FastGelu"): _fast_gelu,
    (_MICROSOFT, "QuickGelu"): _quick_gelu,
    (_MICROSOFT, "SkipLayerNormalization"): _skip_layer_norm,
    (_MICROSOFT, "GridSample"): _grid_sample,
    ("", "MemcpyToHost"): _identity,
    ("", "MemcpyFromHost"): _identity,
}
