"""Small strongly typed graphs, as quant/emit/ writes them: fp32, fp16, and int8 with Q/DQ over an fp16 body."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sodeploy.runtime.contract import DIALECT_KEY, PRECISION_KEY, Contract, embed

Precision = Literal["fp32", "fp16", "int8"]
SIZE = 64


class _Graph:
    def __init__(self, precision: Precision) -> None:
        self.int8 = precision == "int8"
        self.dtype: Any = np.float32 if precision == "fp32" else np.float16
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def constant(self, name: str, value: Any) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def quantized(self, x: str, name: str) -> str:
        scale = self.constant(f"{name}_scale", self.dtype(0.02))
        zero = self.constant(f"{name}_zero", np.int8(0))
        quantized = self.node("QuantizeLinear", [x, scale, zero], f"{name}/Q")
        return self.node("DequantizeLinear", [quantized, scale, zero], f"{name}/DQ")

    def conv(self, x: str, channels: tuple[int, int], name: str, int8: bool = True) -> str:
        """A 3 x 3 convolution from channels[0] to channels[1]."""
        weight = self.random.normal(0, 0.1, (channels[1], channels[0], 3, 3)).astype(self.dtype)
        if self.int8 and int8:
            x = self.quantized(x, f"{name}/input")
            scales = (np.abs(weight).max((1, 2, 3)) / 127).astype(self.dtype)
            steps = np.clip(np.round(weight / scales[:, None, None, None]), -127, 127).astype(np.int8)
            w = self.node(
                "DequantizeLinear",
                [
                    self.constant(f"{name}_weight", steps),
                    self.constant(f"{name}_weight_scales", scales),
                    self.constant(f"{name}_weight_zeros", np.zeros(channels[1], np.int8)),
                ],
                f"{name}/weight/DQ",
                axis=0,
            )
        else:
            w = self.constant(f"{name}_weight", weight)
        bias = self.constant(f"{name}_bias", np.zeros(channels[1], self.dtype))
        return self.node("Conv", [x, w, bias], name, pads=[1] * 4)


def write(path: Path, precision: Precision, batch: int | str = 1, **contract: Any) -> Path:
    """A U of three inner convolutions: pooling, resize, concatenation; first and last convolution never int8."""
    graph = _Graph(precision)
    half = graph.dtype == np.float16
    x = graph.node("Cast", ["image"], "to_fp16", to=TensorProto.FLOAT16) if half else "image"
    x = graph.node("Relu", [graph.conv(x, (3, 32), "/first/Conv", int8=False)], "/first/Relu")
    skip = graph.node("Relu", [graph.conv(x, (32, 32), "/enc/Conv")], "/enc/Relu")
    x = graph.node("MaxPool", [skip], "/MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    x = graph.node("Relu", [graph.conv(x, (32, 32), "/mid/Conv")], "/mid/Relu")
    x = graph.node(
        "Resize", [x, "", graph.constant("scales", np.array([1, 1, 2, 2], np.float32))], "/Resize", mode="linear"
    )
    x = graph.node("Concat", [x, skip], "/Concat", axis=1)
    x = graph.node("Relu", [graph.conv(x, (64, 32), "/dec/Conv")], "/dec/Relu")
    x = graph.conv(x, (32, 1), "/last/Conv", int8=False)
    if half:
        graph.node("Cast", [graph.node("Sigmoid", [x], "/Sigmoid")], "saliency", to=TensorProto.FLOAT)
    else:
        graph.node("Sigmoid", [x], "saliency")
    shape = [batch, 3, SIZE, SIZE]
    made = helper.make_graph(
        graph.nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("saliency", TensorProto.FLOAT, [batch, 1, SIZE, SIZE])],
        graph.initializers,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    fields: dict[str, Any] = {"network": "small", "height": SIZE, "width": SIZE, "mean": (0, 0, 0), "std": (1, 1, 1)}
    embed(model, Contract(**fields | {"batch": batch if isinstance(batch, int) else None} | contract))
    model.metadata_props.add(key=PRECISION_KEY, value=precision)
    if precision == "int8":
        model.metadata_props.add(key=DIALECT_KEY, value="tensorrt")
    onnx.save(model, path)
    return path
