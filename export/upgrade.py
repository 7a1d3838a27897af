"""An older or newer opset, and other float types -> float32 in an opset that all our engines read."""

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
# Operators newer than NEWEST_OPSET that ONNX itself defines by older ones.
_DEFINED_BY_OTHERS = (("", "Attention"), ("", "RMSNormalization"), ("", "RotaryEmbedding"), ("", "Swish"))


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
        if any((node.domain, node.op_type) in _DEFINED_BY_OTHERS for node in model.graph.node):
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
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # RuntimeError of C++, and others
        way, advice = ("raised", "newer") if opset > opset_of(model) else ("lowered", "lower")
        raise UserError(
            f"{source}: opset {opset_of(model)} cannot be {way} to {opset} ({one_line(error)}); "
            f"export it again with a {advice} opset"
        ) from None


def _written_out(model: onnx.ModelProto, source: str | Path) -> onnx.ModelProto:
    """`model` with the operators that ONNX defines by others replaced by their definition."""
    try:
        model = onnx.shape_inference.infer_shapes(model)
        return onnx.inliner.inline_selected_functions(
            model, list(_DEFINED_BY_OTHERS), exclude=False, inline_schema_functions=True
        )
    except Exception as error:  # RuntimeError of C++, and others
        raise UserError(
            f"{source}: its operators of opset {opset_of(model)} cannot be written out ({one_line(error)}); "
            f"export it with opset {NEWEST_OPSET} or lower"
        ) from None


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
