"""The one door through which a foreign ONNX file comes in: what it holds is checked before anything is computed."""

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from sodeploy.artifacts import require_file
from sodeploy.errors import UserError
from sodeploy.file_kinds import kind_of_file

# Their results differ from run to run.
RANDOM_OPERATORS = (
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)
# Bits of one element. Four-bit types are packed, and strings have no fixed size.
_BITS = {
    TensorProto.FLOAT: 32, TensorProto.DOUBLE: 64, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16,
    TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.INT16: 16, TensorProto.UINT16: 16,
    TensorProto.INT32: 32, TensorProto.UINT32: 32, TensorProto.INT64: 64, TensorProto.UINT64: 64,
    TensorProto.BOOL: 8, TensorProto.INT4: 4, TensorProto.UINT4: 4,
}  # fmt: skip
_FIELDS = {
    TensorProto.FLOAT: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
}


_TEXT_SUFFIXES = (".textproto", ".prototxt", ".pbtxt", ".json", ".onnxjson", ".txt", ".onnxtxt", ".onnxtext")


def read_model(path: str | Path, remedy: str = "give an .onnx file") -> onnx.ModelProto:
    """The model in `path`, with its external data, which must lie in the same folder.

    Nothing is computed. The graph may still be one that no engine runs.

    Raises:
        UserError: the file is missing or not ONNX, a name in it is not text, or a constant does not have the size
            that its shape says. The message ends with `remedy`.
    """
    path = require_file(path, remedy)
    try:
        kind = kind_of_file(path)
        if kind is None or (kind.family == "text" and path.suffix in _TEXT_SUFFIXES):
            model = onnx.load(path)
            found = _problem(model)
        else:
            found, remedy = f"it is {kind.name}", kind.remedy or kind.of_model or remedy
    except UnicodeDecodeError:
        found = "a name in it is not UTF-8 text"
    except FileNotFoundError as error:
        found = f"its external data is missing ({one_line(error)})"
    except Exception as error:  # protobuf and onnx raise types of their own, undocumented
        found = one_line(error)
        if "parsing message" in found:
            found = f"it is damaged, cut short or of another kind ({found})"
    if found:
        raise UserError(f"{path} is not an ONNX file that can be read: {found}; {remedy}")
    return model


def one_line(error: BaseException) -> str:
    """The text of an error of another library, without line breaks or control characters, 300 characters at most."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
    return text if len(text) <= 300 else f"{text[:297]}..."


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those inside its nodes (the branches of an If, the body of a Loop)."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from graphs(inner)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes (the branches of an If, the body of a Loop), without those inside them."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of the model, also of branches, bodies and local functions."""
    for graph in graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def captured(node: onnx.NodeProto) -> list[str]:
    """The tensors of the outer graph that the graphs inside a node read, each once. The nodes may be out of order."""
    found: dict[str, None] = {}
    for graph in subgraphs(node):
        own = {value.name for value in (*graph.input, *graph.initializer)}
        own |= {name for inner in graph.node for name in inner.output}
        wanted = [name for inner in graph.node for name in (*inner.input, *captured(inner))]
        wanted += [output.name for output in graph.output]
        found |= dict.fromkeys(name for name in wanted if name and name not in own)
    return list(found)


def reads(*nodes: onnx.NodeProto) -> set[str]:
    """The tensors that nodes read, also those that only the graphs inside them read."""
    return {name for node in nodes for name in (*node.input, *captured(node)) if name}


def _problem(model: onnx.ModelProto) -> str | None:
    if not model.graph.node:
        return "it holds no graph, or an empty one"
    names: list[object] = [model.producer_name, model.domain]
    for node in all_nodes(model):
        names += [node.name, node.op_type, node.domain, *node.input, *node.output]
    for graph in graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            names += [value.name, *(dim.dim_param for dim in value.type.tensor_type.shape.dim)]
        for tensor in graph.initializer:
            if problem := _size_problem(tensor):
                return f"constant {tensor.name} {problem}"
            names.append(tensor.name)
    for entry in model.metadata_props:
        names += [entry.key, entry.value]
    if not all(isinstance(name, str) for name in names):  # protobuf gives bytes where it cannot decode them
        return "a name in it is not UTF-8 text"
    return None


def _size_problem(tensor: TensorProto) -> str | None:
    """How the declared shape of a constant and its data differ."""
    bits = _BITS.get(tensor.data_type)
    dims = list(tensor.dims)
    if any(dim < 0 for dim in dims):
        return f"has the shape {dims}"
    if bits is None:
        return None
    count = math.prod(dims)
    if tensor.HasField("raw_data"):
        expected, found, unit = (count * bits + 7) // 8, len(tensor.raw_data), "bytes"
    else:
        expected, unit = count, "numbers"
        found = len(getattr(tensor, _FIELDS.get(tensor.data_type, "int32_data")))
        if bits == 4:
            expected = (count + 1) // 2
    return None if expected == found else f"has the shape {dims}, {expected} {unit}, but holds {found}"
