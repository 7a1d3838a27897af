"""The zoo: a small network for each kind of layer and each opset that people's files have; a new kind is one entry."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.zoo.network import CHANNELS, SIZE, Writer

Layer = Callable[[Writer, str], str]


@dataclass(frozen=True)
class Kind:
    """One network.

    Attributes:
        layer: writes the layer in question: (writer, tensor `(1, 8, 48, 48)`) -> a tensor of that shape.
        opset: of the file.
    """

    layer: Layer
    opset: int = 17

    def network(self) -> onnx.ModelProto:
        """The network: image -> stem -> the layer -> tail -> head -> map."""
        w = Writer(self.opset)
        x = w.relu(w.conv("image", inputs=3))
        x = self.layer(w, x)
        x = w.relu(w.conv(x))
        return w.model(w.conv(x, outputs=1))


def simple(op: str, **attributes: object) -> Layer:
    """A layer that is one node of one input."""
    return lambda w, x: str(w.node(op, x, **attributes))


def unet(w: Writer, x: str) -> str:
    """What every opset can write: pooling, resizing, concatenation, clipping, padding, slicing, reducing."""
    low = w.relu(w.conv(str(w.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])), kernel=1, pads=[0] * 4))
    low = w.sliced(w.padded(low, [0, 0, 1, 1, 0, 0, 1, 1]), [1, 1], [25, 25], [2, 3])
    gate = w.node("Sigmoid", w.reduced("ReduceMean", low, [2, 3]))
    up = w.resized(w.clipped(w.node("Mul", low, gate), 0.0, 6.0))
    joined = w.node("Concat", up, x, axis=1)
    return w.relu(w.conv(joined, inputs=2 * CHANNELS))


def gemm(**attributes: object) -> Layer:
    """A gate by channel, made by a Gemm."""

    def layer(w: Writer, x: str) -> str:
        flat = w.node("Flatten", w.node("GlobalAveragePool", x))
        weight = w.weight(CHANNELS, CHANNELS, 1)[:, :, 0, 0]
        bias = w.constant(w.random.uniform(0, 0.5, CHANNELS))
        made = w.node("Gemm", flat, w.constant(weight), bias, **attributes)
        return str(w.node("Mul", x, w.unsqueezed(w.node("Sigmoid", made), [2, 3])))

    return layer


def computed_bias(w: Writer, x: str) -> str:
    bias = w.squeezed(w.node("GlobalAveragePool", x), [0, 2, 3])
    return w.relu(w.node("Conv", x, w.constant(w.weight(CHANNELS, CHANNELS)), bias, pads=[1] * 4))


def transposed(w: Writer, x: str) -> str:
    low = w.relu(w.conv(x, strides=[2, 2]))
    weight = w.constant(w.weight(CHANNELS, CHANNELS, 2) + 0.1)
    return w.relu(w.node("ConvTranspose", low, weight, kernel_shape=[2, 2], strides=[2, 2]))


def one_dimensional(w: Writer, x: str) -> str:
    rows = w.node("Reshape", x, w.integers(1, CHANNELS, SIZE * SIZE))
    bias = w.constant(np.zeros(CHANNELS))
    made = w.node("Conv", rows, w.constant(w.weight(CHANNELS, CHANNELS, 3, 1)), bias, pads=[1, 1])
    return str(w.node("Reshape", w.node("Relu", made), w.integers(1, CHANNELS, SIZE, SIZE)))


def three_dimensional(w: Writer, x: str) -> str:
    deep = w.node("Reshape", x, w.integers(1, 4, 2, SIZE, SIZE))
    made = w.node("Conv", deep, w.constant(w.weight(4, 4, 3, 3)), pads=[1] * 6)
    return str(w.node("Reshape", w.node("Relu", made), w.integers(1, CHANNELS, SIZE, SIZE)))


def shared_weight(w: Writer, x: str) -> str:
    weight = w.constant(w.weight(CHANNELS, CHANNELS))
    once = w.relu(w.node("Conv", x, weight, pads=[1] * 4))
    return w.relu(w.node("Conv", once, weight, pads=[1] * 4))


def turned_weight(w: Writer, x: str) -> str:
    stored = w.constant(w.weight(CHANNELS, CHANNELS).transpose(1, 0, 2, 3), np.float64)
    weight = w.node("Cast", w.node("Identity", w.node("Transpose", stored, perm=[1, 0, 2, 3])), to=TensorProto.FLOAT)
    return w.relu(w.node("Conv", x, weight, pads=[1] * 4))


def constant_nodes(w: Writer, x: str) -> str:
    half = w.node("Constant", value_float=0.5)
    row = w.node("Constant", value_floats=[0.1] * CHANNELS)
    shape = w.node("Constant", value_ints=[1, CHANNELS, 1, 1])
    return str(w.node("Add", w.node("Mul", x, half), w.node("Reshape", row, shape)))


def sparse_constant(w: Writer, x: str) -> str:
    """A factor for some channels, stored as a sparse tensor."""
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([0.5, -0.25, 0.75], np.float32), "values"),
        numpy_helper.from_array(np.array([[0, 1, 0, 0], [0, 2, 0, 0], [0, 6, 0, 0]], np.int64), "indices"),
        [1, CHANNELS, 1, 1],
    )
    return str(w.node("Add", x, w.node("Mul", x, w.node("Constant", sparse_value=sparse))))


def split(w: Writer, x: str) -> str:
    first, second = (
        w.node("Split", x, outputs=2, axis=1, split=[3, 5])
        if w.opset < 13
        else w.node("Split", x, w.integers(3, 5), outputs=2, axis=1)
    )
    return str(w.node("Concat", w.relu(w.conv(second, 5, 5)), first, axis=1))


def mixed_ranges(w: Writer, x: str) -> str:
    small = w.node("Mul", x, w.constant(0.01))
    joined = w.node("Concat", x, small, axis=1)
    weight = w.weight(CHANNELS, 2 * CHANNELS)
    weight[:, CHANNELS:] = w.weight(CHANNELS, CHANNELS) * 30
    return w.relu(w.node("Conv", joined, w.constant(weight), pads=[1] * 4))


def attention(w: Writer, x: str) -> str:
    pooled = w.node("AveragePool", x, kernel_shape=[4, 4], strides=[4, 4])
    tokens = w.node("Transpose", w.node("Reshape", pooled, w.integers(1, CHANNELS, -1)), perm=[0, 2, 1])
    query, key, value = (
        w.node("MatMul", tokens, w.constant(w.weight(CHANNELS, CHANNELS, 1)[:, :, 0, 0])) for _ in range(3)
    )
    scores = w.node("MatMul", query, w.node("Transpose", key, perm=[0, 2, 1]))
    mixed = w.node("MatMul", w.node("Softmax", w.node("Mul", scores, w.constant(0.35)), axis=-1), value)
    back = w.node("Reshape", w.node("Transpose", mixed, perm=[0, 2, 1]), w.integers(1, CHANNELS, 12, 12))
    return str(w.node("Add", x, w.resized(back, 4.0)))


def layer_norm(w: Writer, x: str) -> str:
    last = w.node("Transpose", x, perm=[0, 2, 3, 1])
    ones, zeros = w.constant(np.ones(CHANNELS)), w.constant(np.zeros(CHANNELS))
    normal = w.node("LayerNormalization", last, ones, zeros, axis=-1)
    return str(w.node("Transpose", normal, perm=[0, 3, 1, 2]))


def group_norm(w: Writer, x: str) -> str:
    by_group = w.node("Reshape", x, w.integers(1, 2, -1))
    normal = w.node("InstanceNormalization", by_group, w.constant(np.ones(2)), w.constant(np.zeros(2)))
    return str(w.node("Reshape", normal, w.integers(1, CHANNELS, SIZE, SIZE)))


def per_channel(op: str, *values: np.ndarray, **attributes: object) -> Layer:
    """A node that also reads constants of one value per channel."""
    return lambda w, x: str(w.node(op, x, *map(w.constant, values), **attributes))


def tiny_weights(w: Writer, x: str) -> str:
    small = w.node("Conv", x, w.constant(w.weight(CHANNELS, CHANNELS) * 1e-7), pads=[1] * 4)
    ones, zeros = w.constant(np.ones(CHANNELS)), w.constant(np.zeros(CHANNELS))
    return w.relu(w.node("InstanceNormalization", small, ones, zeros, epsilon=1e-20))


def tiny_activations(w: Writer, x: str) -> str:
    small = w.relu(w.conv(w.node("Mul", x, w.constant(1e-6))))
    return str(w.node("Mul", w.node("Sub", small, w.reduced("ReduceMin", small, [2, 3])), w.constant(1e6)))


def large_activations(w: Writer, x: str) -> str:
    return str(w.node("Mul", w.relu(w.conv(w.node("Mul", x, w.constant(1e6)))), w.constant(1e-6)))


def gelu(w: Writer, x: str) -> str:
    error = w.node("Erf", w.node("Div", w.conv(x), w.constant(1.41421356)))
    return str(w.node("Mul", x, w.node("Mul", w.node("Add", error, w.constant(1.0)), w.constant(0.5))))


def silu(w: Writer, x: str) -> str:
    made = w.conv(x)
    return str(w.node("Mul", made, w.node("Sigmoid", made)))


def hard_swish_parts(w: Writer, x: str) -> str:
    made = w.conv(x)
    six = w.clipped(w.node("Add", made, w.constant(3.0)), 0.0, 6.0)
    return str(w.node("Div", w.node("Mul", made, six), w.constant(6.0)))


def prelu(w: Writer, x: str) -> str:
    return str(w.node("PRelu", w.conv(x), w.constant(np.linspace(0.1, 0.4, CHANNELS).reshape(-1, 1, 1))))


def einsum(w: Writer, x: str) -> str:
    weight = w.constant(w.weight(CHANNELS, CHANNELS, 1)[:, :, 0, 0])
    return w.relu(w.node("Einsum", weight, x, equation="oc,bchw->bohw"))


def left_weight(w: Writer, x: str) -> str:
    weight = w.constant(w.weight(CHANNELS, CHANNELS, 1)[:, :, 0, 0])
    made = w.node("MatMul", weight, w.node("Reshape", x, w.integers(1, CHANNELS, -1)))
    return w.relu(w.node("Reshape", made, w.integers(1, CHANNELS, SIZE, SIZE)))


def scatter(w: Writer, x: str) -> str:
    flat = w.node("Reshape", x, w.integers(CHANNELS, -1))
    rows = w.node("Gather", flat, w.integers(1, 0), axis=0)
    put = w.node("ScatterND", flat, w.constant([[0], [1]], np.int64), rows)
    return str(w.node("Reshape", put, w.integers(1, CHANNELS, SIZE, SIZE)))


def grid_sample(w: Writer, x: str) -> str:
    y, across = np.meshgrid(np.linspace(-0.9, 0.9, SIZE), np.linspace(-0.9, 0.9, SIZE), indexing="ij")
    moved = w.node("Transpose", w.node("Tanh", w.conv(x, 2)), perm=[0, 2, 3, 1])
    grid = w.node("Add", w.constant(np.stack([across, y], -1)[None]), w.node("Mul", moved, w.constant(0.05)))
    return str(w.node("GridSample", x, grid, align_corners=0, mode="bilinear"))


def where(w: Writer, x: str) -> str:
    made = w.conv(x)
    return str(w.node("Where", w.node("Greater", made, w.constant(0.5)), made, w.node("Mul", x, w.constant(0.3))))


def read_twice(w: Writer, x: str) -> str:
    """A residual sum of three terms, one of them added twice."""
    made = w.relu(w.conv(x))
    return w.relu(w.node("Add", w.node("Add", made, x), made))


def if_branches(w: Writer, x: str) -> str:
    half = w.constant([0.5])
    positive = w.node("Greater", w.node("ReduceMax", x, keepdims=0), w.constant(1.0))
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, [x, half], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, CHANNELS, SIZE, SIZE])],
        )
        for name, op in (("then_branch", "Mul"), ("else_branch", "Add"))
    }
    return str(w.node("If", positive, **branches))


def channels_of(low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, CHANNELS)


KINDS: dict[str, Kind] = {
    "convolution": Kind(lambda w, x: w.relu(w.conv(x))),
    "convolution, 1 x 1": Kind(lambda w, x: w.relu(w.conv(x, kernel=1, pads=[0] * 4))),
    "convolution, groups": Kind(lambda w, x: w.relu(w.conv(x, group=4))),
    "convolution, depthwise": Kind(lambda w, x: w.relu(w.conv(x, group=CHANNELS))),
    "convolution, dilated": Kind(lambda w, x: w.relu(w.conv(x, pads=[2] * 4, dilations=[2, 2]))),
    "convolution, auto_pad": Kind(lambda w, x: w.relu(w.node(
        "Conv", x, w.constant(w.weight(CHANNELS, CHANNELS, 4)), auto_pad="SAME_LOWER"))),
    "convolution, computed bias": Kind(computed_bias),
    "convolution, one dimension": Kind(one_dimensional),
    "convolution, three dimensions": Kind(three_dimensional),
    "convolution, shared weight": Kind(shared_weight),
    "convolution, weight behind nodes": Kind(turned_weight),
    "transposed convolution": Kind(transposed),
    "Gemm": Kind(gemm(transB=1)),
    "Gemm, alpha and beta": Kind(gemm(transB=1, alpha=2.5, beta=0.3)),
    "Gemm, weight not transposed": Kind(gemm(alpha=0.5)),
    "matrix product, weight left": Kind(left_weight),
    "Einsum": Kind(einsum),
    "attention": Kind(attention),
    "layer normalization": Kind(layer_norm),
    "group normalization": Kind(group_norm),
    "instance normalization": Kind(per_channel("InstanceNormalization", channels_of(0.5, 1.5), channels_of(0, 1))),
    "batch normalization": Kind(per_channel(
        "BatchNormalization", channels_of(0.5, 1.5), channels_of(0, 1), channels_of(0.2, 0.6), channels_of(0.5, 2))),
    "LeakyRelu": Kind(lambda w, x: str(w.node("LeakyRelu", w.conv(x), alpha=0.1))),
    "PRelu": Kind(prelu),
    "Clip": Kind(lambda w, x: w.clipped(w.conv(x), 0.0, 6.0)),
    "Elu": Kind(lambda w, x: str(w.node("Elu", w.conv(x)))),
    "HardSwish": Kind(lambda w, x: str(w.node("HardSwish", w.conv(x)))),
    "HardSwish in parts": Kind(hard_swish_parts),
    "SiLU": Kind(silu),
    "GELU": Kind(gelu),
    "Softplus and Tanh (Mish)": Kind(
        lambda w, x: str(w.node("Mul", x, w.node("Tanh", w.node("Softplus", w.conv(x)))))),
    "two ReLUs": Kind(lambda w, x: w.relu(w.relu(w.conv(x)))),
    "addition of a constant": Kind(
        lambda w, x: w.relu(w.node("Add", w.conv(x), w.constant(np.full((1, 8, 1, 1), 0.2))))),
    "residual sums": Kind(read_twice),
    "concatenation of mixed ranges": Kind(mixed_ranges),
    "Split": Kind(split),
    "Where": Kind(where),
    "If": Kind(if_branches),
    "ScatterND": Kind(scatter),
    "GridSample": Kind(grid_sample),
    "max pooling": Kind(simple("MaxPool", kernel_shape=[3, 3], pads=[1] * 4)),
    "max pooling, dilated": Kind(simple("MaxPool", kernel_shape=[3, 3], pads=[2] * 4, dilations=[2, 2])),
    "average pooling, padding counted": Kind(
        simple("AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)),
    "average pooling, padding left out": Kind(simple("AveragePool", kernel_shape=[3, 3], pads=[1] * 4)),
    "Pad, reflected": Kind(lambda w, x: w.relu(w.conv(w.padded(x, [0, 0, 1, 1] * 2, "reflect"), pads=[0] * 4))),
    "Pad, negative": Kind(lambda w, x: w.padded(w.relu(w.conv(x, pads=[3] * 4)), [0, 0, -2, -2] * 2)),
    "Resize, nearest": Kind(lambda w, x: w.resized(w.conv(x, strides=[2, 2]), mode="nearest")),
    "Resize, linear, corners aligned": Kind(
        lambda w, x: w.resized(w.conv(x, strides=[2, 2]), coordinate_transformation_mode="align_corners")),
    "Resize, cubic": Kind(lambda w, x: w.resized(w.conv(x, strides=[2, 2]), mode="cubic")),
    "Constant nodes": Kind(constant_nodes),
    "Constant, sparse": Kind(sparse_constant),
    "weights of 1e-7 before a normalization": Kind(tiny_weights),
    "activations of 1e-6": Kind(tiny_activations),
    "activations of 1e6": Kind(large_activations),
    **{f"U-Net, opset {opset}": Kind(unet, opset) for opset in range(7, 24)},
}  # fmt: skip
