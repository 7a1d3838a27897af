"""Other forms of input -> (N, 3, H, W) float32, by nodes at the start of the graph.

Each form says twice how it differs: as nodes, which the adopted graph gets, and in numpy, with which the original file
is run to check those nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sodeploy.errors import UserError

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_INTEGERS: dict[int, type[np.integer]] = {
    TensorProto.UINT8: np.uint8, TensorProto.INT8: np.int8, TensorProto.UINT16: np.uint16, TensorProto.INT16: np.int16,
    TensorProto.INT32: np.int32, TensorProto.UINT32: np.uint32, TensorProto.INT64: np.int64,
    TensorProto.UINT64: np.uint64,
}  # fmt: skip
_MOST_CHANNELS = 16  # a dimension beyond is a side of the image
# Operators that only move values: the type in which they do so does not matter.
_MOVING = ("Transpose", "Reshape", "Slice", "Gather", "Squeeze", "Unsqueeze", "Identity", "Split", "Flatten")


@dataclass(frozen=True)
class InputForm:
    """How the input of a file differs from (N, 3, H, W) float32.

    Attributes:
        name: the input's name.
        axes: how (N, 3, H, W) is transposed, None if it is not.
        batched: False if the file takes one image without a batch dimension.
        integer: numpy's type of the file's input if it is an integer type, which takes pixels of 0 to 255 as they are.
    """

    name: str
    axes: tuple[int, ...] | None = None
    batched: bool = True
    integer: type[np.integer] | None = None

    @property
    def is_plain(self) -> bool:
        return self.axes is None and self.batched and self.integer is None

    def __str__(self) -> str:
        parts = [
            *(["channels last (NHWC)"] if self.axes else []),
            *([] if self.batched else ["without a batch dimension"]),
            *([f"of type {np.dtype(self.integer).name}"] if self.integer else []),
        ]
        return ", ".join(parts)

    def to_file(self, batch: np.ndarray) -> np.ndarray:
        """`(N, 3, H, W) float32` -> what the file takes; its float type is left to the runner."""
        if self.axes is not None:
            batch = batch.transpose(self.axes)
        if not self.batched:
            (batch,) = batch
        if self.integer is not None:
            batch = np.rint(batch).astype(self.integer)
        return np.ascontiguousarray(batch)

    def dims(self, shape: Sequence[int | str]) -> list[int | str]:
        """The file's own dims in the order N, C, H, W."""
        shape = list(shape) if self.batched else [1, *shape]
        return shape if self.axes is None else [shape[0], shape[3], shape[1], shape[2]]


def input_form(model: onnx.ModelProto, source: str | Path) -> InputForm:
    """The form of the one input of `model`.

    Raises:
        UserError: there is not exactly one input, or it is not an image.
    """
    if len(model.graph.input) != 1:
        names = ", ".join(tensor.name for tensor in model.graph.input)
        raise UserError(f"{source} has {len(model.graph.input)} inputs ({names}); a saliency network takes one image")
    value = model.graph.input[0]
    kind = value.type.tensor_type.elem_type
    if kind not in _FLOATS and kind not in _INTEGERS:
        name = TensorProto.DataType.Name(kind).lower() if kind else "no tensor"
        raise UserError(f"{source}: input {value.name} is {name}; export the network with a float32 input")
    if not value.type.tensor_type.HasField("shape"):
        for letter in "nchw":
            value.type.tensor_type.shape.dim.add(dim_param=letter)
    if kind == TensorProto.INT8:
        raise UserError(
            f"{source}: input {value.name} is int8, which holds no pixel above 127; export the network with a uint8 or "
            "float32 input"
        )
    dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    batched = len(dims) == 4
    if not batched and not (len(dims) == 3 and 3 in (dims[0], dims[2])):
        raise UserError(f"{source}: input {value.name} has {len(dims)} dimensions, not (N, 3, H, W)")
    few = next((dim for dim in (dims[-3], dims[-1]) if 0 < dim <= _MOST_CHANNELS), 3)
    if few != 3 and 3 not in (dims[-3], dims[-1]):
        kind_of = {1: "1 channel, a grey image", 4: "4 channels, an image with alpha"}.get(few, f"{few} channels")
        raise UserError(
            f"{source}: input {value.name} takes {kind_of}; networks of 3 channels, RGB or BGR, are adopted: give "
            "such an export of it"
        )
    channels_first = dims[-3] == 3 or dims[-1] != 3
    return InputForm(value.name, None if channels_first else (0, 2, 3, 1), batched, _INTEGERS.get(kind))


