"""If and Loop -> plain nodes: what is known before any image comes is decided now, the rest is computed and selected.

Calibration and quantization look at the tensors of one flat graph, and engines are fastest on one.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sodeploy.errors import UserError
from sodeploy.export.normal_form import sort_nodes
from sodeploy.runtime.onnx_file import one_line, reads
from sodeploy.runtime.onnx_session import start_session

_MOST_ROUNDS = 1024
_MOST_NODES = 50_000
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")


def flatten(model: onnx.ModelProto, source: str | Path) -> list[str]:
    """Replace every If and Loop of the graph by plain nodes, in place; a line for each kind of change.

    An If whose condition does not depend on the image becomes the branch that is taken. Of another If both branches
    are computed, and a Where selects. A Loop whose number of rounds does not depend on the image is unrolled. The
    input of the model must have its final shape.

    Raises:
        UserError: a Loop's rounds depend on the image, the branches of such an If differ in shape, or there is a Scan.
    """
    counts = {"decided": 0, "selected": 0, "unrolled": 0}
    while (node := _first(model.graph)) is not None:
        if len(model.graph.node) > _MOST_NODES:
            raise UserError(f"{source}: without its Loops the graph has more than {_MOST_NODES} nodes")
        if node.op_type == "If":
            counts[_replace_if(model, node, source)] += 1
        elif node.op_type == "Loop":
            _unroll(model, node, source)
            counts["unrolled"] += 1
        else:
            raise UserError(f"{source}: node {_called(node)} is a {node.op_type}, a subgraph that engines do not run; "
                            "export the network with its rounds written out")  # fmt: skip
    texts = {
        "decided": "{} If with a condition that no image changes became the branch that is taken",
        "selected": "{} If that depends on the image: both branches are computed, and one is selected (Where)",
        "unrolled": "{} Loop unrolled",
    }
    if any(counts.values()):
        sort_nodes(model.graph, source)
    return [texts[kind].format(count) for kind, count in counts.items() if count]


def _first(graph: onnx.GraphProto) -> onnx.NodeProto | None:
    return next((node for node in graph.node if node.op_type in ("If", "Loop", "Scan", "SequenceMap")), None)


def _called(node: onnx.NodeProto) -> str:
    return str(node.name or next((name for name in node.output if name), "without a name"))


def _replace_if(model: onnx.ModelProto, node: onnx.NodeProto, source: str | Path) -> str:
    branches = {item.name: item.g for item in node.attribute}
    condition = known_value(model, node.input[0])
    model.graph.node.remove(node)
    if condition is not None:
        branch = branches["then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"]
        _inline(model.graph, branch, f"{_called(node)}/taken", {}, list(node.output))
        return "decided"
    for name, branch in branches.items():
        _inline(model.graph, branch, f"{_called(node)}/{name}", {}, [f"{output}/{name}" for output in node.output])
    opset = max((int(entry.version) for entry in model.opset_import if entry.domain == ""), default=1)
    if opset < 9:
        raise UserError(f"{source}: node {_called(node)} is an If that depends on the image, in opset {opset}; export "
                        "it with opset 11 or newer, or without that branch")  # fmt: skip
    shapes = _shapes(model)
    for output in node.output:
        both = [f"{output}/then_branch", f"{output}/else_branch"]
        first, second = (shapes.get(name) for name in both)
        if first is not None and second is not None and first != second:
            raise UserError(f"{source}: node {_called(node)} is an If that depends on the image, and its branches give "
                            f"{first} and {second}; export the network without that branch")  # fmt: skip
        model.graph.node.append(helper.make_node("Where", [node.input[0], *both], [output], name=f"{output}/Where"))
    return "selected"


def _unroll(model: onnx.ModelProto, node: onnx.NodeProto, source: str | Path) -> None:
    body = node.attribute[0].g
    most = known_value(model, node.input[0]) if node.input[0] else np.array(_MOST_ROUNDS)
    carried = list(node.input[2:])
    condition = node.input[1] if len(node.input) > 1 else ""
    this_loop = f"{source}: node {_called(node)} is a Loop"
    if most is None:
        raise UserError(f"{this_loop} whose rounds depend on the image; export the network without it")
    rounds = int(most.reshape(-1)[0])
    scanned: list[list[str]] = [[] for _ in body.output[1 + len(carried) :]]
    model.graph.node.remove(node)
    number = 0
    while True:
        going = known_value(model, condition) if condition else np.array(True)
        if going is None:
            raise UserError(f"{this_loop} whose end depends on the image; export the network without it")
        if number >= rounds or not bool(going.reshape(-1)[0]):
            break
        if number >= _MOST_ROUNDS:
            raise UserError(f"{this_loop} of more than {_MOST_ROUNDS} rounds; export the network without it")
        prefix = f"{_called(node)}/{number}"
        count, before = f"{prefix}/round", f"{prefix}/going"
        model.graph.initializer.append(numpy_helper.from_array(np.array(number, np.int64), count))
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), before))
        outer = dict(zip([value.name for value in body.input], [count, before, *carried], strict=True))
        outputs = [f"{prefix}/output_{index}" for index in range(len(body.output))]
        _inline(model.graph, body, prefix, outer, outputs)
        condition, carried = outputs[0], outputs[1 : 1 + len(carried)]
        for values, name in zip(scanned, outputs[1 + len(carried) :], strict=True):
            values.append(name)
        number += 1
    for wanted, name in zip(node.output, carried, strict=False):
        if wanted:
            model.graph.node.append(helper.make_node("Identity", [name], [wanted], name=f"{wanted}/Identity"))
    for wanted, values in zip(node.output[len(carried) :], scanned, strict=False):
        if not wanted:
            continue
        if not values:
            raise UserError(f"{this_loop} of no rounds, whose result {wanted} is empty; export the network without it")
        _stack(model, values, wanted)


def _stack(model: onnx.ModelProto, values: list[str], wanted: str) -> None:
    """Put the results of all rounds behind one another along a new first axis."""
    opset = max((int(entry.version) for entry in model.opset_import if entry.domain == ""), default=1)
    rows = []
    for name in values:
        row = f"{name}/row"
        if opset >= 13:
            axis = f"{row}/axes"
            model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), axis))
            model.graph.node.append(helper.make_node("Unsqueeze", [name, axis], [row], name=f"{row}/Unsqueeze"))
        else:
            model.graph.node.append(helper.make_node("Unsqueeze", [name], [row], name=f"{row}/Unsqueeze", axes=[0]))
        rows.append(row)
    model.graph.node.append(helper.make_node("Concat", rows, [wanted], name=f"{wanted}/Concat", axis=0))


def _inline(
    graph: onnx.GraphProto, inner: onnx.GraphProto, prefix: str, outer: dict[str, str], outputs: list[str]
) -> None:
    """Copy the nodes of a branch or body into the graph.

    Args:
        prefix: makes the names of what the inner graph makes unique.
        outer: input of the inner graph -> its name outside.
        outputs: the names that the inner graph's outputs get.
    """
    names = dict(outer)
    names |= {tensor.name: f"{prefix}/{tensor.name}" for tensor in inner.initializer}
    names |= {name: f"{prefix}/{name}" for node in inner.node for name in node.output if name}
    for tensor in inner.initializer:
        copy = graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = names[tensor.name]
    for node in inner.node:
        copy_of = onnx.NodeProto()
        copy_of.CopyFrom(node)
        copy_of.name = f"{prefix}/{node.name or node.output[0]}"
        _rename(copy_of, names)
        graph.node.append(copy_of)
    for value, output in zip(inner.output, outputs, strict=True):
        if output:
            made = names.get(value.name, value.name)
            graph.node.append(helper.make_node("Identity", [made], [output], name=f"{output}/Identity"))


def _rename(node: onnx.NodeProto, names: dict[str, str]) -> None:
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            inside = {value.name for value in (*attribute.g.input, *attribute.g.initializer)}
            inside |= {name for inner in attribute.g.node for name in inner.output}
            visible = {old: new for old, new in names.items() if old not in inside}
            for inner in attribute.g.node:
                _rename(inner, visible)
            for output in attribute.g.output:
                output.name = visible.get(output.name, output.name)


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """The shapes that are wholly known."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # a shape that contradicts itself shows when the graph is run
        inferred = model.graph
    found = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            found[value.name] = [dim.dim_value for dim in dims]
    return found


