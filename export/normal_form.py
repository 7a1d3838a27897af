"""Any valid spelling of an ONNX graph -> the one that the rest of this room reads.

Files of version 3 list their weights among the inputs, converters leave nodes out of order, exporters pack layers into
local functions, others leave dropout in training mode or name operator sets that they do not use. onnxruntime takes all
of them; onnx's own tools, onnxsim and TensorRT do not.
"""

import copy
import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from onnx import numpy_helper

from sodeploy.errors import UserError
from sodeploy.export.contrib import unfuse
from sodeploy.export.simplify import IR_VERSION
from sodeploy.runtime.onnx_file import all_nodes, graphs, one_line, reads

STANDARD = ("", "ai.onnx")
_LARGEST_DENSE = 2**30  # bytes
_LARGEST_ITEM = 8  # bytes of a value
_LEAST_IR_VERSION = 8  # initializers need not be inputs, functions exist, and onnx's own converter works on it


def normal_form(model: onnx.ModelProto, source: str | Path) -> tuple[onnx.ModelProto, list[str]]:
    """`model` in one plain spelling, and a line for each change that a person may want to know.

    Flat functions, sorted nodes, inference instead of training, only standard operators; weights are no inputs. If and
    Loop stay (see `control_flow`).

    Raises:
        UserError: the graph has a cycle or an operator that is not ONNX's; `source` and the operator are named.
    """
    remarks: list[str] = []
    result = copy.deepcopy(model)
    result.ir_version = min(max(result.ir_version, _LEAST_IR_VERSION), IR_VERSION)
    if count := store_dense(result, source):
        remarks.append(f"{count} sparse constants are stored dense; engines read no others")
    weights_are_no_inputs(result)
    if result.functions:
        remarks.append(f"{len(result.functions)} local functions were inlined")
        result = _inlined(result, source)
    if trained := leave_training(result):
        kinds = ", ".join(f"{kind} ({count})" for kind, count in Counter(trained).items())
        remarks.append(f"it was exported in training mode: {kinds}; the adopted graph computes inference")
    if fused := unfuse(result, source):
        kinds = ", ".join(f"{kind} ({count})" for kind, count in Counter(fused).items())
        remarks.append(f"fused operators of onnxruntime were taken apart: {kinds}")
    moved = [sort_nodes(graph, source) for graph in graphs(result.graph)]
    if any(moved):
        remarks.append("its nodes were out of order")
    _drop_unused_domains(result)
    return result, remarks


def store_dense(model: onnx.ModelProto, source: str | Path) -> int:
    """Write sparse constants, of nodes and among the initializers, as dense ones; their number.

    Raises:
        UserError: one would take more than 1 GiB, or its indices lie outside it.
    """
    count = 0
    for graph in graphs(model.graph):
        graph.initializer.extend(_dense(tensor, tensor.values.name, source) for tensor in graph.sparse_initializer)
        count += len(graph.sparse_initializer)
        del graph.sparse_initializer[:]
    for node in all_nodes(model):
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "sparse_value":
                dense = _dense(attribute.sparse_tensor, node.output[0], source)
                attribute.CopyFrom(onnx.helper.make_attribute("value", dense))
                count += 1
    return count


def _dense(sparse: onnx.SparseTensorProto, name: str, source: str | Path) -> onnx.TensorProto:
    if sparse.values.data_location == onnx.TensorProto.EXTERNAL:
        raise UserError(f"{source}: sparse constant {name} lies in another file; store it dense")
    if min(sparse.dims, default=1) < 0 or math.prod(sparse.dims) * _LARGEST_ITEM > _LARGEST_DENSE:
        shape = "x".join(map(str, sparse.dims))
        raise UserError(f"{source}: sparse constant {name} of {shape} values is too large to store dense")
    try:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        dense[np.unravel_index(indices, dense.shape) if indices.ndim == 1 else tuple(indices.T)] = values
    except (ValueError, IndexError, TypeError) as error:
        raise UserError(
            f"{source}: sparse constant {name} is broken ({one_line(error)}); export the file again"
        ) from None
    return numpy_helper.from_array(dense, name)


