"""An older or newer opset, and other float types -> float32 in an opset that all our engines read."""

import re
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
from onnx import TensorProto, helper, numpy_helper

from sodeploy.errors import UserError
from sodeploy.export.normal_form import STANDARD
from sodeploy.runtime.onnx_file import one_line

OLDEST_OPSET = 17
NEWEST_OPSET = 21  # onnxruntime 1.20 reads no newer
_LOWEST_OPSET = 7  # what onnx's converter and onnxruntime begin with
_FLOAT = TensorProto.FLOAT
# Operators whose newest form only takes more types than the one of NEWEST_OPSET; onnx's converter cannot lower them.
_ONLY_MORE_TYPES = ("GlobalMaxPool",)
_SET_ASIDE = "sodeploy.set_aside"  # a domain that onnx's converter leaves alone
# The operator in the messages of onnx's converter.
_STUCK = re.compile(r"No Previous Version of (\w+)|No Adapter (?:From|To) Version \S+ for (\w+)|adapt_([a-z]+)_\d")


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators."""
    return max((int(entry.version) for entry in model.opset_import if entry.domain in STANDARD), default=1)


def set_opset(model: onnx.ModelProto, source: str | Path) -> onnx.ModelProto:
    """`model`, in an opset from 17 to 21.

    Upsample and the Resize of opset 10 sample at asymmetric coordinates (pixel i lies at i / scale); onnx's converter
    makes half-pixel ones of them, so their rule is written into the converted node.

    Raises:
        UserError: an operator of it cannot be converted; `source` is named.
    """
    before = opset_of(model)
    if OLDEST_OPSET <= before <= NEWEST_OPSET:
        return model
    if before < _LOWEST_OPSET:
        raise UserError(f"{source} has opset {before}, {_LOWEST_OPSET} is the oldest that can be raised; "
                        "export it again with a newer opset")  # fmt: skip
    if before > NEWEST_OPSET:
        model = _written_out(model, source)
        return _converted(model, NEWEST_OPSET, source)
    resizing = [node for node in model.graph.node if node.op_type in ("Upsample", "Resize")] if before < 11 else []
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    shrinking = [_shrinks(node, constants) for node in resizing]
    result = _converted(model, OLDEST_OPSET, source)
    # The converter gives results other names, but keeps the order of nodes.
    found = [node for node in result.graph.node if node.op_type == "Resize"] if resizing else []
    for node, shrinks in zip(found, shrinking, strict=True):
        _set(node, "coordinate_transformation_mode", "asymmetric")
        # onnxruntime rounds up where the nearest mode of these opsets shrinks, and down where it enlarges.
        _set(node, "nearest_mode", "ceil" if shrinks else "floor")
    return result


def _shrinks(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> bool:
    scales = next((list(item.floats) for item in node.attribute if item.name == "scales"), None)
    if scales is None and len(node.input) > 1 and node.input[1] in constants:
        scales = list(constants[node.input[1]])
    return bool(scales) and min(scales or [1]) < 1


def _set(node: onnx.NodeProto, name: str, value: str) -> None:
    for item in [item for item in node.attribute if item.name == name]:
        node.attribute.remove(item)
    node.attribute.append(helper.make_attribute(name, value))


def _converted(model: onnx.ModelProto, opset: int, source: str | Path) -> onnx.ModelProto:
    before = opset_of(model)
    if opset < before:
        _set_aside(model, "", _SET_ASIDE)
    try:
        result = onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # RuntimeError of C++, and others
        raise UserError(f"{source}: {_refusal(error, before, opset)}") from None
    finally:
        _set_aside(model, _SET_ASIDE, "")
    _set_aside(result, _SET_ASIDE, "")
    return result


def _set_aside(model: onnx.ModelProto, domain: str, other: str) -> None:
    """Move the operators `_ONLY_MORE_TYPES` from one domain to another."""
    for node in model.graph.node:
        if node.op_type in _ONLY_MORE_TYPES and node.domain == domain:
            node.domain = other
    for entry in [entry for entry in model.opset_import if entry.domain == _SET_ASIDE]:
        model.opset_import.remove(entry)
    if other:
        model.opset_import.append(helper.make_opsetid(other, 1))


def _refusal(error: Exception, before: int, opset: int) -> str:
    """The converter's reason with the operator that it stopped at, and the next step."""
    stuck = _STUCK.search(str(error))
    kind = next(filter(None, stuck.groups())) if stuck else ""
    lacking = f"its {kind.capitalize() if kind.islower() else kind} has no form in it" if kind else one_line(error)
    if opset > before:
        return f"opset {before} cannot be raised to {opset} ({lacking}); export it with a newer opset"
    return (
        f"opset {before} cannot be lowered to {opset}, which all engines read ({lacking}); export it with opset {opset}"
        + (f", or without {kind}" if kind else "")
    )


def _written_out(model: onnx.ModelProto, source: str | Path) -> onnx.ModelProto:
    """`model` with the operators that NEWEST_OPSET lacks, and that ONNX defines by others, replaced by these."""
    before = opset_of(model)
    kinds = sorted({node.op_type for node in model.graph.node if _is_defined_by_others(node, before)})
    if not kinds:
        return model
    try:
        model = onnx.shape_inference.infer_shapes(model)
        _complete_for_inlining(model, kinds)
        return onnx.inliner.inline_selected_functions(
            model, [("", kind) for kind in kinds], exclude=False, inline_schema_functions=True
        )
    except Exception as error:  # RuntimeError of C++, and others
        raise UserError(
            f"{source}: its {', '.join(kinds)} of opset {before} cannot be written out in older operators "
            f"({one_line(error)}); export it with opset {NEWEST_OPSET} or lower"
        ) from None


def _complete_for_inlining(model: onnx.ModelProto, kinds: list[str]) -> None:
    """State what onnx's inliner does not look up: types of constants, and attributes that are left at their default."""
    graph, opset = model.graph, opset_of(model)
    known = {value.name for value in (*graph.value_info, *graph.input)}
    for tensor in graph.initializer:
        if tensor.name not in known:
            graph.value_info.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for node in graph.node:
        if node.op_type in kinds and node.domain in STANDARD:
            given = {item.name for item in node.attribute}
            for name, known_attribute in onnx.defs.get_schema(node.op_type, opset, "").attributes.items():
                if name not in given and known_attribute.default_value.name:
                    node.attribute.append(known_attribute.default_value)


def _is_defined_by_others(node: onnx.NodeProto, opset: int) -> bool:
    if node.domain not in STANDARD or onnx.defs.has(node.op_type, NEWEST_OPSET, ""):
        return False
    if not onnx.defs.has(node.op_type, opset, ""):
        return False
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    return bool(schema.has_function or schema.has_context_dependent_function)


def drop_idle_casts(model: onnx.ModelProto) -> None:
    """Drop casts of a float32 tensor to float32, which `to_float32` leaves; they would stand between a layer and its
    activation."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    floats = {
        value.name
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
        if value.type.tensor_type.elem_type == _FLOAT
    } | {tensor.name for tensor in model.graph.initializer if tensor.data_type == _FLOAT}
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in floats and node.attribute[0].i == _FLOAT:
            node.op_type = "Identity"
            del node.attribute[:]
