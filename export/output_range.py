"""The bounds of a map by construction: a sigmoid ends between 0 and 1, a tanh times 127.5 between -127.5 and 127.5."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from sodeploy.runtime.onnx_file import subgraphs

# Operators that bound their result, and the bounds.
_BOUNDED = {
    "Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0),
    **dict.fromkeys(("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "And", "Or", "Xor"), (0.0, 1.0)),
}  # fmt: skip
# Operators that move, round or interpolate values, and so keep their bounds.
_KEEPING = (
    "Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Split", "Resize",
    "Upsample", "Round", "Floor", "Ceil", "Expand", "Dropout", "MaxPool", "AveragePool",
)  # fmt: skip
_CHOOSING = ("ArgMax", "ArgMin")


class Origin(NamedTuple):
    """The operator that bounds an output, and its bounds after all that follows.

    Attributes:
        classes: of ArgMax the number of classes, where the graph declares it; else None. The bounds are those of two.
    """

    op_type: str
    low: float
    high: float
    classes: int | None = None

    @property
    def is_label(self) -> bool:
        """Whether the output is the number of a class."""
        return self.op_type in _CHOOSING


def origin_of(model: onnx.ModelProto, output: str) -> Origin | None:
    """The bounds of an output of the graph by construction; None where the graph does not say them."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t

    def scalar(name: str) -> float | None:
        tensor = constants.get(name)
        if tensor is None or int(np.prod(tensor.dims)) != 1 or tensor.data_location == TensorProto.EXTERNAL:
            return None
        return float(numpy_helper.to_array(tensor).ravel()[0])

    factor, offset, name = 1.0, 0.0, output  # the output is factor * (what `name` holds) + offset
    while (node := makers.get(name)) is not None and not any(True for _ in subgraphs(node)):
        kind, bounds = node.op_type, _BOUNDED.get(node.op_type)
        if kind in _CHOOSING:
            bounds = (0.0, 1.0)
        if kind == "Clip":
            bounds = _clipped(node, scalar)
        if bounds is not None:
            low, high = sorted(factor * bound + offset for bound in bounds)
            return Origin(kind, low, high, _classes(model, node) if kind in _CHOOSING else None)
        if kind == "Neg":
            factor, name = -factor, node.input[0]
        elif kind in ("Mul", "Div", "Add", "Sub"):
            first, second = (scalar(given) for given in node.input)
            if (first is None) == (second is None):
                return None
            if kind == "Mul":
                factor *= (first or 0.0) if second is None else second
            elif kind == "Add":
                offset += factor * (first or second or 0.0)
            elif kind == "Div" and second:
                factor /= second
            elif kind == "Sub" and second is not None:
                offset -= factor * second
            elif kind == "Sub" and first is not None:
                offset, factor = offset + factor * first, -factor
            else:
                return None
            name = node.input[0 if first is None else 1]
        elif kind in _KEEPING:
            name = node.input[0]
        else:
            return None
    return None


def _clipped(node: onnx.NodeProto, scalar: Callable[[str], float | None]) -> tuple[float, float] | None:
    """The bounds of a Clip that begins at 0; one that begins below it may clip logits."""
    given = {item.name: item.f for item in node.attribute}
    low, high = given.get("min"), given.get("max")
    if len(node.input) > 2:
        low, high = scalar(node.input[1]), scalar(node.input[2])
    return (low, high) if low == 0 and high is not None and high > 0 else None


def _classes(model: onnx.ModelProto, node: onnx.NodeProto) -> int | None:
    axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # onnx's errors have no base class in common; the number only serves a message
        return None
    for value in (*graph.value_info, *graph.input):
        if value.name == node.input[0] and -len(value.type.tensor_type.shape.dim) <= axis:
            dims = value.type.tensor_type.shape.dim
            return dims[axis].dim_value or None if axis < len(dims) else None
    return None
