"""The nodes that go on in fp32 in every fp16 or bf16 graph, whatever the plan says: the short type is not theirs."""

import onnx

from sodeploy.quant.emit.float_types import FloatType
from sodeploy.quant.normalize import STANDARD
from sodeploy.runtime.onnx_file import reads, subgraphs

# Inputs that an operator takes in float32 only, whatever the type of its data.
FLOAT32_INPUTS = {"Resize": (1, 2)}
_SIZES = ("Shape", "Size")


def fp32_only(model: onnx.ModelProto, body: FloatType) -> set[str]:
    """Names of the nodes that compute in fp32 where the rest computes in `body`.

    A node with a subgraph (If, Loop, Scan) keeps the types of its subgraph. An operator that ONNX does not define for
    `body`, that ONNX does not define at all, or that engines refuse in `body`, keeps its own. Numbers that depend on
    the size of the image alone, but not on its content, are sizes and coordinates: fp16 counts in steps of 2 from 2048
    on, bf16 from 256 on.
    """
    opset = max(body.opset, next(entry.version for entry in model.opset_import if entry.domain in STANDARD))
    of_image = {tensor.name for tensor in model.graph.input}
    of_size: set[str] = set()  # and of nothing else
    kept = set()
    for node in model.graph.node:
        read = reads(node)
        if node.op_type in _SIZES:
            of_size |= set(node.output)
        elif not of_image.isdisjoint(read):
            of_image |= set(node.output)
        elif not of_size.isdisjoint(read):
            of_size |= set(node.output)
            kept.add(node.name)
        if any(subgraphs(node)) or node.op_type in body.refused or not _is_defined(node, opset, body):
            kept.add(node.name)
    return kept


def rename_captured(node: onnx.NodeProto, names: dict[str, str]) -> None:
    """Let the subgraphs of a node read other tensors of the outer graph.

    Args:
        names: tensor of the outer graph -> the tensor to read instead.
    """
    for graph in subgraphs(node):
        own = {tensor.name for tensor in (*graph.input, *graph.initializer)}
        for inner in graph.node:
            seen = {old: new for old, new in names.items() if old not in own}
            inner.input[:] = [seen.get(name, name) for name in inner.input]
            rename_captured(inner, seen)
            own |= set(inner.output)
        for output in graph.output:
            if output.name in names and output.name not in own:  # passed on as it is: a node must make it
                given = f"{output.name}/passed_on"
                graph.node.append(onnx.helper.make_node("Identity", [names[output.name]], [given], name=given))
                output.name = given


def _is_defined(node: onnx.NodeProto, opset: int, body: FloatType) -> bool:
    """Whether ONNX defines an operator for `body` wherever it takes or gives floats."""
    if node.domain not in STANDARD or not onnx.defs.has(node.op_type, ""):
        return False
    schema = onnx.defs.get_schema(node.op_type, opset)
    types = {constraint.type_param_str: set(constraint.allowed_type_strs) for constraint in schema.type_constraints}
    apart = FLOAT32_INPUTS.get(node.op_type, ())
    inputs = [formal for index, formal in enumerate(schema.inputs) if index not in apart]
    used = {formal.type_str for formal in (*inputs, *schema.outputs)}
    return all(
        body.text in allowed or "tensor(float)" not in allowed for name, allowed in types.items() if name in used
    )
