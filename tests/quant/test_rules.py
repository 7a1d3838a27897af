"""Every rule that engines have for Q/DQ, broken once, with the node named; and graphs of ours, which break none."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from sodeploy.errors import UserError
from sodeploy.quant import build_engine
from sodeploy.quant.emit.checks import check_cpu, check_tensorrt, unequal_scales
from sodeploy.quant.emit.cpu import emit_cpu
from sodeploy.quant.emit.fp16 import emit_fp16
from sodeploy.quant.emit.tensorrt import emit_tensorrt
from sodeploy.quant.graph import Network
from sodeploy.quant.planning.plan import Plan, save_plan
from sodeploy.quant.sources import Edited


@pytest.fixture
def graph(unet: Network, plan: Plan) -> onnx.ModelProto:
    return emit_tensorrt(unet, plan)


def replace_constant(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(numpy_helper.to_array(tensor))), name))


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def to_uint8(model: onnx.ModelProto) -> None:
    replace_constant(model, "image/zero_point", lambda _: np.uint8(0))


def shift_zero_point(model: onnx.ModelProto) -> None:
    replace_constant(model, "b/zero_point", lambda _: np.int8(-3))


def underflow(model: onnx.ModelProto) -> None:
    replace_constant(model, "a_pre/Conv/weight/scale/fp16", lambda scale: (scale.astype(np.float32) * 1e-9).astype("e"))


def negative_scale(model: onnx.ModelProto) -> None:
    replace_constant(model, "image/scale/fp16", np.negative)


def infinite_scale(model: onnx.ModelProto) -> None:
    replace_constant(model, "image/scale/fp16", lambda _: np.float16(np.inf))


def computed_scale(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Identity", ["image/scale/fp16"], ["computed"], name="Identity"))
    node(model, "image/QuantizeLinear").input[1] = "computed"


def scale_of_another_type(model: onnx.ModelProto) -> None:
    replace_constant(model, "b/scale/fp16", lambda scale: scale.astype(np.float32))


def weight_scale_of_another_type(model: onnx.ModelProto) -> None:
    replace_constant(model, "c_pre/Conv/weight/scale/fp16", lambda scale: scale.astype(np.float32))


def integer_bias(model: onnx.ModelProto) -> None:
    conv = node(model, "c_pre/Conv")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(16, np.int32), "bias"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(16, np.float16), "bias_scale"))
    new = helper.make_node("DequantizeLinear", ["bias", "bias_scale"], ["bias_float"], name="bias/DQ", axis=0)
    model.graph.node.insert(0, new)
    conv.input[2] = "bias_float"


def per_channel_activation(model: onnx.ModelProto) -> None:
    replace_constant(model, "b/scale/fp16", lambda scale: np.full(16, scale, np.float16))
    replace_constant(model, "b/zero_point", lambda _: np.zeros(16, np.int8))


def wrong_axis(model: onnx.ModelProto) -> None:
    # c's weight has 16 input and 16 output channels: only the axis tells them apart.
    node(model, "c_pre/Conv/weight/DequantizeLinear").attribute[0].i = 1


def too_few_scales(model: onnx.ModelProto) -> None:
    replace_constant(model, "c_pre/Conv/weight/scale/fp16", lambda scale: scale[:8])


def unlike_pair(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.float16(0.5), "other"))
    node(model, "b/DequantizeLinear").input[1] = "other"


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (to_uint8, "node image/QuantizeLinear quantizes to uint8, which TensorRT would cut at 127"),
        (shift_zero_point, "node b/QuantizeLinear has zero point -3"),
        (underflow, r"node a_pre/Conv/weight/DequantizeLinear has a float16 scale of 0.0 \(it underflowed\)"),
        (negative_scale, "node image/QuantizeLinear has a float16 scale of -0"),
        (infinite_scale, "node image/QuantizeLinear has a float16 scale of inf"),
        (computed_scale, "node image/QuantizeLinear has a scale that is computed"),
        (scale_of_another_type, "node b/QuantizeLinear quantizes float16 values with a float scale"),
        (weight_scale_of_another_type, r"node c_pre/Conv \(Conv\) mixes float and float16"),
        (integer_bias, "node bias/DQ dequantizes a bias, which must be float"),
        (per_channel_activation, "node b/QuantizeLinear quantizes an activation with 16 scales"),
        (wrong_axis, "node c_pre/Conv/weight/DequantizeLinear scales the weight of c_pre/Conv along axis 1"),
        (too_few_scales, "node c_pre/Conv/weight/DequantizeLinear has 8 scales for the 16 output channels"),
        (unlike_pair, "node b/DequantizeLinear dequantizes with another scale than b/QuantizeLinear"),
    ],
)
def test_a_broken_rule_names_the_node(graph: onnx.ModelProto, breaks: Callable, message: str) -> None:
    check_tensorrt(graph)
    breaks(graph)
    with pytest.raises(UserError, match=message) as caught:
        check_tensorrt(graph, "x.onnx")
    assert str(caught.value).startswith("x.onnx: node ")
    assert "\n" not in str(caught.value)


def test_a_zero_point_left_out_means_uint8(graph: onnx.ModelProto) -> None:
    for name in ("image/QuantizeLinear", "image/DequantizeLinear"):
        del node(graph, name).input[2]
    with pytest.raises(UserError, match="image/QuantizeLinear quantizes to uint8"):
        check_tensorrt(graph)


def test_graphs_without_integers_pass(unet: Network) -> None:
    check_tensorrt(unet.model)
    check_tensorrt(emit_fp16(unet))


def test_the_cpu_dialect_is_not_for_tensorrt(unet: Network, plan: Plan) -> None:
    with pytest.raises(UserError, match="uint8"):
        check_tensorrt(emit_cpu(unet, plan))


def test_scales_must_be_equal_where_values_pass_on(graph: onnx.ModelProto) -> None:
    assert unequal_scales(graph) == []
    graph.graph.initializer.append(numpy_helper.from_array(np.float16(0.5), "other"))
    for name in ("pooled/QuantizeLinear", "pooled/DequantizeLinear"):
        node(graph, name).input[1] = "other"
    check_tensorrt(graph)  # an engine would be right, if slower
    (problem,) = unequal_scales(graph)
    assert "pooled/QuantizeLinear (scale 0.5)" in problem
    assert "joined/QuantizeLinear" in problem


def test_our_cpu_graph_fuses_completely(unet: Network, plan: Plan) -> None:
    assert check_cpu(emit_cpu(unet, plan)) == []


def test_layers_that_do_not_fuse_are_named(unet: Network, plan: Plan, graph: onnx.ModelProto) -> None:
    assert check_cpu(graph) == ["a_pre/Conv", "b_pre/Conv", "c_pre/Conv", "d_pre/Conv"]
    model = emit_cpu(unet, plan)
    conv = node(model, "c_pre/Conv")
    conv.output[0] = "before"  # something between the layer and its ReLU that has no integer form
    index = list(model.graph.node).index(conv)
    model.graph.node.insert(index + 1, helper.make_node("Sin", ["before"], ["c_pre"], name="Sin"))
    assert check_cpu(model) == ["c_pre/Conv"]


def test_an_edit_that_makes_scales_unequal_is_warned_of(
    unet_file: Path, plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited = plan.model_copy(deep=True)
    shared = next(shared for shared in edited.ranges if "pooled" in shared.tensors)
    shared.tensors.remove("pooled")
    edited.ranges.append(shared.model_copy(update={"tensors": ["pooled"], "amax": shared.amax / 2}))
    save_plan(edited, tmp_path / "edited.json")
    build_engine.build(unet_file, tmp_path, Edited(tmp_path / "edited.json"), engines=False)
    assert "pooled/QuantizeLinear (scale" in capsys.readouterr().err