def weights_are_no_inputs(model: onnx.ModelProto) -> None:
    """Take the initializers out of the inputs, where files of IR version 3 must list them."""
    constants = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(kept)


def free_dims(model: onnx.ModelProto) -> bool:
    """Declare dimensions of 0 or less, by which some exporters mean any number, as free; whether there were any."""
    changed = False
    for value in (*model.graph.input, *model.graph.output):
        for index, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value <= 0:
                dim.dim_param = f"{value.name}_{index}"
                changed = True
    return changed


def leave_training(model: onnx.ModelProto) -> list[str]:
    """Turn dropout and batch norm in training mode into inference; the operators that were changed."""
    changed = []
    constants = {tensor.name: tensor for graph in graphs(model.graph) for tensor in graph.initializer}
    for node in all_nodes(model):
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    read = {name for node in all_nodes(model) for name in node.input}
    read |= {output.name for graph in graphs(model.graph) for output in graph.output}
    for node in all_nodes(model):
        if node.domain not in STANDARD:
            continue
        if node.op_type == "BatchNormalization":
            mode = next((item for item in node.attribute if item.name == "training_mode"), None)
            if (mode is not None and mode.i) or len([name for name in node.output if name]) > 1:
                changed.append(node.op_type)
            if mode is not None:
                node.attribute.remove(mode)
            del node.output[1:]
        elif node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            flag = constants.get(node.input[2])
            if flag is None or bool(np.any(numpy_helper.to_array(flag))):
                changed.append(node.op_type)
            del node.input[2:]
            if len(node.output) > 1 and node.output[1] not in read:
                del node.output[1:]
    made = {name for node in model.graph.node for name in node.output}
    made |= {value.name for value in (*model.graph.input, *model.graph.initializer)}
    for output in [output for output in model.graph.output if output.name not in made]:
        model.graph.output.remove(output)  # running statistics that training would have updated
    return changed


def sort_nodes(graph: onnx.GraphProto, source: str | Path) -> bool:
    """Put every node behind those whose results it reads, otherwise in the order they had; True if any moved.

    Raises:
        UserError: nodes wait for one another.
    """
    made_here = {name for node in graph.node for name in node.output if name}
    waiting = {index: reads(node) & made_here for index, node in enumerate(graph.node)}
    readers: dict[str, list[int]] = {}
    for index, names in waiting.items():
        for name in names:
            readers.setdefault(name, []).append(index)
    ready = [index for index, names in reversed(waiting.items()) if not names]  # the first at the end
    order: list[int] = []
    while ready:
        index = ready.pop()
        order.append(index)
        freed = []
        for name in graph.node[index].output:
            for reader in readers.get(name, ()):
                waiting[reader].discard(name)
                if not waiting[reader]:
                    freed.append(reader)
        ready = sorted({*ready, *freed}, reverse=True)
    if len(order) < len(graph.node):
        stuck = next(node for index, node in enumerate(graph.node) if waiting[index])
        raise UserError(f"{source}: node {stuck.name or stuck.output[0]} ({stuck.op_type}) waits for its own result")
    if order == sorted(order):
        return False
    nodes = [graph.node[index] for index in order]
    del graph.node[:]
    graph.node.extend(nodes)
    return True


def _inlined(model: onnx.ModelProto, source: str | Path) -> onnx.ModelProto:
    for convert in (False, True):  # functions may be of another opset than the model
        try:
            inlined = onnx.inliner.inline_local_functions(model, convert)
        except Exception as error:  # RuntimeError of C++, and others
            problem = one_line(error)
            continue
        if not inlined.functions:
            return inlined
        problem = f"{inlined.functions[0].name} is left"
    raise UserError(f"{source}: its local functions cannot be inlined ({problem}); export it without functions")


def _drop_unused_domains(model: onnx.ModelProto) -> None:
    used = {"" if node.domain in STANDARD else node.domain for node in all_nodes(model)} | {""}
    versions = {"" if entry.domain in STANDARD else entry.domain: entry.version for entry in model.opset_import}
    del model.opset_import[:]
    model.opset_import.extend(
        onnx.helper.make_opsetid(domain, version) for domain, version in versions.items() if domain in used
    )
    for node in all_nodes(model):
        if node.domain in STANDARD:
            node.ClearField("domain")
