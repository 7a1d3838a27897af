"""Reads tensors as onnxruntime's CPU kernels lay them out: putting all in order takes half as long as counting them.

Most convolutions write the layout (N, C/b, h, w, b), in which b channels of a position lie beside each other; b depends
on the processor. onnxruntime puts a ReorderOutput behind a tensor in this layout that is an output of the graph.
"""

import functools
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import onnx

from sodeploy.quant.graph import attribute
from sodeploy.runtime.onnx_session import session_options, start_optimized, start_session

if TYPE_CHECKING:
    import onnxruntime


def start_unordered(
    model: onnx.ModelProto, options: "onnxruntime.SessionOptions", names: Collection[str]
) -> "tuple[onnxruntime.InferenceSession, dict[str, str]]":
    """Start a graph, and leave out the nodes that put some of its outputs in order.

    Args:
        options: for this session; changed.
        names: the outputs that may come in blocks.

    Returns:
        The session; of the outputs that come in blocks: name -> name in the session.
    """
    import onnxruntime

    if not names or all(node.op_type != "Conv" for node in model.graph.node):
        return start_session(model, options), {}
    session, optimized = start_optimized(model, options)
    graph, size = optimized.graph, block_channels()
    read = {name for node in graph.node for name in node.input}
    blocked = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "ReorderOutput" and node.output[0] in names and node.output[0] not in read
        if size and attribute(node, "channels") % size == 0 and not attribute(node, "channels_last")
    }
    if not blocked:
        return session, {}
    del session  # before the other one takes memory
    kept = [node for node in graph.node if node.output[0] not in blocked]
    del graph.node[:]
    graph.node.extend(kept)
    for output in graph.output:
        if output.name in blocked:
            output.CopyFrom(onnx.helper.make_tensor_value_info(blocked[output.name], onnx.TensorProto.FLOAT, None))
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is optimized
    return start_session(optimized, options), blocked


def in_blocks(array: np.ndarray) -> np.ndarray:
    """A tensor that came in blocks, which onnxruntime describes as (N, C, h, w), as (N, C/b, h, w, b)."""
    images, channels, height, width = array.shape
    size = block_channels()
    return array.reshape(images, channels // size, height, width, size)


@functools.cache
def block_channels() -> int:
    """The number b of channels in a block; 0 where onnxruntime does not use this layout.

    onnxruntime fills the weights of a convolution up to whole blocks, and the weights of one channel up to one block.
    """
    weight = onnx.numpy_helper.from_array(np.zeros((1, 64, 1, 1), np.float32), "weight")
    node = onnx.helper.make_node("Conv", ["features", "weight"], ["map"])
    features, saliency = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, channels, 4, 4))
        for name, channels in (("features", 64), ("map", 1))
    )
    graph = onnx.helper.make_graph([node], "one channel", [features], [saliency], [weight])
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    _, optimized = start_optimized(model, session_options(1))
    blocked = any(node.op_type == "ReorderOutput" for node in optimized.graph.node)
    return int(optimized.graph.initializer[0].dims[0]) if blocked else 0
