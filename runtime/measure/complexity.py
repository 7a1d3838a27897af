"""Parameters and multiply-accumulates of an ONNX graph, whatever it was quantised or cast to."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sodeploy.errors import UserError
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.onnx_session import start_session

if TYPE_CHECKING:
    import onnx

_MULTIPLYING = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Which inputs of an operator hold learned values; a batch norm's running mean and variance are not counted as such.
_WEIGHT_INPUTS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "PRelu": (1,),
    "Add": (0, 1),
    "Mul": (0, 1),
}
# What may stand between a weight as stored and the operator that uses it.
_TRANSPARENT = (
    "DequantizeLinear",
    "QuantizeLinear",
    "Cast",
    "Identity",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)


@dataclass(frozen=True)
class Complexity:
    """The counted cost of a network."""

    params: int
    macs: int  # for one image at the contract's size
    weights: str  # how its weights are used: fp32 | fp16 | bf16 | int8, the smallest that any has


def complexity(path: str | Path, contract: Contract) -> Complexity:
    """Count the graph at `path`, for one image of the contract's size.

    MACs are those of Conv, ConvTranspose, Gemm and MatMul, biases and everything else left out, as is usual: 19.756 G
    for U²-Netp at 320x320, 15.593 G for ISNet. Parameters are the learned values these operators and the
    normalisations use, each once, quantised ones included, scales, zero points and constants excluded. Batch norm
    folded into the convolutions takes its own parameters with it: 1.131 M of U²-Netp become 1.125 M.

    The shapes come from running the graph once, on zeros, so that dynamic graphs are counted as surely as static ones.

    Raises:
        UserError: onnx or onnxruntime is not installed.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401 - only to say which package is missing
    except ImportError as error:
        raise UserError(f"counting {path} needs {error.name}; install it: pip install 'sodeploy[cpu,bench]'") from None

    model = onnx.load(path)
    counted = [node for node in model.graph.node if node.op_type in _MULTIPLYING]
    wanted = sorted({name for node in counted for name in (*node.input[:2], node.output[0])})
    params, weights = _params(model.graph)

    del model.graph.output[:]
    for index, name in enumerate(wanted):
        model.graph.node.append(onnx.helper.make_node("Shape", [name], [f"shape_of_{index}"]))
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(f"shape_of_{index}", onnx.TensorProto.INT64, [None])
        )
    session = start_session(model, name=path)
    batch = contract.batch or 1
    dtype = np.float16 if session.get_inputs()[0].type == "tensor(float16)" else np.float32
    zeros = np.zeros((batch, 3, contract.height, contract.width), dtype)
    measured = session.run(None, {contract.input_name: zeros}) if wanted else []
    shapes = {name: [int(extent) for extent in shape] for name, shape in zip(wanted, measured, strict=True)}
    return Complexity(params, sum(_macs(node, shapes) for node in counted) // batch, weights)


def _macs(node: "onnx.NodeProto", shapes: dict[str, list[int]]) -> int:
    first, second, out = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
    if node.op_type == "Conv":
        return prod(out) * prod(second[1:])  # weight (Cout, Cin / groups, kh, kw)
    if node.op_type == "ConvTranspose":
        return prod(first) * prod(second[1:])  # weight (Cin, Cout / groups, kh, kw)
    if node.op_type == "Gemm":
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return prod(out) * first[0 if transposed else 1]
    return prod(out) * first[-1]


def _params(graph: "onnx.GraphProto") -> tuple[int, str]:
    """How many learned values the graph uses, and in which precision."""
    import onnx

    producer = {output: node for node in graph.node for output in node.output}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    used: dict[str, int] = {}
    precisions = set()
    short = {onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}
    for node in graph.node:
        for index in _WEIGHT_INPUTS.get(node.op_type, ()):
            name = node.input[index] if index < len(node.input) else ""
            passed = set()
            while name in producer and producer[name].op_type in _TRANSPARENT:
                passed.add(producer[name].op_type)
                name = producer[name].input[0]
            shape = list(initializers[name].dims) if name in initializers else _constant_shape(producer.get(name))
            if node.op_type in ("Add", "Mul") and sum(extent > 1 for extent in shape) != 1:
                continue  # not one value per channel: an attention mask, a constant factor
            if shape:
                used[name] = prod(shape)
                if node.op_type in _MULTIPLYING and index == 1:
                    element = initializers[name].data_type if name in initializers else onnx.TensorProto.FLOAT
                    precisions.add("int8" if "DequantizeLinear" in passed else short.get(element, "fp32"))
    return sum(used.values()), next((name for name in ("int8", "fp16", "bf16") if name in precisions), "fp32")


def _constant_shape(node: "onnx.NodeProto | None") -> list[int]:
    """The shape of a Constant node's tensor; [] for anything else."""
    if node is not None and node.op_type == "Constant":
        for attribute in node.attribute:
            if attribute.name == "value":
                return list(attribute.t.dims)
    return []
