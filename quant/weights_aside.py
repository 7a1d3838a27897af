"""Changes of a graph's nodes and types, without the weights: a library in C++ copies them four times on their way."""

from collections.abc import Callable
from math import prod

import onnx

_LARGE = 2**14  # numbers; what shapes are computed from has fewer


def with_weights_aside(change: Callable[[onnx.ModelProto], onnx.ModelProto], model: onnx.ModelProto) -> onnx.ModelProto:
    """`change(model)`; the model that `change` gets has no values in its large float32 constants, and the result has.

    Args:
        change: reads shapes and types; keeps the names of constants.
    """
    light = without_constants(model)
    light.graph.initializer.extend(_hollow(one) if _is_large(one) else one for one in model.graph.initializer)
    changed = change(light)
    large = {tensor.name: tensor for tensor in model.graph.initializer if _is_large(tensor)}
    for tensor in changed.graph.initializer:
        if tensor.name in large:
            tensor.raw_data = large[tensor.name].raw_data
    return changed


def without_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model without its initializers, for what writes them anew."""
    fields = {field.name: value for field, value in model.graph.ListFields() if field.name != "initializer"}
    others = {field.name: value for field, value in model.ListFields() if field.name != "graph"}
    return onnx.ModelProto(graph=onnx.GraphProto(**fields), **others)


def _hollow(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """A tensor without its values."""
    return onnx.TensorProto(**{field.name: value for field, value in tensor.ListFields() if field.name != "raw_data"})


def _is_large(tensor: onnx.TensorProto) -> bool:
    is_raw = tensor.data_type == onnx.TensorProto.FLOAT and tensor.HasField("raw_data")  # which Python would copy
    return is_raw and prod(tensor.dims) >= _LARGE
