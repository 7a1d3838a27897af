"""A small foreign network in ONNX, and its adoption in a folder: for the tests of files as people have them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from sodeploy.errors import UserError
from sodeploy.export.adopt import adopt
from sodeploy.export.foreign import Choices
from sodeploy.runtime.contract import Contract, contract_of

PREPROCESSING: dict[str, Any] = {"network": "theirs", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
H, W = 24, 32


def network(
    body: list[onnx.NodeProto] | None = None,
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 17,
    shape: tuple[int | str, ...] = (1, 3, H, W),
    output: str = "saliency",
    output_shape: tuple[int | str | None, ...] | None = None,
    kind: int = TensorProto.FLOAT,
    output_kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """`picture` -> a convolution `features` of 4 channels -> `body` -> the map `saliency`.

    Without `body` it is a 1 x 1 head on `features` with a sigmoid.
    """
    random = np.random.default_rng(0)
    body = body or [
        helper.make_node("Conv", ["features", "head"], ["logit"], name="head"),
        helper.make_node("Sigmoid", ["logit"], [output], name="sigmoid"),
    ]
    values = {
        "first": random.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32),
        "head": random.normal(0, 0.6, (1, 4, 1, 1)).astype(np.float32),
        **(constants or {}),
    }
    nodes = [
        helper.make_node("Conv", ["picture", "first"], ["c"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["features"], name="relu"),
        *body,
    ]
    graph = helper.make_graph(
        nodes,
        "theirs",
        [helper.make_tensor_value_info("picture", kind, shape)],
        [helper.make_tensor_value_info(output, output_kind, output_shape or (shape[0], 1, *shape[2:]))],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def plain(model: onnx.ModelProto | Path, feed: np.ndarray, output: str | None = None) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    wanted = [output] if output else None
    return np.asarray(session.run(wanted, {session.get_inputs()[0].name: feed})[0])


def images(count: int = 1) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, 3, H, W), np.float32)


def adopted(model: onnx.ModelProto, folder: Path, **options: Any) -> onnx.ModelProto:
    onnx.save(model, folder / "theirs.onnx")
    return onnx.load(adopt(folder / "theirs.onnx", folder / "new.onnx", PREPROCESSING, Choices(**options)))


def contract(model: onnx.ModelProto) -> Contract:
    return contract_of({entry.key: entry.value for entry in model.metadata_props}, "new")


def refused(model: onnx.ModelProto, folder: Path, message: str, **options: Any) -> None:
    onnx.save(model, folder / "theirs.onnx")
    with pytest.raises(UserError, match=message) as caught:
        adopt(folder / "theirs.onnx", folder / "new.onnx", PREPROCESSING, Choices(**options))
    assert "\n" not in str(caught.value)
    assert "theirs.onnx" in str(caught.value)
    assert [path.name for path in folder.iterdir()] == ["theirs.onnx"]
