"""Operators of other makers, and exports in training mode, become ONNX's own operators in inference mode."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from foreign_files import PREPROCESSING, adopted, images, network, plain, refused
from onnx import TensorProto, helper

from sodeploy.export.adopt import adopt


@pytest.mark.parametrize("level", ["ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED"])
def test_saved_by_onnxruntime_after_optimization(tmp_path: Path, level: str) -> None:
    source = network()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "theirs.onnx")
    onnxruntime.InferenceSession(source.SerializeToString(), options, providers=["CPUExecutionProvider"])
    path = adopt(tmp_path / "theirs.onnx", tmp_path / "new.onnx", PREPROCESSING)
    assert {node.op_type for node in onnx.load(path).graph.node} == {"Conv", "Relu", "Sigmoid"}
    np.testing.assert_allclose(plain(path, images()), plain(source, images()), atol=1e-6)


def contrib(node: onnx.NodeProto, **constants: Any) -> onnx.ModelProto:
    """The fused `node`, from `features` to `f`, in a network; where needed with channels last."""
    body = [
        helper.make_node("Transpose", ["features"], ["rows"], perm=[0, 2, 3, 1]),
        node,
        helper.make_node("Transpose", ["f"], ["back"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["back", "head"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["saliency"]),
    ]
    model = network(body, {name: np.asarray(value, np.float32) for name, value in constants.items()})
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


FOUR = [0.5, -0.2, 1.5, 0.8]
CONTRIB = {
    "Gelu": (["rows"], {}, {}),
    "BiasGelu": (["rows", "bias"], {}, {"bias": FOUR}),
    "FastGelu": (["rows", "bias"], {}, {"bias": FOUR}),
    "QuickGelu": (["rows"], {"alpha": 1.5}, {}),
    "FusedMatMul": (["rows", "matrix"], {"transB": 1, "alpha": 0.5}, {"matrix": np.outer(FOUR, FOUR) + np.eye(4)}),
}


@pytest.mark.parametrize("kind", CONTRIB)
def test_fused_operators(tmp_path: Path, kind: str) -> None:
    inputs, attributes, constants = CONTRIB[kind]
    model = contrib(helper.make_node(kind, inputs, ["f"], domain="com.microsoft", **attributes), **constants)
    new = adopted(model, tmp_path)
    assert {node.domain for node in new.graph.node} == {""}
    np.testing.assert_allclose(plain(new, images()), plain(model, images()), atol=1e-5)


def test_operator_of_another_maker(tmp_path: Path) -> None:
    node = helper.make_node("NhwcMaxPool", ["rows"], ["f"], domain="com.microsoft", kernel_shape=[1, 1])
    refused(contrib(node), tmp_path, "com.microsoft::NhwcMaxPool|cannot be loaded")
    model = contrib(helper.make_node("Warp", ["rows"], ["f"], domain="mmcv", name="warp"))
    model.opset_import.append(helper.make_opsetid("mmcv", 1))
    refused(model, tmp_path, "node warp is mmcv::Warp, which is not an operator of ONNX")


def test_exported_in_training_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    constants = {name: np.array(FOUR, np.float32) ** 2 for name in ("gamma", "beta", "mean", "var")}
    constants |= {"ratio": np.float32(0.5), "yes": np.array(True)}
    outputs = ["n", "new_mean", "new_var"]
    body = [
        helper.make_node("BatchNormalization", ["features", "gamma", "beta", "mean", "var"], outputs, training_mode=1),
        helper.make_node("Dropout", ["n", "ratio", "yes"], ["d", "kept"]),
        helper.make_node("Conv", ["d", "head"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["saliency"]),
    ]
    model = network(body, constants)
    model.graph.output.append(helper.make_tensor_value_info("new_mean", TensorProto.FLOAT, (4,)))
    new = adopted(model, tmp_path)
    assert "training mode: BatchNormalization (1), Dropout (1)" in " ".join(capsys.readouterr().err.split())
    inference = copy.deepcopy(model)
    del inference.graph.output[1:]
    batch_norm, dropout = inference.graph.node[2:4]
    del batch_norm.attribute[:], batch_norm.output[1:], dropout.input[1:], dropout.output[1:]
    np.testing.assert_allclose(plain(new, images()), plain(inference, images()), atol=1e-5)
