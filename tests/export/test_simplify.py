"""Pools that change nothing are dropped."""

import numpy as np
import onnx
from onnx import TensorProto, helper

from sodeploy.export.parity import runner
from sodeploy.export.simplify import simplify


def pooled_twice(height: int) -> onnx.ModelProto:
    """Two pools that round sizes up, with a Relu behind each."""
    options = {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}
    shape = [1, 3, -(-height // 4), 1]
    nodes = [
        helper.make_node("MaxPool", ["image"], ["half"], "first", **options),
        helper.make_node("Relu", ["half"], ["kept"], "relu"),
        helper.make_node("MaxPool", ["kept"], ["quarter"], "second", **options),
        helper.make_node("Relu", ["quarter"], ["other"], "other"),
        helper.make_node("Sigmoid", ["quarter"], ["map"], "sigmoid"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, height, 2])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("map", "other")]
    graph = helper.make_graph(nodes, "pools", [image], outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def test_a_pool_from_one_pixel_to_one_pixel_is_dropped() -> None:
    before = pooled_twice(2)
    after = simplify(before, "pools")
    assert [node.name for node in after.graph.node] == ["first", "relu", "other", "sigmoid"]
    image = np.random.default_rng(0).standard_normal((1, 3, 2, 2)).astype(np.float32)
    for output in ("map", "other"):
        np.testing.assert_array_equal(runner(before, output)(image), runner(after, output)(image))


def test_other_pools_stay() -> None:
    after = simplify(pooled_twice(6), "pools")  # 3 x 1 before the second
    assert [node.name for node in after.graph.node if node.op_type == "MaxPool"] == ["first", "second"]
