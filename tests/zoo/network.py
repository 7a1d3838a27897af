"""Writes the small networks of the zoo: a stem, one kind of layer, a tail and a head; weights pass features on.

Under random weights every layer mixes all it sees, and rounding errors grow from layer to layer. Here a convolution
mostly copies its input, and the head is scaled so that the map is neither flat nor saturated.
"""

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

SIZE = 48
CHANNELS = 8
_LOGIT_SPREAD = 1.5


class Writer:
    """A network being written for one opset, node by node.

    Attributes:
        opset: of ONNX's own operators. Operators whose attributes became inputs are written as that opset has them.
    """

    def __init__(self, opset: int, seed: int = 0) -> None:
        self.opset = opset
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(values, dtype)
        return name

    def integers(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def node(self, op: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """The name of the node's output, or a list of names where it has several."""
        names = [f"{op.lower()}_{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=names[0], domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def weight(self, outputs: int, inputs: int, kernel: int = 3, dims: int = 2) -> np.ndarray:
        """`(outputs, inputs, kernel, ...)`: copies of inputs, and some mixing."""
        mixed = self.random.standard_normal((outputs, inputs, *[kernel] * dims)) * 0.3 / np.sqrt(inputs * kernel**dims)
        for channel in range(outputs):
            mixed[(channel, channel % inputs, *[kernel // 2] * dims)] += 0.8
        return mixed.astype(np.float32)

    def conv(self, x: str, outputs: int = CHANNELS, inputs: int = CHANNELS, kernel: int = 3, **attributes: Any) -> str:
        bias = self.constant(self.random.uniform(0, 0.3, outputs))
        weight = self.constant(self.weight(outputs, inputs // attributes.get("group", 1), kernel))
        pads = attributes.pop("pads", [kernel // 2] * 4)
        return str(self.node("Conv", x, weight, bias, pads=pads, **attributes))

    def relu(self, x: str) -> str:
        return str(self.node("Relu", x))

    def reduced(self, op: str, x: str, axes: list[int], keepdims: int = 1) -> str:
        """ReduceMean and its like; axes are an input from opset 18 on."""
        if self.opset < 18:
            return str(self.node(op, x, axes=axes, keepdims=keepdims))
        return str(self.node(op, x, self.integers(*axes), keepdims=keepdims))

    def unsqueezed(self, x: str, axes: list[int]) -> str:
        if self.opset < 13:
            return str(self.node("Unsqueeze", x, axes=axes))
        return str(self.node("Unsqueeze", x, self.integers(*axes)))

    def squeezed(self, x: str, axes: list[int]) -> str:
        if self.opset < 13:
            return str(self.node("Squeeze", x, axes=axes))
        return str(self.node("Squeeze", x, self.integers(*axes)))

    def clipped(self, x: str, low: float, high: float) -> str:
        if self.opset < 11:
            return str(self.node("Clip", x, min=low, max=high))
        return str(self.node("Clip", x, self.constant(low), self.constant(high)))

    def padded(self, x: str, pads: list[int], mode: str = "constant") -> str:
        if self.opset < 11:
            return str(self.node("Pad", x, pads=pads, mode=mode))
        return str(self.node("Pad", x, self.integers(*pads), mode=mode))

    def sliced(self, x: str, starts: list[int], ends: list[int], axes: list[int]) -> str:
        if self.opset < 10:
            return str(self.node("Slice", x, starts=starts, ends=ends, axes=axes))
        return str(self.node("Slice", x, *(self.integers(*values) for values in (starts, ends, axes))))

    def resized(self, x: str, factor: float = 2.0, mode: str = "linear", **attributes: Any) -> str:
        scales = [1.0, 1.0, factor, factor]
        if self.opset < 9:
            return str(self.node("Upsample", x, scales=scales, mode=mode))
        if self.opset < 11:
            return str(self.node("Upsample" if self.opset == 9 else "Resize", x, self.constant(scales), mode=mode))
        region = self.constant([]) if self.opset < 13 else ""  # once required
        return str(self.node("Resize", x, region, self.constant(scales), mode=mode, **attributes))

    def model(self, logits: str) -> onnx.ModelProto:
        """The network whose map is the sigmoid of `logits`, `(1, 1, SIZE, SIZE)`, brought to a usual spread."""
        value = helper.make_tensor_value_info
        image = np.random.default_rng(1).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
        plain = self._made(self.nodes, value(logits, TensorProto.FLOAT, None))
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        found = onnxruntime.InferenceSession(plain.SerializeToString(), options, ["CPUExecutionProvider"]).run(
            None, {"image": image}
        )[0]
        centered = self.node("Sub", logits, self.constant(float(found.mean())))
        scaled = self.node("Mul", centered, self.constant(_LOGIT_SPREAD / max(float(found.std()), 1e-9)))
        self.nodes.append(helper.make_node("Sigmoid", [scaled], ["saliency"], name="saliency"))
        return self._made(self.nodes, value("saliency", TensorProto.FLOAT, [1, 1, SIZE, SIZE]))

    def _made(self, nodes: list[onnx.NodeProto], output: onnx.ValueInfoProto) -> onnx.ModelProto:
        read = {name for node in nodes for name in node.input}
        read |= {name for node in nodes for a in node.attribute for inner in a.g.node for name in inner.input}
        constants = [numpy_helper.from_array(values, name) for name, values in self.constants.items() if name in read]
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])
        inputs = [image]
        graph = helper.make_graph(nodes, "zoo", inputs, [output], constants)
        opsets = [helper.make_opsetid("", self.opset)]
        ir_version = max(4, helper.find_min_ir_version_for(opsets, ignore_unknown=True))
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
