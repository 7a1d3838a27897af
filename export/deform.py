"""Deformable convolution -> one GridSample over all taps and a 1 x 1 convolution, which engines have.

A K x K deformable convolution reads, for each output pixel and tap, the input at the tap's place plus an offset that
the network computed (Dai et al., Deformable Convolutional Networks, 2017), times a mask in its modulated form (Zhu et
al., Deformable ConvNets v2, 2018). All taps of all pixels are sampled at once, as one image K*K times as high; what is
left is a product over channels and taps.

Memory: the sampled values are K*K times the output's size for every input channel, 9 * C * H * W numbers for a 3 x 3
layer. At 64 channels of 128 x 128 these are 38 MB in float32 and 19 MB in fp16, beside the grid of 2 * 9 * H * W.
"""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


def rewrite_deformable(model: onnx.ModelProto) -> int:
    """Rewrite, in place, every DeformConv of constant weight and known image size; returns how many were.

    The model must be of opset 16 or newer (GridSample).
    """
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    opset = max((int(entry.version) for entry in model.opset_import if entry.domain == ""), default=1)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    rewritten = 0
    for node in model.graph.node:
        if node.op_type != "DeformConv":
            nodes.append(node)
            continue
        image, offsets = shapes.get(node.input[0], []), shapes.get(node.input[2], [])
        known = len(image) == 4 and all(image[1:]) and len(offsets) == 4 and all(offsets[1:])
        if known and node.input[1] in weights:
            parts = _Parts(node, weights[node.input[1]], image, offsets, "linear" if opset >= 20 else "bilinear")
            nodes.extend(parts.nodes)
            model.graph.initializer.extend(parts.constants)
            rewritten += 1
        else:
            nodes.append(node)
    if rewritten:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        read = {name for node in nodes for name in node.input} | {output.name for output in model.graph.output}
        for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in read]:
            model.graph.initializer.remove(tensor)
    return rewritten


class _Parts:
    """The nodes and constants that take the place of one DeformConv."""

    def __init__(
        self, node: onnx.NodeProto, weight: np.ndarray, image: list[int], offsets: list[int], mode: str
    ) -> None:
        """See `rewrite_deformable`.

        Args:
            weight: `(C_out, C_in / groups, kernel height, kernel width)`.
            image: shape of the input, (N, C_in, H, W); N may be 0, unknown.
            offsets: shape of the offsets, (N, 2 * offset groups * taps, H_out, W_out).
            mode: GridSample's name for linear interpolation in this opset.
        """
        self.base = node.name or node.output[0]
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        groups = attributes.get("group", 1)
        parts = attributes.get("offset_group", 1)  # channels are divided into these, each with offsets of its own
        channels, height, width = image[1:]
        taps = weight.shape[2] * weight.shape[3]
        out = offsets[2:]
        grid = self._grid(node.input[2], weight.shape[2:], image[2:], out, attributes)
        source = node.input[0]
        if parts > 1:
            source = self._reshape(source, [-1, channels // parts, height, width], "parts")
        sampled = self._add(
            "GridSample", [source, grid], mode=mode, padding_mode="zeros", align_corners=0
        )  # (N * parts, C / parts, taps * H_out, W_out)
        if len(node.input) > 4 and node.input[4]:
            sampled = self._reshape(sampled, [-1, channels // parts, taps, *out], "by_tap")
            mask = self._reshape(node.input[4], [-1, 1, taps, *out], "mask")
            sampled = self._add("Mul", [sampled, mask])
        columns = self._reshape(sampled, [-1, channels * taps, *out], "columns")
        matrix = weight.reshape(weight.shape[0], -1, 1, 1)  # channel by channel, tap by tap, as the columns are
        inputs = [columns, self._constant(matrix, "weight")]
        if len(node.input) > 3 and node.input[3]:
            inputs.append(node.input[3])
        self._add("Conv", inputs, node.output[0], kernel_shape=[1, 1], group=groups)

    def _grid(
        self, offsets: str, kernel: tuple[int, ...], size: list[int], out: list[int], attributes: dict[str, Any]
    ) -> str:
        """Where to sample, `(N * parts, taps * H_out, W_out, 2)`: x, then y, from -1 to 1 over the input's borders.

        The centre of pixel p of n lies at (2 p + 1) / n - 1.
        """
        strides, dilations = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
        pads = attributes.get("pads", [0] * 4)
        by_tap = self._reshape(offsets, [-1, kernel[0] * kernel[1], 2, *out], "offsets")
        coordinates = []
        for axis in (1, 0):  # the offsets hold y before x, a grid x before y
            tap = np.indices(kernel)[axis].reshape(-1, 1, 1, 1) * dilations[axis]
            place = np.arange(out[axis]) * strides[axis] - pads[axis]
            places = tap + (place.reshape(1, 1, -1, 1) if axis == 0 else place.reshape(1, 1, 1, -1))
            label = "yx"[axis]
            bounds = [
                self._constant(np.array([value], np.int64), f"{label}_{name}")
                for name, value in (("start", axis), ("end", axis + 1), ("axis", 2))
            ]
            moved = self._add("Slice", [by_tap, *bounds])
            moved = self._add("Mul", [moved, self._constant(np.float32(2 / size[axis]), f"{label}_step")])
            base = (2.0 * places + 1) / size[axis] - 1
            coordinates.append(
                self._add("Add", [moved, self._constant(base[None].astype(np.float32), f"{label}_places")])
            )
        both = self._add("Concat", coordinates, axis=2)
        last = self._add("Transpose", [both], perm=[0, 1, 3, 4, 2])
        return self._reshape(last, [-1, kernel[0] * kernel[1] * out[0], out[1], 2], "grid")

    def _constant(self, value: np.ndarray | np.generic, label: str) -> str:
        name = f"{self.base}.{label}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _reshape(self, source: str, shape: list[int], label: str) -> str:
        return self._add("Reshape", [source, self._constant(np.array(shape, np.int64), f"{label}_shape")])

    def _add(self, op_type: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        name = f"{self.base}/{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output or name], name, **attributes))
        return output or name
