"""Other forms of output -> one map (N, 1, H, W) float32, by nodes at the end of the graph.

Each form says twice how it differs: as nodes, which the adopted graph gets, and in numpy, by which the output of the
original file is read to check those nodes.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sodeploy import terminal
from sodeploy.errors import UserError
from sodeploy.export.adapters import rename
from sodeploy.export.output_range import Origin

_LARGEST_PROBABILITY = 1.01
_LEAST_BYTES = 16.0  # a map that is never negative and goes beyond this is no logit, but one of 0 to 255
LARGEST_BYTE = 255.0
_LEAST_SIDE, _MOST_ENLARGED = 8, 32  # a smaller output is no map, but a feature of the whole image


@dataclass(frozen=True)
class OutputForm:
    """The difference between an output and one map (N, 1, H, W) of 0 to 1, or of logits.

    Attributes:
        layout: the order of its dimensions: a permutation of "nchw", or "nhw" or "hw".
        channel: of several channels the one that is the map; "difference" is the second minus the first, the logit
            of a softmax over both.
        shift: added to the map, before the division.
        divide_by: divisor of the map.
        scales: factors by which height and width are enlarged to those of the input.
        is_float: False if its numbers are integers or truth values.
    """

    layout: str = "nchw"
    channel: int | str | None = None
    shift: float | None = None
    divide_by: float | None = None
    scales: tuple[float, float] | None = None
    is_float: bool = True

    def __str__(self) -> str:
        parts = []
        if self.layout != "nchw":
            parts.append(f"its dimensions are ({', '.join(self.layout.upper())})")
        if self.channel == "difference":
            parts.append("the map is channel 1 minus channel 0, the logit of their softmax")
        elif self.channel is not None:
            parts.append(f"channel {self.channel} is the map (the foreground)")
        if self.shift is not None:
            parts.append(f"{self.shift:g} is added to it")
        if self.divide_by is not None:
            parts.append(f"it is divided by {self.divide_by:g}")
        if self.scales is not None:
            parts.append(f"it is enlarged by {self.scales[0]:.4g} x {self.scales[1]:.4g} to the size of the input")
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
        if self.shift is not None:
            maps = maps + np.float32(self.shift)
        if self.divide_by is not None:
            maps = maps / np.float32(self.divide_by)
        return maps if self.scales is None else _enlarged(maps, self.scales)


def _enlarged(maps: np.ndarray, scales: tuple[float, float]) -> np.ndarray:
    """Bilinear with half-pixel centers, as the node Resize does it."""
    height, width = (
        int(np.float32(side) * np.float32(scale)) for side, scale in zip(maps.shape[2:], scales, strict=True)
    )
    planes = [cv2.resize(map_, (width, height), interpolation=cv2.INTER_LINEAR) for map_ in maps[:, 0]]
    return np.stack(planes)[:, None]


def output_form(
    output: np.ndarray,
    batch: tuple[int, ...],
    logit: bool,
    channel: int | None,
    where: str,
    origin: Origin | None = None,
) -> OutputForm:
    """The form of an output, from one result for a batch (N, 3, H, W).

    Args:
        where: file and output, for messages.
        channel: the channel that the user calls the map.
        origin: the bounds of the output by construction, where the graph says them.

    Raises:
        UserError: it is not one map per image, or its values are neither probabilities, nor logits, nor 0 to 255.
    """
    layout, channels, scales = _layout(output.shape, batch, channel)
    if not layout or channels < 1 or (channels > 2 and channel is None):
        raise UserError(
            f"{where} is {output.shape} for an input {batch}, not one map of the input's size per image; "
            "choose another with --output-tensor" + (", or one of its channels with --channel" if layout else "")
        )
    if channel is not None and channel >= channels:
        raise UserError(f"{where} has {channels} channels; --channel {channel} is not one of 0 to {channels - 1}")
    plain = OutputForm(layout, channel if channels > 1 else None, is_float=output.dtype.kind == "f")
    if channels == 2 and channel is None:
        plain = _of_two_channels(output, plain, logit, where)
        if plain.channel == "difference":
            return replace(plain, scales=scales)
    maps = plain.from_file(output)
    shift, divide_by = _rescaling(maps, logit, where, origin, is_bytes=output.dtype == np.uint8)
    return replace(plain, shift=shift, divide_by=divide_by, scales=scales)


def is_hard(maps: np.ndarray) -> bool:
    """Whether maps hold two values or fewer, as labels do, and not the shades of a probability."""
    return maps.size > 64 and len(np.unique(maps)) <= 2


def _layout(
    shape: tuple[int, ...], batch: tuple[int, ...], channel: int | None
) -> tuple[str, int, tuple[float, float] | None]:
    """The order of the dimensions, the number of channels, and the enlargement; "" where no map can be meant."""
    n, _, height, width = batch
    found = []
    if len(shape) == 4 and shape[0] == n:
        found = [("nchw", shape[1], shape[2:]), ("nhwc", shape[3], shape[1:3])]
    elif len(shape) == 3 and shape[0] == n:
        found = [("nhw", 1, shape[1:])]
    elif len(shape) == 2 and n == 1:
        found = [("hw", 1, shape)]
    for layout, channels, sides in found:
        if sides == (height, width):
            return layout, channels, None
    for layout, channels, sides in found:
        scales = _scales((sides[0], sides[1]), (height, width))
        if scales and (channels <= 2 or (channel is not None and channel < channels)):
            return layout, channels, scales
    return "", 0, None


def _scales(small: tuple[int, int], large: tuple[int, int]) -> tuple[float, float] | None:
    """The factors from a smaller map to the size of the input; None where it is no smaller picture of the input."""
    if min(small) < min(_LEAST_SIDE, *large) or any(a > b for a, b in zip(small, large, strict=True)):
        return None
    exact = [b / a for a, b in zip(small, large, strict=True)]
    # Of equal shape but for a pixel that a stride rounds away.
    if max(exact) > _MOST_ENLARGED or any(abs(small[i] - large[i] / exact[1 - i]) > 1 for i in (0, 1)):
        return None
    factors = []
    for side, wanted, scale in zip(small, large, exact, strict=True):
        factor = np.float32(scale)
        while int(np.float32(side) * factor) < wanted:  # the node rounds down
            factor = np.nextafter(factor, np.float32(np.inf), dtype=np.float32)
        factors.append(float(factor))
    return factors[0], factors[1]


def _of_two_channels(output: np.ndarray, plain: OutputForm, logit: bool, where: str) -> OutputForm:
    values = plain.from_file(output)
    softmaxed = values.min() >= -0.01 and np.abs(values.sum(axis=1) - 1).max() < 0.01
    if logit and softmaxed:
        raise UserError(f"{where} is the result of a softmax, so a probability already; leave --logit out")
    if logit:
        return replace(plain, channel="difference")
    if not softmaxed and (values.min() < -0.01 or values.max() > _LARGEST_PROBABILITY):
        raise UserError(
            f"{where} has two channels of {values.min():.3g} to {values.max():.3g}, whose softmax is still to "
            "come; give --logit, then the map is the softmax's second channel"
        )
    return replace(plain, channel=1)


def _rescaling(
    maps: np.ndarray, logit: bool, where: str, origin: Origin | None, is_bytes: bool
) -> tuple[float | None, float | None]:
    """The shift and the divisor that bring maps into 0 to 1; None for none."""
    low, high = float(maps.min()), float(maps.max())
    if origin is not None and origin.is_label and ((origin.classes or 2) > 2 or not _holds(origin, low, high)):
        raise UserError(
            f"{where} is the label of a class, from {origin.op_type} over {origin.classes or 'several'} classes, no "
            f"map; export the network without its {origin.op_type}, and choose a channel with --channel"
        )
    if origin is not None and _holds(origin, low, high):
        if logit:
            raise UserError(
                f"{where} is the result of a {origin.op_type}, from {origin.low:g} to {origin.high:g}, "
                f"{'so a probability already' if (origin.low, origin.high) == (0, 1) else 'no logit'}; "
                "leave --logit out"
            )
        reach = origin.high - origin.low
        return (-origin.low if origin.low else None), (reach if reach != 1 else None)
    in_bytes = low >= 0 and (high > _LEAST_BYTES or (is_bytes and high > 1)) and high <= LARGEST_BYTE + 0.5
    if in_bytes and logit:
        raise UserError(
            f"{where} goes from {low:.3g} to {high:.3g}: a map of 0 to 255, no logit; a sigmoid would make it "
            "white everywhere; leave --logit out, then it is divided by 255"
        )
    if in_bytes:
        return None, LARGEST_BYTE
    if logit and (low >= -0.01 or (-1.01 <= low < -0.5 < 0.5 < high)) and high <= 1.01 and high - low > 0.01:
        terminal.warn(
            f"{where} goes from {low:.3g} to {high:.3g}, which looks like a "
            f"{'probability' if low >= -0.01 else 'tanh'} and not a logit; a sigmoid would leave a grey map: leave "
            "--logit out"
        )
    if not logit and (low < -0.01 or high > _LARGEST_PROBABILITY):
        raise UserError(
            f"{where} goes from {low:.3g} to {high:.3g}, so it is no probability; give --logit if a sigmoid is still "
            "to come"
        )
    return None, None


def _holds(origin: Origin, low: float, high: float) -> bool:
    slack = 0.02 * (origin.high - origin.low)
    return origin.high > origin.low and origin.low - slack <= low and high <= origin.high + slack


def adapt_output(model: onnx.ModelProto, form: OutputForm, name: str) -> None:
    """Make the only output of the graph, in place, one map (N, 1, H, W) float32 under its old name."""
    if form == OutputForm():
        return
    graph, opset = model.graph, next(e.version for e in model.opset_import if e.domain == "")
    current = f"{name}/as_given"
    rename(graph, name, current)
    nodes: list[onnx.NodeProto] = []

    def constant(value: object, label: str) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"{name}/{label}"))
        return f"{name}/{label}"

    def add(op_type: str, inputs: list[str], **attributes: object) -> str:
        output = f"{name}/adapted_{len(nodes)}"
        nodes.append(helper.make_node(op_type, inputs, [output], f"{output}/{op_type}", **attributes))
        return output

    def taken(index: int) -> str:
        bounds = [constant(np.array([value], np.int64), f"{label}_{index}") for label, value in
                  (("start", index), ("end", index + 1), ("axis", 1))]  # fmt: skip
        return add("Slice", [current, *bounds])

    if not form.is_float:
        current = add("Cast", [current], to=TensorProto.FLOAT)
    if form.layout == "nhwc":
        current = add("Transpose", [current], perm=(0, 3, 1, 2))
    elif form.layout in ("nhw", "hw"):
        axes = [1] if form.layout == "nhw" else [0, 1]
        if opset >= 13:
            current = add("Unsqueeze", [current, constant(np.array(axes, np.int64), "axes")])
        else:
            current = add("Unsqueeze", [current], axes=axes)
    if form.channel == "difference":
        current = add("Sub", [taken(1), taken(0)])
    elif form.channel is not None:
        current = taken(int(form.channel))
    if form.shift is not None:
        current = add("Add", [current, constant(np.float32(form.shift), "shift")])
    if form.divide_by is not None:
        current = add("Mul", [current, constant(np.float32(1 / form.divide_by), "factor")])
    if form.scales is not None:
        scales = constant(np.array([1, 1, *form.scales], np.float32), "scales")
        current = add("Resize", [current, "", scales], mode="linear", coordinate_transformation_mode="half_pixel")
    nodes[-1].output[0] = name
    graph.node.extend(nodes)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4))
