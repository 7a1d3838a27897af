"""If and Loop become plain nodes, or are refused by name."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from foreign_files import H, W, adopted, images, network, plain, refused
from onnx import TensorProto, helper, numpy_helper


def branch(name: str, factor: str) -> onnx.GraphProto:
    """Features times a constant of the outer graph, plus one of its own."""
    nodes = [
        helper.make_node("Mul", ["features", factor], ["m"]),
        helper.make_node("Add", ["m", "own"], ["result"]),
    ]
    own = numpy_helper.from_array(np.float32(0.1), "own")
    outputs = [helper.make_tensor_value_info("result", TensorProto.FLOAT, None)]
    return helper.make_graph(nodes, name, [], outputs, [own])


def branching(condition: list[onnx.NodeProto], shape: tuple[int | str, ...] = (1, 3, H, W)) -> onnx.ModelProto:
    body = [
        *condition,
        helper.make_node(
            "If", ["yes"], ["chosen"], name="if", then_branch=branch("a", "half"), else_branch=branch("b", "double")
        ),
        helper.make_node("Conv", ["chosen", "head"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["saliency"]),
    ]
    constants = {
        "half": np.float32(0.5), "double": np.float32(2), "limit": np.float32(0.35), "index": np.array(2, np.int64),
        "side": np.array(H, np.int64),
    }  # fmt: skip
    return network(body, constants, shape=shape)


OF_THE_SIZE = [
    helper.make_node("Shape", ["picture"], ["dims"]),
    helper.make_node("Gather", ["dims", "index"], ["height"]),
    helper.make_node("Equal", ["height", "side"], ["yes"]),
]
OF_THE_IMAGE = [
    helper.make_node("ReduceMean", ["features"], ["mean"], keepdims=0),
    helper.make_node("Greater", ["mean", "limit"], ["yes"]),
]


@pytest.mark.parametrize("shape", [(1, 3, H, W), (1, 3, "h", "w")])
def test_if_of_the_size_becomes_the_branch_taken(tmp_path: Path, shape: tuple[int | str, ...]) -> None:
    model = branching(OF_THE_SIZE, shape)
    new = adopted(model, tmp_path, size=(H, W))
    assert not {"If", "Where"} & {node.op_type for node in new.graph.node}
    np.testing.assert_allclose(plain(new, images()), plain(model, images()), atol=1e-6)


def test_if_of_the_image_becomes_a_selection(tmp_path: Path) -> None:
    model = branching(OF_THE_IMAGE)
    new = adopted(model, tmp_path)
    kinds = {node.op_type for node in new.graph.node}
    assert "If" not in kinds
    assert "Where" in kinds
    answers = []
    for factor in (0.1, 3):  # one image for each branch
        image = images() * np.float32(factor)
        answers.append(plain(model, image).mean())
        np.testing.assert_allclose(plain(new, image), plain(model, image), atol=1e-6)
    assert answers[0] != answers[1]


def loop(rounds: list[onnx.NodeProto]) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Mul", ["before", "half"], ["m"]),
        helper.make_node("Add", ["m", "features"], ["after"]),
        helper.make_node("Identity", ["going"], ["still"]),
    ]
    body = helper.make_graph(
        nodes,
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, ()),
            helper.make_tensor_value_info("going", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, None),
        ],
    )
    return network(
        [
            *rounds,
            helper.make_node("Loop", ["rounds", "", "features"], ["done"], name="loop", body=body),
            helper.make_node("Conv", ["done", "head"], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["saliency"]),
        ],
        {"half": np.float32(0.5), "three": np.array(3, np.int64)},
    )


def test_loop_is_unrolled(tmp_path: Path) -> None:
    model = loop([helper.make_node("Identity", ["three"], ["rounds"])])
    new = adopted(model, tmp_path)
    assert "Loop" not in {node.op_type for node in new.graph.node}
    np.testing.assert_allclose(plain(new, images()), plain(model, images()), atol=1e-6)


def test_loop_of_the_image_is_refused(tmp_path: Path) -> None:
    rounds = [
        helper.make_node("ReduceMax", ["features"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["rounds"], to=TensorProto.INT64),
    ]
    refused(loop(rounds), tmp_path, "node loop is a Loop whose rounds depend on the image")
