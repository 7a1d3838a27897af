"""Checks a quantized graph against the rules of engines, before an engine sees it, and names the node.

NVIDIA's parsers answer a broken rule with a line that often names no node. They let two mistakes pass: uint8 is cut at
127 without an error, and different scales along one path cost an extra kernel each. (Rules: NVIDIA's notes on
IQuantizeLayer in NvInfer.h, and its recommendations on the places of Q/DQ nodes.)
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from sodeploy.errors import UserError
from sodeploy.quant.disjoint_sets import DisjointSets
from sodeploy.quant.graph import PASSING, QUANTIZING, WEIGHTED, attribute, channel_axis
from sodeploy.runtime import openvino_session
from sodeploy.runtime.onnx_session import session_options, start_optimized
from sodeploy.runtime.session import installed_engines
from sodeploy.stages import command

# Operators whose float inputs must be of one type; the sizes and scales of a Resize, for one, need not be.
_ONE_TYPE = (*WEIGHTED, "Add", "Sub", "Mul", "Div", "Concat", "PRelu", "Max", "Min")
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_LARGE = 2**16  # numbers of a constant of which the shape alone is read
_FLOAT_FORMS = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


def check_tensorrt(model: onnx.ModelProto, source: str | Path = "the tensorrt graph") -> None:
    """Refuse a graph that TensorRT would refuse or compute wrongly.

    Zero points must be 0 and integers int8. Scales must be constant, finite and positive in the type in which they are
    stored (a scale that underflowed in fp16 is 0), and that type must be the type of the values they quantize.
    Activations have one scale per tensor, weights one per output channel. Biases are float. No operator mixes float
    types. A graph without Q/DQ passes.

    Raises:
        UserError: the first node, in the graph's order, that breaks a rule.
    """
    for node, problem in _broken_rules(model):
        raise UserError(
            f"{source}: node {node} {problem}; quantize the float32 model with {command('build_engine')}, "
            "or mend the scale in its plan"
        )


def unequal_scales(model: onnx.ModelProto) -> list[str]:
    """A line for each set of tensors that carry the same values but are quantized with different scales.

    Q and DQ move across a MaxPool, a Resize or a Concat only if both sides have the same scale. With different scales
    the results are right, but each costs a kernel more.
    """
    constants = _constants(model)
    group = _carrying_the_same(model)
    scales: dict[str, dict[float, str]] = defaultdict(dict)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants:
            scale = constants.get(node.input[1])
            if scale is not None and scale.size == 1:
                scales[group(node.input[0])].setdefault(float(scale.reshape(())), node.name)
    return [
        "nodes " + ", ".join(f"{name} (scale {scale:.4g})" for scale, name in found.items()) + " quantize the same "
        "values with different scales, which costs a kernel each: give their tensors one range"
        for found in scales.values()
        if len(found) > 1
    ]


def check_cpu(model: onnx.ModelProto, file: Path | None = None) -> list[str]:
    """Names of the layers with integer weights that onnxruntime's optimizer would leave in float.

    Such a layer runs as dequantize, float convolution, quantize: slower than the float32 network. Layers that a plan
    leaves in float have float weights and are not listed.

    Args:
        file: holds the model, if there is one: onnxruntime then needs no copy of the weights.
    """
    import onnxruntime

    integer = _with_integer_weights(model)
    options = session_options(threads=1)
    # Beyond this level only layouts change, and with them the names of nodes.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    _, optimized = start_optimized(file or model, options, name="the cpu graph")
    in_float = {node.name for node in optimized.graph.node if node.op_type in _FLOAT_FORMS}
    return [name for name in integer if name in in_float]


def tensorrt_warnings(model: onnx.ModelProto, file: Path, path: Path) -> list[str]:
    """`check_tensorrt`; then a line for each set of `unequal_scales`."""
    check_tensorrt(model, path)
    return [f"{path}: {problem}" for problem in unequal_scales(model)]


def cpu_warnings(model: onnx.ModelProto, file: Path, path: Path) -> list[str]:
    """A line where onnxruntime would run the graph slowly on a CPU."""
    if not _with_integer_weights(model):
        return [
            f"{path} computes in fp32: onnxruntime has no integer kernels for its layers, so int8 does not pay there"
        ]
    if left := check_cpu(model, file):
        return [
            f"{path}: onnxruntime will compute {len(left)} int8 layer(s) in float, slowly: {', '.join(left)}; "
            "set them to fp16 in the plan"
        ]
    return []


class Unreadable(Exception):
    """The engine that a graph is for does not take it. The other graphs of the build are none the worse."""


def openvino_warnings(model: onnx.ModelProto, file: Path, path: Path) -> list[str]:
    """A line where OpenVINO, if it is installed, cannot run or computes int8 layers in float.

    Raises:
        Unreadable: OpenVINO refuses the graph, for example a pooling window larger than a small feature map.
    """
    if "openvino" not in installed_engines():
        return []
    if broken := openvino_session.problem():
        return [f"{path} has not been run in OpenVINO: {broken}"]
    wanted = len(_with_integer_weights(model))
    try:
        kernels = openvino_session.kernels_of(file, path)
    except UserError as error:
        raise Unreadable(str(error).removeprefix(f"{path}: ")) from None
    run = sum(count for precision in ("i8", "u8") for count in kernels.get(precision, {}).values())
    if run < wanted:
        return [f"{path}: OpenVINO computes {wanted - run} of {wanted} int8 layers in float"]
    return []


def _broken_rules(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """(node, problem)"""
    constants = _constants(model)
    types = _types(model)
    producer = {output: node for node in model.graph.node for output in node.output}
    readers = defaultdict(list)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            readers[name].append((node, index))

    for node in model.graph.node:
        if node.op_type in QUANTIZING:
            reading = readers[node.output[0]]
            if any(reader.op_type in WEIGHTED and index == 2 for reader, index in reading):
                yield node.name, "dequantizes a bias, which must be float"
            for problem in _broken_by_pair(node, constants, types):
                yield node.name, problem
            scale = constants.get(node.input[1])
            if scale is None:
                continue
            before = producer.get(node.input[0])
            if before is not None and before.op_type == "QuantizeLinear":
                first = constants.get(before.input[1])
                if first is not None and not np.array_equal(first, scale):
                    yield node.name, f"dequantizes with another scale than {before.name} quantized with"
            if scale.size > 1:
                if node.input[0] not in constants:
                    yield node.name, f"quantizes an activation with {scale.size} scales; it can have one"
                for reader, index in reading:
                    if reader.op_type in WEIGHTED and index == 1:
                        yield from _wrong_axis(node, reader, constants[node.input[0]], scale.size)
        elif node.op_type in _ONE_TYPE:
            found = {types.get(name) for name in node.input} & set(_FLOATS)
            if len(found) > 1:
                names = " and ".join(sorted(TensorProto.DataType.Name(number).lower() for number in found if number))
                yield node.name, f"({node.op_type}) mixes {names}"


def _broken_by_pair(node: onnx.NodeProto, constants: dict[str, np.ndarray], types: dict[str, int]) -> Iterator[str]:
    """The rules that one Q or DQ node breaks. Ends early, with a problem, if its scale is not constant."""
    verb = "quantizes to" if node.op_type == "QuantizeLinear" else "dequantizes from"
    integer = types.get(node.output[0] if node.op_type == "QuantizeLinear" else node.input[0], TensorProto.UINT8)
    if integer == TensorProto.UINT8:
        yield f"{verb} uint8, which TensorRT would cut at 127"
    elif integer != TensorProto.INT8:
        yield f"{verb} {TensorProto.DataType.Name(integer).lower()}; only int8 is used here"
    if len(node.input) > 2 and node.input[2]:
        zero_point = constants.get(node.input[2])
        if zero_point is None:
            yield "has a zero point that is computed; it must be a constant 0"
        elif np.any(zero_point):
            yield f"has zero point {zero_point[zero_point != 0].reshape(-1)[0]}; it must be 0"
    scale = constants.get(node.input[1])
    if scale is None:
        yield "has a scale that is computed; it must be a constant"
        return
    bad = ~(np.isfinite(scale) & (scale > 0))
    if np.any(bad):
        least = np.asarray(scale[bad]).reshape(-1)[0]
        underflow = " (it underflowed)" if least == 0 and scale.dtype == np.float16 else ""
        yield f"has a {scale.dtype} scale of {least}{underflow}; scales must be finite and positive"
    body = types.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
    if body in _FLOATS and body != types.get(node.input[1]):
        kind, stored = (TensorProto.DataType.Name(number).lower() for number in (body, types[node.input[1]]))
        yield f"quantizes {kind} values with a {stored} scale; scales have the body's type"


def _wrong_axis(
    node: onnx.NodeProto, reader: onnx.NodeProto, weight: np.ndarray, scales: int
) -> Iterator[tuple[str, str]]:
    axis = attribute(node, "axis", 1) % weight.ndim
    wanted = channel_axis(reader)
    if axis != wanted:
        yield node.name, f"scales the weight of {reader.name} along axis {axis}; its output channels are axis {wanted}"
    elif scales != weight.shape[axis]:
        yield node.name, f"has {scales} scales for the {weight.shape[axis]} output channels of {reader.name}"


def _constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Constants by name. The Q/DQ of a constant counts as a constant too, with the values before it."""
    found = {tensor.name: _values(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = _values(node.attribute[0].t)
        elif node.op_type in QUANTIZING and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def _values(tensor: onnx.TensorProto) -> np.ndarray:
    """The values of a constant; zeros of its shape for a weight, which may be large or lie in a separate file."""
    if tensor.data_location == TensorProto.EXTERNAL or prod(tensor.dims) >= _LARGE:
        return np.broadcast_to(np.zeros(1, np.float32), tuple(tensor.dims))
    return np.asarray(numpy_helper.to_array(tensor))


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Tensor -> ONNX element type, where shape inference finds it."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {info.name: info.type.tensor_type.elem_type for info in (*graph.input, *graph.value_info, *graph.output)}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _carrying_the_same(model: onnx.ModelProto) -> Callable[[str], str]:
    """A function: tensor -> representative of the tensors that hold the same values, before or after Q/DQ."""
    sets = DisjointSets[str]()
    for node in model.graph.node:
        joined = node.input if node.op_type == "Concat" else node.input[:1]
        if node.op_type in (*PASSING, *QUANTIZING, "Concat"):
            for name in joined:
                for output in node.output:
                    sets.join(output, name)
    return sets.find


def _with_integer_weights(model: onnx.ModelProto) -> list[str]:
    """Names of the weighted nodes whose weight is stored as integers."""
    constants = _constants(model)
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in WEIGHTED and node.input[1] in dequantized and node.input[1] in constants
    ]
