"""Batch norms that follow a sum or a concatenation, merged into the convolutions in front of it.

onnxsim merges a batch norm that follows a convolution. Octave convolutions put it behind the sum of their paths, and
dilated branches behind their concatenation (CSNet); there it costs a pass over memory and stands between an integer
convolution and its requantization. A scale and a shift per channel can be moved up through sums, resizes, poolings and
concatenations.
"""

from collections import Counter
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

_CONSTANT_KEEPING = {"Resize", "AveragePool"}  # linear, channel by channel; a constant map stays as it is


def absorb_batch_norms(model: onnx.ModelProto) -> int:
    """Merge, in place, every batch norm that can be; returns how many were."""
    graph = _Graph(model)
    absorbed = 0
    for node in [node for node in model.graph.node if node.op_type == "BatchNormalization"]:
        if graph.width(node.input[0]) is None or not all(name in graph.constants for name in node.input[1:]):
            continue
        gamma, beta, mean, variance = (graph.value(name).astype(np.float64) for name in node.input[1:])
        scale = gamma / np.sqrt(variance + _attribute(node, "epsilon", 1e-5))
        graph.apply(node.input[0], scale, beta - mean * scale)
        graph.producers[node.input[0]].output[0] = node.output[0]
        graph.producers[node.output[0]] = graph.producers[node.input[0]]
        model.graph.node.remove(node)
        absorbed += 1
    graph.drop_unread()
    return absorbed


class _Graph:
    """A model's nodes by what they make, and its constants."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {name: node for node in model.graph.node for name in node.output}
        self.readers = Counter(name for node in model.graph.node for name in node.input)
        self.readers.update(output.name for output in model.graph.output)

    def value(self, name: str) -> np.ndarray:
        return np.asarray(numpy_helper.to_array(self.constants[name]))

    def width(self, name: str) -> int | None:
        """The channels of a tensor that a scale and a shift can be moved into, or None."""
        node = self.producers.get(name)
        if node is None or self.readers[name] != 1:
            return None
        if node.op_type == "Conv":
            bias = node.input[2:]
            known = node.input[1] in self.constants and all(name in self.constants for name in bias)
            return int(self.constants[node.input[1]].dims[0]) if known else None
        if node.op_type == "Add":
            first, second = (self.width(name) for name in node.input)
            return first if first == second else None
        if node.op_type == "Concat" and _attribute(node, "axis", 1) == 1:
            widths = [self.width(name) for name in node.input]
            return None if None in widths else sum(width for width in widths if width)
        if node.op_type in _CONSTANT_KEEPING and _keeps_constants(node):
            return self.width(node.input[0])
        return None

    def apply(self, name: str, scale: np.ndarray, shift: np.ndarray) -> None:
        """Make the tensor `scale` times itself plus `shift`; `width` has said that it can be done."""
        node = self.producers[name]
        if node.op_type == "Conv":
            weight = self.value(node.input[1])
            bias = self.value(node.input[2]) if len(node.input) > 2 else np.zeros(len(weight), weight.dtype)
            bias = bias * scale + shift
            rows = scale.reshape(-1, *[1] * (weight.ndim - 1))
            node.input[1] = self._add(node.input[1], (weight * rows).astype(weight.dtype))
            if len(node.input) > 2:
                node.input[2] = self._add(node.input[2], bias.astype(weight.dtype))
            elif bias.any():
                node.input.append(self._add(f"{name}.bias", bias.astype(weight.dtype)))
        elif node.op_type == "Add":
            shifted = min(node.input, key=lambda name: self.producers[name].op_type != "Conv")
            for part in node.input:
                self.apply(part, scale, shift if part == shifted else np.zeros_like(shift))
        elif node.op_type == "Concat":
            ends = np.cumsum([self.width(part) for part in node.input])[:-1]
            for part, *channels in zip(node.input, np.split(scale, ends), np.split(shift, ends), strict=True):
                self.apply(part, *channels)
        else:
            self.apply(node.input[0], scale, shift)

    def _add(self, wanted: str, value: np.ndarray) -> str:
        """A new constant; several convolutions may have read the old one."""
        name, number = wanted, 1
        while name in self.constants and (self.readers[wanted] > 1 or name != wanted):
            name, number = f"{wanted}_{number}", number + 1
        tensor = numpy_helper.from_array(value, name)
        if name in self.constants:
            self.constants[name].CopyFrom(tensor)
        else:
            self.model.graph.initializer.append(tensor)
            self.constants[name] = self.model.graph.initializer[-1]
            self.readers[name] = 1
        return name

    def drop_unread(self) -> None:
        read = {name for node in self.model.graph.node for name in node.input}
        for tensor in [tensor for tensor in self.model.graph.initializer if tensor.name not in read]:
            self.model.graph.initializer.remove(tensor)


def _keeps_constants(node: onnx.NodeProto) -> bool:
    if node.op_type == "Resize":
        mode = _attribute(node, "coordinate_transformation_mode", b"half_pixel")
        return _attribute(node, "mode", b"nearest") in (b"linear", b"nearest") and mode != b"tf_crop_and_resize"
    return not any(_attribute(node, "pads", [0])) or not _attribute(node, "count_include_pad", 0)


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((onnx.helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)
