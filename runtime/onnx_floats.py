"""The float types besides float32 in an ONNX graph."""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from sodeploy.runtime.onnx_file import all_nodes, graphs

_OTHER_FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "softmax_precision", "stash_type")


def other_floats(model: onnx.ModelProto) -> list[str]:
    """The float types besides float32 that the graph stores, takes or casts to: float16, bfloat16, double."""
    found = {tensor.data_type for tensor in _tensors(model)}
    found |= {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    for node in all_nodes(model):  # a Cast makes them of float32
        found |= {attribute.i for attribute in node.attribute if attribute.name in _TYPE_ATTRIBUTES}
    return [TensorProto.DataType.Name(kind).lower() for kind in _OTHER_FLOATS if kind in found]


def to_float32(model: onnx.ModelProto) -> None:
    """Make every fp16, bf16 and double tensor of the model fp32; the values stay, but for the digits of a double."""
    for graph in graphs(model.graph):
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type in _OTHER_FLOATS:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        del graph.value_info[:]
    for function in model.functions:
        del function.value_info[:]
    for tensor in _tensors(model):
        if tensor.data_type in _OTHER_FLOATS:
            with np.errstate(over="ignore"):
                values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in all_nodes(model):
        for attribute in node.attribute:
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i in _OTHER_FLOATS:
                attribute.i = TensorProto.FLOAT


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every constant, also those in attributes."""
    for graph in graphs(model.graph):
        yield from graph.initializer
    for node in all_nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
