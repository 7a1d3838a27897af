"""Somebody else's ONNX file -> a float32 graph of a current opset with one image input and one output."""

from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
from onnx import numpy_helper

from sodeploy.artifacts import require_file
from sodeploy.errors import UserError

OLDEST_OPSET = 17
_NEWEST_OPSET = 21  # onnxruntime 1.20 reads no newer
_FLOAT, _FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def load(path: str | Path) -> onnx.ModelProto:
    """The model in `path`, its inputs without the initializers that old files list among them.

    Raises:
        UserError: it is no ONNX file, quantized, of too new an opset, or has not exactly one input.
    """
    path = require_file(path, "give an .onnx file")
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf and onnx raise types of their own, undocumented
        raise UserError(f"{path} is not an ONNX file ({' '.join(str(error).split())}); give an .onnx file") from None
    if not model.graph.node:
        raise UserError(f"{path} is not an ONNX file, or its graph is empty; give an .onnx file")
    if any("QuantizeLinear" in node.op_type or node.op_type.startswith("QLinear") for node in model.graph.node):
        raise UserError(f"{path} is quantized; adopt the float model and quantize that with quant/build_engine.py")
    if opset_of(model) > _NEWEST_OPSET:
        raise UserError(
            f"{path} has opset {opset_of(model)}, onnxruntime 1.20 reads up to {_NEWEST_OPSET}; export it lower"
        )
    constants = {tensor.name for tensor in model.graph.initializer}
    for tensor in [tensor for tensor in model.graph.input if tensor.name in constants]:
        model.graph.input.remove(tensor)
    if len(model.graph.input) != 1:
        names = ", ".join(tensor.name for tensor in model.graph.input)
        raise UserError(f"{path} has {len(model.graph.input)} inputs ({names}); a saliency network takes one image")
    rank = len(model.graph.input[0].type.tensor_type.shape.dim)
    if rank != 4:
        raise UserError(f"{path}: input {model.graph.input[0].name} has {rank} dimensions, not (N, 3, H, W)")
    return model


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators."""
    return max((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)


def raise_opset(model: onnx.ModelProto, source: str | Path) -> onnx.ModelProto:
    """`model`, in opset 17 if it was older.

    Raises:
        UserError: an operator of it cannot be converted; `source` is named.
    """
    if opset_of(model) >= OLDEST_OPSET:
        return model
    try:
        model = onnx.version_converter.convert_version(model, OLDEST_OPSET)
    except Exception as error:  # RuntimeError of C++, and others
        reason = " ".join(str(error).split())
        raise UserError(f"{source}: opset {opset_of(model)} cannot be raised to {OLDEST_OPSET} ({reason}); "
                        "export it again with a newer opset") from None  # fmt: skip
    return model


def keep_output(model: onnx.ModelProto, name: str | None, source: str | Path) -> str:
    """Drop all outputs but `name`, which may be None where there is only one; the name of what is left.

    Raises:
        UserError: there is no such output, or several to choose from; they are listed.
    """
    outputs = {tensor.name: tensor for tensor in model.graph.output}
    listed = ", ".join(f"{key} ({_shape_text(tensor)})" for key, tensor in outputs.items())
    if name is None and len(outputs) > 1:
        raise UserError(f"{source} has several outputs; name the map with --output-tensor: {listed}")
    chosen = name if name is not None else next(iter(outputs))
    if chosen not in outputs:
        raise UserError(f"{source} has no output {chosen}; it has: {listed}")
    for key, tensor in outputs.items():
        if key != chosen:
            model.graph.output.remove(tensor)
    return chosen


def fix_input(model: onnx.ModelProto, batch: int | None, size: tuple[int, int] | None, source: str | Path) -> None:
    """Give dynamic dimensions of the input a value; None leaves them as they are.

    Raises:
        UserError: a dimension has another value already, or the input has not three channels.
    """
    tensor = model.graph.input[0]
    dims = tensor.type.tensor_type.shape.dim
    wanted = (batch, 3, *(size or (None, None)))
    for dim, value in zip(dims, wanted, strict=True):
        if value is not None and dim.dim_value not in (0, value):
            text = "x".join("*" if value is None else str(value) for value in wanted)
            raise UserError(f"{source} takes {_shape_text(tensor)} only, not {text}; give what it takes")
        if value is not None:
            dim.dim_value = value
    del model.graph.value_info[:]
    for output in model.graph.output:
        for dim in output.type.tensor_type.shape.dim:
            dim.Clear()  # inferred anew


def is_half(model: onnx.ModelProto) -> bool:
    """Its weights, or its input, are fp16."""
    return model.graph.input[0].type.tensor_type.elem_type == _FLOAT16 or any(
        tensor.data_type == _FLOAT16 for tensor in model.graph.initializer
    )


def to_float32(model: onnx.ModelProto) -> None:
    """Make every fp16 tensor of the graph fp32; the values stay."""
    del model.graph.value_info[:]
    for tensor in model.graph.initializer:
        _widen(tensor)
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == _FLOAT16:
            value.type.tensor_type.elem_type = _FLOAT
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == _FLOAT16:
                attribute.i = _FLOAT


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == _FLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _shape_text(tensor: onnx.ValueInfoProto) -> str:
    return "x".join(str(dim.dim_value or dim.dim_param or "*") for dim in tensor.type.tensor_type.shape.dim)