def adapt_input(model: onnx.ModelProto, form: InputForm) -> None:
    """Give the graph, in place, an input (N, 3, H, W) float32, and put nodes for the difference behind it."""
    if form.is_plain:
        return
    graph = model.graph
    value = graph.input[0]
    inner = f"{form.name}/as_given"
    rename(graph, form.name, inner)
    dims = list(value.type.tensor_type.shape.dim)
    shape = form.dims([dim.dim_value or dim.dim_param or f"dim_{index}" for index, dim in enumerate(dims)])
    kind = value.type.tensor_type.elem_type
    nodes, name = [], form.name
    if form.axes is not None:
        nodes.append(helper.make_node("Transpose", [name], [f"{name}/nhwc"], f"{name}/Transpose", perm=form.axes))
        name = nodes[-1].output[0]
    if not form.batched:
        target = numpy_helper.from_array(np.array([int(dim) for dim in _inner_shape(dims)], np.int64), f"{inner}/shape")
        graph.initializer.append(target)
        nodes.append(helper.make_node("Reshape", [name, target.name], [f"{inner}/image"], f"{inner}/Reshape"))
        name = nodes[-1].output[0]
    if form.integer is None or _meets_only_casts(graph, inner):
        nodes.append(helper.make_node("Identity", [name], [inner], f"{inner}/Identity"))
    else:
        limits = np.iinfo(form.integer)
        low, high = float(max(limits.min, -(2**24))), float(min(limits.max, 2**24))  # float32 holds these exactly
        bounds = {f"{inner}/least": low, f"{inner}/most": high}
        graph.initializer.extend(numpy_helper.from_array(np.float32(bound), key) for key, bound in bounds.items())
        nodes.append(helper.make_node("Round", [name], [f"{inner}/rounded"], f"{inner}/Round"))
        nodes.append(helper.make_node("Max", [f"{inner}/rounded", f"{inner}/least"], [f"{inner}/low"], f"{inner}/Max"))
        nodes.append(helper.make_node("Min", [f"{inner}/low", f"{inner}/most"], [f"{inner}/both"], f"{inner}/Min"))
        nodes.append(helper.make_node("Cast", [f"{inner}/both"], [inner], f"{inner}/Cast", to=kind))
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    float_kind = kind if kind in _FLOATS else TensorProto.FLOAT
    value.CopyFrom(helper.make_tensor_value_info(form.name, float_kind, shape))


def _inner_shape(dims: Sequence[onnx.TensorShapeProto.Dimension]) -> list[int]:
    """A target for Reshape: one unknown dimension can be left to it."""
    return [dim.dim_value or -1 for dim in dims]


def _meets_only_casts(graph: onnx.GraphProto, name: str) -> bool:
    """Whether an integer input is only moved before it is cast to float: then it can be float from the start."""
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if any(output.name == current for output in graph.output):
            return False
        for node in graph.node:
            if current not in node.input:
                continue
            if node.op_type == "Cast" and node.attribute[0].i in _FLOATS:
                continue
            if node.op_type not in _MOVING or node.input[0] != current:
                return False
            waiting.extend(node.output)
    return True


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Call a tensor inside the graph `new`; inputs and outputs of the graph keep their names."""
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
