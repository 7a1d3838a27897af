"""Inputs of other types and layouts get an adapter in the graph, or are refused by name."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from foreign_files import H, W, adopted, contract, images, network, plain, refused
from onnx import TensorProto, helper, numpy_helper


def of_type(kind: int, moved: bool = False) -> onnx.ModelProto:
    """A network that takes integers and normalizes inside; with `moved` its channels come last."""
    model = network(shape=(1, H, W, 3) if moved else (1, 3, H, W), kind=kind, output_shape=(1, 1, H, W))
    nodes = [helper.make_node("Cast", ["picture"], ["float"], to=TensorProto.FLOAT)]
    if moved:
        nodes.insert(0, helper.make_node("Transpose", ["picture"], ["chw"], perm=[0, 3, 1, 2]))
        nodes[1].input[0] = "chw"
    nodes.append(helper.make_node("Div", ["float", "most"], ["scaled"]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(255), "most"))
    model.graph.node[0].input[0] = "scaled"
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    return model


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64])
def test_integer_inputs_take_pixels(tmp_path: Path, kind: int, moved: bool, capsys: pytest.CaptureFixture[str]) -> None:
    model = of_type(kind, moved)
    new = adopted(model, tmp_path)
    assert "mean and std are left out" in " ".join(capsys.readouterr().err.split())
    assert contract(new).mean == (0, 0, 0)
    assert {node.op_type for node in new.graph.node} <= {"Div", "Mul", "Conv", "Relu", "Sigmoid"}
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, H, W))
    given = pixels.transpose(0, 2, 3, 1) if moved else pixels
    wanted = plain(model, given.astype(helper.tensor_dtype_to_np_dtype(kind)))
    np.testing.assert_allclose(plain(new, pixels.astype(np.float32)), wanted, atol=1e-6)


def test_integers_that_are_computed_with_stay_integers(tmp_path: Path) -> None:
    model = of_type(TensorProto.INT32)
    model.graph.node.insert(0, helper.make_node("Div", ["picture", "two"], ["halves"]))
    model.graph.initializer.append(numpy_helper.from_array(np.int32(2), "two"))
    model.graph.node[1].input[0] = "halves"
    new = adopted(model, tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, H, W))
    np.testing.assert_allclose(plain(new, pixels.astype(np.float32)), plain(model, pixels.astype(np.int32)), atol=1e-6)


@pytest.mark.parametrize("kind", [TensorProto.BOOL, TensorProto.STRING, TensorProto.COMPLEX64])
def test_inputs_that_are_no_image(tmp_path: Path, kind: int) -> None:
    name = TensorProto.DataType.Name(kind).lower()
    refused(network(kind=kind), tmp_path, f"input picture is {name}; export the network with a float32 input")


def widened(kind: int) -> onnx.ModelProto:
    model = network(kind=kind, output_kind=kind)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    return model


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_other_float_types(tmp_path: Path, kind: int) -> None:
    model = widened(kind)
    new = adopted(model, tmp_path)
    found = {tensor.data_type for tensor in new.graph.initializer}
    assert not found & {TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
    assert new.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    np.testing.assert_allclose(plain(new, images()), plain(network(), images()), atol=0.02)


def test_fp16_is_judged_by_its_own_rounding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A steep map: in fp16 single pixels are far from their value in fp32, and rounding says so."""
    model = widened(TensorProto.FLOAT16)
    head = model.graph.initializer[1]
    head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) * np.float16(400), "head"))
    adopted(model, tmp_path)
    said = " ".join(capsys.readouterr().err.split())
    assert "its map in float16 differs from its own weights in float32 by" in said
    assert "rounding to float16 explains about" in said


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_casts_to_a_narrower_type_inside(tmp_path: Path, kind: int) -> None:
    body = [
        helper.make_node("Cast", ["features"], ["narrow"], to=kind),
        helper.make_node("Cast", ["narrow"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["wide", "head"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["saliency"]),
    ]
    new = adopted(network(body), tmp_path)
    np.testing.assert_allclose(plain(new, images()), plain(network(), images()), atol=1e-6)


def test_int8_holds_no_pixels(tmp_path: Path) -> None:
    refused(of_type(TensorProto.INT8), tmp_path, "input picture is int8, which holds no pixel above 127")


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("last", [False, True])
def test_images_of_other_channels(tmp_path: Path, channels: int, last: bool) -> None:
    model = network(shape=(1, H, W, channels) if last else (1, channels, H, W), output_shape=(1, 1, H, W))
    random = np.random.default_rng(0).normal(0, 0.3, (4, channels, 3, 3)).astype(np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(random, "first"))
    if last:
        model.graph.node.insert(0, helper.make_node("Transpose", ["picture"], ["moved"], perm=[0, 3, 1, 2]))
        model.graph.node[1].input[0] = "moved"
    refused(model, tmp_path, f"input picture takes {channels} channel.*3 channels, RGB or BGR, are adopted")
