"""Deformable convolutions in every form, against onnxruntime's own kernel, and compiled by TensorRT-RTX."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from sodeploy.errors import UserError
from sodeploy.export.deform import rewrite_deformable
from sodeploy.quant import engine

H, W = 13, 18
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "modulated": {"mask": True},
    "without a bias": {"mask": True, "bias": False},
    "one by one": {"kernel": (1, 1), "pads": [0] * 4, "mask": True},
    "wide": {"kernel": (7, 7), "pads": [3] * 4, "mask": True},
    "not square": {"kernel": (3, 5), "pads": [1, 2, 1, 2], "strides": [2, 1]},
    "dilated": {"dilations": [2, 3], "pads": [2, 3, 2, 3]},
    "strided": {"strides": [2, 3], "mask": True},
    "without padding": {"pads": [0] * 4},
    "padded on one side": {"pads": [2, 0, 1, 3], "mask": True},
    "grouped": {"group": 2},
    "depthwise": {"group": 8, "mask": True},
    "offset groups": {"offset_group": 4, "mask": True},
    "everything": {"group": 2, "offset_group": 2, "mask": True, "strides": [2, 1], "dilations": [1, 2], "opset": 21},
}


def deformable(
    kernel: tuple[int, int] = (3, 3),
    pads: list[int] | None = None,
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    group: int = 1,
    offset_group: int = 1,
    mask: bool = False,
    bias: bool = True,
    opset: int = 19,
    batch: int | str = 2,
) -> onnx.ModelProto:
    """Offsets (and a mask) computed by a convolution from the input, as networks do, and the layer itself."""
    random = np.random.default_rng(0)
    pads, strides, dilations = pads or [1] * 4, strides or [1, 1], dilations or [1, 1]
    taps = kernel[0] * kernel[1]
    values = {
        "weight": random.normal(0, 0.2, (6 if group == 1 else 2 * group, 8 // group, *kernel)),
        "to_offsets": random.normal(0, 0.5, (2 * offset_group * taps, 8, *kernel)),
        "to_mask": random.normal(0, 0.5, (offset_group * taps, 8, *kernel)),
        "bias": random.normal(0, 1, 6 if group == 1 else 2 * group),
    }
    like = {"pads": pads, "strides": strides, "dilations": dilations}
    nodes = [helper.make_node("Conv", ["x", "to_offsets"], ["offsets"], **like)]
    if mask:
        nodes.append(helper.make_node("Conv", ["x", "to_mask"], ["logits"], **like))
        nodes.append(helper.make_node("Sigmoid", ["logits"], ["mask"]))
    inputs = ["x", "weight", "offsets", "bias" if bias else "", "mask" if mask else ""]
    while not inputs[-1]:
        inputs.pop()
    nodes.append(
        helper.make_node("DeformConv", inputs, ["y"], name="deform", group=group, offset_group=offset_group, **like)
    )
    graph = helper.make_graph(
        nodes,
        "deformable",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (batch, 8, H, W))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (None,) * 4)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("form", FORMS)
def test_same_values(form: str) -> None:
    model = deformable(**FORMS[form])
    x = np.random.default_rng(1).standard_normal((2, 8, H, W), np.float32)
    expected = run(model, x)
    assert rewrite_deformable(model) == 1
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    assert "DeformConv" not in kinds
    assert kinds.count("GridSample") == 1
    np.testing.assert_allclose(run(model, x), expected, atol=2e-5 * max(1, float(np.abs(expected).max())))


def test_free_batch_and_samples_far_outside() -> None:
    model = deformable(mask=True, batch="n")
    to_offsets = next(tensor for tensor in model.graph.initializer if tensor.name == "to_offsets")
    to_offsets.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(to_offsets) * 20, "to_offsets"))
    x = np.random.default_rng(1).standard_normal((3, 8, H, W), np.float32)
    expected = run(model, x)
    assert rewrite_deformable(model) == 1
    np.testing.assert_allclose(run(model, x), expected, atol=1e-3)


def test_unknown_size_stays() -> None:
    model = deformable()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "h"
    assert rewrite_deformable(model) == 0
    assert "DeformConv" in {node.op_type for node in model.graph.node}


@pytest.mark.skipif(
    "tensorrt_rtx" not in engine.installed_builders(),
    reason="tensorrt_rtx is not installed: pip install 'sodeploy[rtx]'",
)
@pytest.mark.parametrize("form", ["modulated", "everything"])
def test_rtx_compiles_it(tmp_path: Path, form: str) -> None:
    model = deformable(**FORMS[form])
    rewrite_deformable(model)
    onnx.save(model, tmp_path / "deform.onnx")
    from sodeploy.quant.engines.builder import Options, compile_engine

    compiled = compile_engine("tensorrt_rtx", tmp_path / "deform.onnx", Options("x", targets=["SM89"]))
    assert len(compiled.engine) > 0


@pytest.mark.skipif(
    "tensorrt_rtx" not in engine.installed_builders(),
    reason="tensorrt_rtx is not installed: pip install 'sodeploy[rtx]'",
)
def test_an_operator_that_the_engine_lacks_is_named(tmp_path: Path) -> None:
    from sodeploy.quant.engines.builder import Options, compile_engine

    needs_plugin = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 4] x) => (int64[2, N] y) { [where] y = NonZero(x) }'
    )
    for model, message in (
        (deformable(), r"deform\.onnx: tensorrt_rtx has no operator DeformConv \(node deform\).*; give a fixed --size"),
        (needs_plugin, r"deform\.onnx: tensorrt_rtx has no operator NonZero \(node where\).*; export .* without it"),
    ):
        onnx.save(model, tmp_path / "deform.onnx")
        with pytest.raises(UserError, match=message):
            compile_engine("tensorrt_rtx", tmp_path / "deform.onnx", Options("x", targets=["SM89"]))
