"""A normalized graph computes what it did, in one spelling."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sodeploy.quant.normalize import normalized
from sodeploy.runtime.onnx_file import captured

Run = Callable[[onnx.ModelProto, np.ndarray], np.ndarray]


def graph(
    nodes: Sequence[onnx.NodeProto], constants: dict[str, Any], shape: Sequence[int], opset: int = 19
) -> onnx.ModelProto:
    """A network from "x" of `shape` to "y"; its nodes are named after their outputs."""
    for node in nodes:
        node.name = node.name or node.output[0]
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def same(model: onnx.ModelProto, shape: Sequence[int], run: Run) -> onnx.ModelProto:
    """The normalized model, which computes what `model` does."""
    image = weights(*shape)
    wanted = run(model, image)
    made = normalized(onnx.ModelProto.FromString(model.SerializeToString()))
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_allclose(run(made, image), wanted, rtol=1e-5, atol=1e-5)
    return made


BIASES = {
    "none": None,
    "scalar": weights(),
    "one": weights(1),
    "channels": weights(5),
    "row": weights(1, 5),
    "one by one": weights(1, 1),
    "column": weights(3, 1),
    "matrix": weights(3, 5),
}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize(
    "attributes", [{}, {"alpha": 2.5, "beta": 0.3}, {"transA": 1, "transB": 1, "beta": 2.0}], ids=str
)
def test_a_gemm_loses_its_factors(run: Run, bias: str, attributes: dict[str, Any]) -> None:
    shape = (4, 3) if attributes.get("transA") else (3, 4)
    constants = {"w": weights(5, 4) if attributes.get("transB") else weights(4, 5)}
    inputs = ["x", "w"]
    if BIASES[bias] is not None:
        constants["b"] = BIASES[bias]
        inputs.append("b")
    made = same(graph([helper.make_node("Gemm", inputs, ["y"], **attributes)], constants, shape), shape, run)

    gemm = next(node for node in made.graph.node if node.op_type == "Gemm")
    assert {attribute.name for attribute in gemm.attribute} <= {"transB"}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in made.graph.initializer}
    assert len(gemm.input) == 2 or shapes[gemm.input[2]] == (5,)


def test_a_computed_bias_becomes_an_addition(run: Run) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
        helper.make_node("Conv", ["x", "w", "mean"], ["y"], pads=[1, 1, 1, 1]),
    ]
    shape = (1, 3, 6, 6)
    made = same(graph(nodes, {"w": weights(3, 3, 3, 3), "axes": np.array([0, 2, 3])}, shape), shape, run)
    assert [node.op_type for node in made.graph.node] == ["ReduceMean", "Reshape", "Conv", "Add"]
    assert len(made.graph.node[2].input) == 2


def test_a_gemm_with_computed_bias_and_beta(run: Run) -> None:
    nodes = [
        helper.make_node("ReduceMax", ["x", "axes"], ["most"], keepdims=1),
        helper.make_node("Gemm", ["x", "w", "most"], ["y"], beta=0.5),
    ]
    made = same(graph(nodes, {"w": weights(4, 5), "axes": np.array([1])}, (3, 4)), (3, 4), run)
    assert len(next(node for node in made.graph.node if node.op_type == "Gemm").input) == 2


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_padding_is_stated(run: Run, mode: str, stride: int) -> None:
    attributes = {"auto_pad": mode, "strides": [stride] * 2}
    shape = (1, 2, 9, 12)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], **attributes)]
    made = same(graph(nodes, {"w": weights(4, 2, 4, 3)}, shape), shape, run)
    assert "auto_pad" not in {attribute.name for attribute in made.graph.node[0].attribute}


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize("size", [None, [18, 24], [17, 23]])
def test_padding_of_a_transposed_convolution_is_stated(run: Run, mode: str, size: list[int] | None) -> None:
    attributes = {"auto_pad": mode, "strides": [2, 2]} | ({"output_shape": size} if size else {})
    shape = (1, 2, 9, 12)
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], **attributes)]
    made = same(graph(nodes, {"w": weights(2, 4, 4, 3)}, shape), shape, run)
    names = {attribute.name for attribute in made.graph.node[0].attribute}
    assert not names & {"auto_pad", "output_shape"}
    assert ("pads" in names) == (mode != "NOTSET" or size is not None)


def test_constants_of_every_form_become_initializers(run: Run) -> None:
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([2.0], np.float32), "values"),
        numpy_helper.from_array(np.array([1], np.int64), "indices"),
        [2],
    )
    forms = {
        "value_float": 0.5,
        "value_floats": [1.0, 2.0],
        "value_int": 3,
        "value_ints": [1, 2],
        "sparse_value": sparse,
    }
    nodes = [helper.make_node("Constant", [], [name], **{name: value}) for name, value in forms.items()]
    nodes += [helper.make_node("Cast", [name], [f"{name}/cast"], to=TensorProto.FLOAT) for name in forms]
    nodes.append(helper.make_node("Sum", ["x", *(f"{name}/cast" for name in forms)], ["y"]))
    made = same(graph(nodes, {}, (1, 2)), (1, 2), run)
    assert [node.op_type for node in made.graph.node] == ["Sum"]


def test_a_weight_behind_other_nodes_is_folded(run: Run) -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["turned"], perm=[1, 0, 2, 3]),
        helper.make_node("Identity", ["turned"], ["same"]),
        helper.make_node("Conv", ["x", "same"], ["y"]),
    ]
    shape = (1, 2, 5, 5)
    made = same(graph(nodes, {"w": weights(2, 4, 3, 3)}, shape), shape, run)
    assert [node.op_type for node in made.graph.node] == ["Conv"]


def test_what_is_random_or_fed_is_not_folded() -> None:
    nodes = [
        helper.make_node("RandomUniform", [], ["noise"], shape=[1, 2]),
        helper.make_node("Add", ["noise", "fed"], ["more"]),
        helper.make_node("Add", ["x", "more"], ["y"]),
    ]
    model = graph(nodes, {"fed": weights(1, 2)}, (1, 2))
    model.graph.input.append(helper.make_tensor_value_info("fed", TensorProto.FLOAT, [1, 2]))
    assert [node.op_type for node in normalized(model).graph.node] == ["RandomUniform", "Add", "Add"]


def test_subgraphs_keep_what_they_read(run: Run) -> None:
    branches = [
        helper.make_graph(
            [helper.make_node(op, ["x", "half"], [op])],
            op,
            [],
            [helper.make_tensor_value_info(op, TensorProto.FLOAT, None)],
        )
        for op in ("Add", "Mul")
    ]
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "zero"], ["large"]),
        helper.make_node("If", ["large"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    made = same(graph(nodes, {"zero": np.float32(0), "half": np.float32(0.5)}, (1, 2)), (1, 2), run)
    assert captured(made.graph.node[-1]) == ["x", "half"]
