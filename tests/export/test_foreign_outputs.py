"""Outputs of other forms become one map of 0 to 1, or are refused with the reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from foreign_files import H, W, adopted, images, network, plain, refused
from onnx import TensorProto, helper


def enlarged(maps: np.ndarray) -> np.ndarray:
    return np.stack([cv2.resize(map_, (W, H), interpolation=cv2.INTER_LINEAR) for map_ in maps[:, 0]])[:, None]


Case = tuple[list[onnx.NodeProto], tuple[int, ...], int, Callable[[np.ndarray], np.ndarray], dict[str, Any]]
OUTPUTS: dict[str, Case] = {
    "softmax of two": (
        [helper.make_node("Softmax", ["two"], ["saliency"], axis=1)],
        (1, 2, H, W), TensorProto.FLOAT, lambda found: found[:, 1:], {},
    ),
    "its first channel": (
        [helper.make_node("Softmax", ["two"], ["saliency"], axis=1)],
        (1, 2, H, W), TensorProto.FLOAT, lambda found: found[:, :1], {"channel": 0},
    ),
    "logits of two": (
        [helper.make_node("Identity", ["two"], ["saliency"])],
        (1, 2, H, W), TensorProto.FLOAT, lambda found: found[:, 1:] - found[:, :1], {"logit": True},
    ),
    "rank 3": (
        [helper.make_node("Squeeze", ["probability", "axis"], ["saliency"])],
        (1, H, W), TensorProto.FLOAT, lambda found: found[:, None], {},
    ),
    "rank 2": (
        [helper.make_node("Squeeze", ["probability"], ["saliency"])],
        (H, W), TensorProto.FLOAT, lambda found: found[None, None], {},
    ),
    "channels last": (
        [helper.make_node("Transpose", ["probability"], ["saliency"], perm=[0, 2, 3, 1])],
        (1, H, W, 1), TensorProto.FLOAT, lambda found: found.transpose(0, 3, 1, 2), {},
    ),
    "0 to 255": (
        [helper.make_node("Mul", ["probability", "most"], ["saliency"])],
        (1, 1, H, W), TensorProto.FLOAT, lambda found: found / 255, {},
    ),
    "bytes": (
        [
            helper.make_node("Mul", ["probability", "most"], ["bright"]),
            helper.make_node("Cast", ["bright"], ["saliency"], to=TensorProto.UINT8),
        ],
        (1, 1, H, W), TensorProto.UINT8, lambda found: found / 255, {},
    ),
    "tanh": (
        [helper.make_node("Tanh", ["logit"], ["saliency"])],
        (1, 1, H, W), TensorProto.FLOAT, lambda found: (found + 1) / 2, {},
    ),
    "percent": (
        [helper.make_node("Mul", ["probability", "hundred"], ["saliency"])],
        (1, 1, H, W), TensorProto.FLOAT, lambda found: found / 100, {},
    ),
    "16 bits": (
        [
            helper.make_node("Mul", ["probability", "most of 16"], ["bright"]),
            helper.make_node("Round", ["bright"], ["whole"]),
            helper.make_node("Cast", ["whole"], ["saliency"], to=TensorProto.UINT16),
        ],
        (1, 1, H, W), TensorProto.UINT16, lambda found: found / 65535, {},
    ),
    "the inverse, from -1 to 1": (
        [
            helper.make_node("Tanh", ["logit"], ["t"]),
            helper.make_node("Neg", ["t"], ["saliency"]),
        ],
        (1, 1, H, W), TensorProto.FLOAT, lambda found: (found + 1) / 2, {},
    ),
    "the class times 255": (
        [
            helper.make_node("ArgMax", ["two"], ["a"], axis=1),
            helper.make_node("Cast", ["a"], ["b"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["b", "most"], ["saliency"]),
        ],
        (1, 1, H, W), TensorProto.FLOAT, lambda found: found / 255, {},
    ),
    "a half of the size": (
        [helper.make_node("AveragePool", ["probability"], ["saliency"], kernel_shape=[2, 2], strides=[2, 2])],
        (1, 1, H // 2, W // 2), TensorProto.FLOAT, lambda found: enlarged(found), {},
    ),
    "a third, rounded up": (
        [
            helper.make_node(
                "AveragePool", ["probability"], ["small"], kernel_shape=[3, 3], strides=[3, 3], ceil_mode=1
            ),
            helper.make_node("Mul", ["small", "most"], ["large"]),
            helper.make_node("Squeeze", ["large", "axis"], ["saliency"]),
        ],
        (1, 8, 11), TensorProto.FLOAT, lambda found: enlarged(found[:, None] / 255), {},
    ),
    "two logits, a half of the size": (
        [helper.make_node("AveragePool", ["two"], ["saliency"], kernel_shape=[2, 2], strides=[2, 2])],
        (1, 2, H // 2, W // 2), TensorProto.FLOAT, lambda found: enlarged(found[:, 1:] - found[:, :1]), {"logit": True},
    ),
    "the class": (
        [helper.make_node("ArgMax", ["two"], ["saliency"], axis=1)],
        (1, 1, H, W), TensorProto.INT64, lambda found: found, {},
    ),
    "truth values": (
        [helper.make_node("Greater", ["probability", "half"], ["saliency"])],
        (1, 1, H, W), TensorProto.BOOL, lambda found: found, {},
    ),
}  # fmt: skip


def with_output(name: str) -> onnx.ModelProto:
    nodes, shape, kind, _, _ = OUTPUTS[name]
    body = [
        helper.make_node("Conv", ["features", "pair"], ["two"]),
        helper.make_node("Conv", ["features", "head"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
        *nodes,
    ]
    random = np.random.default_rng(5)
    constants = {
        "pair": random.normal(0, 1, (2, 4, 1, 1)).astype(np.float32),
        "most": np.float32(255), "half": np.float32(0.5), "axis": np.array([1], np.int64),
        "hundred": np.float32(100), "most of 16": np.float32(65535), "many": np.ones((21, 4, 1, 1), np.float32),
    }  # fmt: skip
    return network(body, constants, output_shape=shape, output_kind=kind)


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs(tmp_path: Path, name: str) -> None:
    model = with_output(name)
    new = adopted(model, tmp_path, **OUTPUTS[name][4])
    made = plain(new, images())
    assert made.dtype == np.float32
    assert made.shape == (1, 1, H, W)
    np.testing.assert_allclose(made, OUTPUTS[name][3](plain(model, images())), atol=1e-5)


def test_a_map_of_bytes_is_no_logit(tmp_path: Path) -> None:
    refused(with_output("0 to 255"), tmp_path, "is the result of a Sigmoid, from 0 to 255, no logit", logit=True)
    refused(with_output("logits of two"), tmp_path, "two channels of .* give --logit")
    refused(with_output("softmax of two"), tmp_path, "has 2 channels; --channel 2 is not one of 0 to 1", channel=2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tanh", "is the result of a Tanh, from -1 to 1, no logit; leave --logit out"),
        ("rank 3", "is the result of a Sigmoid, from 0 to 1, so a probability already"),
        ("softmax of two", "is the result of a softmax, so a probability already"),
        ("the class", "is the result of a ArgMax"),
    ],
)
def test_a_bounded_map_is_no_logit(tmp_path: Path, name: str, message: str) -> None:
    refused(with_output(name), tmp_path, message, logit=True)


def test_a_map_that_looks_like_a_probability(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = with_output("rank 3")
    sigmoid = next(node for node in model.graph.node if node.op_type == "Sigmoid")
    sigmoid.op_type = "Softsign"
    model.graph.node[0].input[1] = "first"
    model.graph.node.insert(list(model.graph.node).index(sigmoid), helper.make_node("Abs", ["logit"], ["positive"]))
    sigmoid.input[0] = "positive"
    adopted(model, tmp_path, logit=True)
    assert "which looks like a probability and not a logit" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["the class", "truth values", "the class times 255"])
def test_hard_labels_are_adopted_with_a_warning(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    adopted(with_output(name), tmp_path)
    assert "has two values only, so it is a hard label" in " ".join(capsys.readouterr().err.split())


def test_labels_of_many_classes_are_no_map(tmp_path: Path) -> None:
    body = [
        helper.make_node("Conv", ["features", "many"], ["classes"]),
        helper.make_node("ArgMax", ["classes"], ["saliency"], axis=1),
    ]
    many = np.random.default_rng(0).normal(0, 1, (21, 4, 1, 1)).astype(np.float32)
    refused(
        network(body, {"many": many}, output_kind=TensorProto.INT64),
        tmp_path,
        "the label of a class, from ArgMax over 21 classes, no map",
    )


def test_smaller_maps_of_every_size(tmp_path: Path) -> None:
    """A stride of whole numbers holds at any size, one that is rounded up does not."""
    half = [helper.make_node("AveragePool", ["c"], ["saliency"], kernel_shape=[2, 2], strides=[2, 2])]
    third = [helper.make_node("AveragePool", ["c"], ["saliency"], kernel_shape=[3, 3], strides=[3, 3], ceil_mode=1)]

    def model(pool: list[onnx.NodeProto]) -> onnx.ModelProto:
        body = [
            helper.make_node("Conv", ["features", "head"], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["probability"]),
            *pool,
        ]
        body[-1].input[0] = "probability"
        return network(body, shape=("n", 3, "h", "w"), output_shape=("n", 1, "a", "b"))

    new = adopted(model(half), tmp_path, size=(H, W), dynamic_size=True)
    assert plain(new, images(3)).shape == (3, 1, H, W)
    np.testing.assert_allclose(plain(new, images(3)), enlarged(plain(model(half), images(3))), atol=1e-6)
    for path in tmp_path.iterdir():
        path.unlink()
    refused(model(third), tmp_path, "leave --dynamic-size out", size=(H, W), dynamic_size=True)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 2 * H, 2 * W), (1, 1, W, H)])
def test_outputs_that_are_no_map(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pooled = {
        (1, 1, 1, 1): helper.make_node("GlobalAveragePool", ["probability"], ["saliency"]),
        (1, 1, 2 * H, 2 * W): helper.make_node("Resize", ["probability", "", "twice"], ["saliency"]),
        (1, 1, W, H): helper.make_node("Transpose", ["probability"], ["saliency"], perm=[0, 1, 3, 2]),
    }
    body = [
        helper.make_node("Conv", ["features", "head"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
        pooled[shape],
    ]
    model = network(body, {"twice": np.array([1, 1, 2, 2], np.float32)}, output_shape=shape)
    refused(model, tmp_path, "not one map of the input's size per image")


@pytest.mark.parametrize("part", ["shape", "type"])
def test_output_of_no_declared_shape(tmp_path: Path, part: str) -> None:
    model = network()
    if part == "type":
        model.graph.output[0].ClearField("type")
    else:
        model.graph.output[0].type.tensor_type.ClearField("shape")
    np.testing.assert_allclose(plain(adopted(model, tmp_path), images()), plain(network(), images()), atol=1e-6)
