"""Other forms of input and output -> (N, 3, H, W) float32 and one map (N, 1, H, W), by nodes inside the graph.

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
# Operators that only move values: the type in which they do so does not matter.
_MOVING = ("Transpose", "Reshape", "Slice", "Gather", "Squeeze", "Unsqueeze", "Identity", "Split", "Flatten")
_LARGEST_PROBABILITY = 1.01
_LEAST_BYTES = 16.0  # a map that is never negative and goes beyond this is no logit, but one of 0 to 255
LARGEST_BYTE = 255.0


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
    dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    batched = len(dims) == 4
    if not batched and not (len(dims) == 3 and 3 in (dims[0], dims[2])):
        raise UserError(f"{source}: input {value.name} has {len(dims)} dimensions, not (N, 3, H, W)")
    channels_first = dims[-3] == 3 or dims[-1] != 3
    return InputForm(value.name, None if channels_first else (0, 2, 3, 1), batched, _INTEGERS.get(kind))


def adapt_input(model: onnx.ModelProto, form: InputForm) -> None:
    """Give the graph, in place, an input (N, 3, H, W) float32, and put nodes for the difference behind it."""
    if form.is_plain:
        return
    graph = model.graph
    value = graph.input[0]
    inner = f"{form.name}/as_given"
    _rename(graph, form.name, inner)
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


@dataclass(frozen=True)
class OutputForm:
    """How an output differs from one map (N, 1, H, W) of 0 to 1, or of logits.

    Attributes:
        layout: the order of its dimensions: a permutation of "nchw", or "nhw" or "hw".
        channel: of several channels the one that is the map; "difference" is the second minus the first, the logit
            of a softmax over both.
        divide_by: what the map is divided by.
        is_float: False if its numbers are integers or truth values.
    """

    layout: str = "nchw"
    channel: int | str | None = None
    divide_by: float | None = None
    is_float: bool = True

    def __str__(self) -> str:
        parts = []
        if self.layout != "nchw":
            parts.append(f"its dimensions are ({', '.join(self.layout.upper())})")
        if self.channel == "difference":
            parts.append("the map is channel 1 minus channel 0, the logit of their softmax")
        elif self.channel is not None:
            parts.append(f"channel {self.channel} is the map (the foreground)")
        if self.divide_by is not None:
            parts.append(f"it is divided by {self.divide_by:g}")
        if not self.is_float:
            parts.append("its numbers are no floats")
        return "; ".join(parts)

    def from_file(self, output: np.ndarray) -> np.ndarray:
        """The output of the file -> `(N, 1, H, W) float32`."""
        maps = output.astype(np.float32)
        if self.layout == "nhwc":
            maps = maps.transpose(0, 3, 1, 2)
        elif self.layout == "nhw":
            maps = maps[:, None]
        elif self.layout == "hw":
            maps = maps[None, None]
        if self.channel == "difference":
            maps = maps[:, 1:2] - maps[:, :1]
        elif self.channel is not None:
            maps = maps[:, int(self.channel) : int(self.channel) + 1]
        return maps if self.divide_by is None else maps / np.float32(self.divide_by)


def output_form(output: np.ndarray, batch: tuple[int, ...], logit: bool, channel: int | None, where: str) -> OutputForm:
    """The form of an output, from what the file gave for a batch (N, 3, H, W).

    Args:
        where: file and output, for messages.
        channel: which channel the user says the map is.

    Raises:
        UserError: it is not one map per image, or its values are neither probabilities, nor logits, nor 0 to 255.
    """
    n, _, height, width = batch
    channels, layout = 1, ""
    if output.ndim == 4 and output.shape[0] == n and output.shape[2:] == (height, width):
        layout, channels = "nchw", output.shape[1]
    elif output.ndim == 4 and output.shape[:3] == (n, height, width):
        layout, channels = "nhwc", output.shape[3]
    elif output.ndim == 3 and output.shape == (n, height, width):
        layout = "nhw"
    elif output.ndim == 2 and n == 1 and output.shape == (height, width):
        layout = "hw"
    if not layout or channels < 1 or (channels > 2 and channel is None):
        raise UserError(
            f"{where} is {output.shape} for an input {batch}, not one map of the input's size per image; "
            "choose another with --output-tensor" + (", or one of its channels with --channel" if layout else "")
        )
    if channel is not None and channel >= channels:
        raise UserError(f"{where} has {channels} channels; --channel {channel} is not one of 0 to {channels - 1}")
    is_float = output.dtype.kind == "f"
    plain = OutputForm(layout, channel if channels > 1 else None, None, is_float)
    if channels == 2 and channel is None:
        values = OutputForm(layout, None, None, is_float).from_file(output)
        softmaxed = values.min() >= -0.01 and np.abs(values.sum(axis=1) - 1).max() < 0.01
        if logit and not softmaxed:
            return OutputForm(layout, "difference", None, is_float)
        if not softmaxed and (values.min() < -0.01 or values.max() > _LARGEST_PROBABILITY):
            raise UserError(
                f"{where} has two channels of {values.min():.3g} to {values.max():.3g}, whose softmax is still to "
                "come; give --logit, then the map is the softmax's second channel"
            )
        plain = OutputForm(layout, 1, None, is_float)
    maps = plain.from_file(output)
    low, high = float(maps.min()), float(maps.max())
    in_bytes = low >= 0 and _LEAST_BYTES < high <= LARGEST_BYTE + 0.5
    if in_bytes and logit:
        raise UserError(
            f"{where} goes from {low:.3g} to {high:.3g}: a map of 0 to 255, no logit; a sigmoid would make it "
            "white everywhere; leave --logit out, then it is divided by 255"
        )
    if in_bytes:
        return OutputForm(plain.layout, plain.channel, LARGEST_BYTE, is_float)
    if not logit and (low < -0.01 or high > _LARGEST_PROBABILITY):
        raise UserError(
            f"{where} goes from {low:.3g} to {high:.3g}, so it is no probability; give --logit if a sigmoid is still "
            f"to come{_TANH if -1.01 < low < -0.5 and high < 1.01 else ''}"
        )
    return plain


_TANH = "; if a tanh made it, add (x + 1) / 2 to the network and export it again"


def adapt_output(model: onnx.ModelProto, form: OutputForm, name: str) -> None:
    """Make the only output of the graph, in place, one map (N, 1, H, W) float32 under its old name."""
    if form == OutputForm():
        return
    graph, opset = model.graph, next(e.version for e in model.opset_import if e.domain == "")
    inner = f"{name}/as_given"
    _rename(graph, name, inner)
    steps: list[tuple[str, list[str], dict[str, object]]] = []

    def constant(value: object, label: str) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"{name}/{label}"))
        return f"{name}/{label}"

    if not form.is_float:
        steps.append(("Cast", [], {"to": TensorProto.FLOAT}))
    if form.layout == "nhwc":
        steps.append(("Transpose", [], {"perm": (0, 3, 1, 2)}))
    elif form.layout in ("nhw", "hw"):
        axes = [1] if form.layout == "nhw" else [0, 1]
        if opset >= 13:
            steps.append(("Unsqueeze", [constant(np.array(axes, np.int64), "axes")], {}))
        else:
            steps.append(("Unsqueeze", [], {"axes": axes}))
    current = inner
    nodes: list[onnx.NodeProto] = []

    def add(op_type: str, inputs: list[str], **attributes: object) -> str:
        output = f"{name}/adapted_{len(nodes)}"
        nodes.append(helper.make_node(op_type, inputs, [output], f"{output}/{op_type}", **attributes))
        return output

    for op_type, more, attributes in steps:
        current = add(op_type, [current, *more], **attributes)

    def taken(index: int) -> str:
        bounds = [constant(np.array([value], np.int64), f"{label}_{index}") for label, value in
                  (("start", index), ("end", index + 1), ("axis", 1))]  # fmt: skip
        return add("Slice", [current, *bounds])

    if form.channel == "difference":
        current = add("Sub", [taken(1), taken(0)])
    elif form.channel is not None:
        current = taken(int(form.channel))
    if form.divide_by is not None:
        current = add("Mul", [current, constant(np.float32(1 / form.divide_by), "factor")])
    nodes[-1].output[0] = name
    graph.node.extend(nodes)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4))


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Call a tensor inside the graph `new`; inputs and outputs of the graph keep their names."""
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