def known_value(model: onnx.ModelProto, name: str) -> np.ndarray | None:
    """The value of a tensor that no image can change; None if one can.

    A tensor is such if it is computed from constants and from shapes that are known.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    shapes = _shapes(model)
    nodes: dict[int, onnx.NodeProto] = {}
    used: dict[str, onnx.TensorProto] = {}
    waiting, seen = [name], {name}
    while waiting:
        wanted = waiting.pop()
        if wanted in constants:
            used[wanted] = constants[wanted]
            continue
        node = producers.get(wanted)
        if node is None or node.op_type in _RANDOM or node.op_type in ("If", "Loop", "Scan"):
            return None
        if node.op_type == "Shape" and node.input[0] in shapes:
            span = {item.name: item.i for item in node.attribute}
            dims = shapes[node.input[0]][span.get("start", 0) : span.get("end")]
            used[wanted] = numpy_helper.from_array(np.array(dims, np.int64), wanted)
            continue
        if id(node) not in nodes:
            nodes[id(node)] = node
            new = reads(node) - seen
            seen |= new
            waiting.extend(new)
    if name in used:
        return np.asarray(numpy_helper.to_array(used[name]))
    output = helper.make_empty_tensor_value_info(name)
    graph = helper.make_graph(list(nodes.values()), "known", [], [output], list(used.values()))
    small = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    sort_nodes(small.graph, "the condition")
    session = start_session(small, name="the part that decides an If or a Loop")
    try:
        return np.asarray(session.run([name], {})[0])
    except Exception as error:  # onnxruntime's errors have no base class in common
        raise UserError(f"what decides an If or a Loop cannot be computed: {one_line(error)}") from None
