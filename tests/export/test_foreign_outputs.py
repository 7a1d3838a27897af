"""Outputs of other forms become one map of 0 to 1, or are refused with the reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from foreign_files import H, W, adopted, images, network, plain, refused
from onnx import TensorProto, helper

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
