"""Adopted files of every opset and spelling compute the same map."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from foreign_files import PREPROCESSING, adopted, images, network, plain, refused
from onnx import helper, numpy_helper

from sodeploy.errors import UserError
from sodeploy.export.adopt import adopt
from sodeploy.runtime.onnx_session import start_session


def resizing(opset: int, mode: str, scale: float) -> onnx.ModelProto:
    """Pooling by 2, a resize as that opset writes it, and a second one back to the input's size."""
    scales = {
        "up": np.array([1, 1, scale, scale], np.float32),
        "back": np.array([1, 1, 2 / scale, 2 / scale], np.float32),
    }

    def resize(source: str, target: str, key: str) -> onnx.NodeProto:
        if opset < 9:
            return helper.make_node("Upsample", [source], [target], mode=mode, scales=scales[key].tolist())
        return helper.make_node("Resize" if opset == 10 else "Upsample", [source, key], [target], mode=mode)

    body = [
        helper.make_node("MaxPool", ["features"], ["small"], kernel_shape=[2, 2], strides=[2, 2]),
        resize("small", "middle", "up"),
        resize("middle", "large", "back"),
        helper.make_node("Conv", ["large", "head"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["saliency"]),
    ]
    return network(body, {} if opset < 9 else scales, opset)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize(("opset", "scale"), [(7, 2.0), (8, 1.5), (9, 2.0), (9, 1.5), (10, 1.5), (10, 4.0), (10, 0.5)])
def test_resizing_of_old_opsets_keeps_its_coordinates(tmp_path: Path, opset: int, mode: str, scale: float) -> None:
    model = resizing(opset, mode, scale)
    new = adopted(model, tmp_path)
    assert "Upsample" not in {node.op_type for node in new.graph.node}
    np.testing.assert_allclose(plain(new, images()), plain(model, images()), atol=1e-6)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 16, 18, 20, 21, 22, 23])
def test_opsets(tmp_path: Path, opset: int) -> None:
    model = network(opset=opset)
    new = adopted(model, tmp_path)
    assert 17 <= new.opset_import[0].version <= 21
    np.testing.assert_allclose(plain(new, images()), plain(model, images()), atol=1e-6)


def sparse(values: np.ndarray, at: list[Any], dims: list[int], name: str = "head") -> onnx.SparseTensorProto:
    indices = numpy_helper.from_array(np.array(at, np.int64), f"{name}/indices")
    return helper.make_sparse_tensor(numpy_helper.from_array(values.astype(np.float32), name), indices, dims)


@pytest.mark.parametrize("at", [[1, 3], [[0, 1, 0, 0], [0, 3, 0, 0]]], ids=["linear", "by axis"])
@pytest.mark.parametrize("stored", ["initializer", "node"])
def test_sparse_constants_are_stored_dense(tmp_path: Path, at: list[Any], stored: str) -> None:
    values = np.array([0.6, -0.4])
    model, dense = network(), network()
    head = np.zeros((1, 4, 1, 1), np.float32)
    head[0, [1, 3]] = values[:, None, None]
    dense.graph.initializer[1].CopyFrom(numpy_helper.from_array(head, "head"))
    del model.graph.initializer[1]
    if stored == "initializer":
        model.graph.sparse_initializer.append(sparse(values, at, [1, 4, 1, 1]))
    else:
        node = helper.make_node("Constant", [], ["head"], sparse_value=sparse(values, at, [1, 4, 1, 1]))
        model.graph.node.insert(0, node)
    new = adopted(model, tmp_path)
    np.testing.assert_allclose(plain(new, images()), plain(dense, images()), atol=1e-6)


@pytest.mark.parametrize(
    ("at", "dims", "message"),
    [([1, 3], [2**40, 2**20], "too large to store dense"), ([1, 9], [1, 4, 1, 1], "is broken")],
)
def test_sparse_constants_that_make_no_sense(tmp_path: Path, at: list[Any], dims: list[int], message: str) -> None:
    model = network()
    del model.graph.initializer[1]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["head"], sparse_value=sparse(np.ones(2), at, dims)))
    refused(model, tmp_path, message)


def test_weights_among_the_inputs(tmp_path: Path) -> None:
    model = network(opset=9)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    new = adopted(model, tmp_path)
    assert [value.name for value in new.graph.input] == ["picture"]
    np.testing.assert_allclose(plain(new, images()), plain(network(opset=9), images()), atol=1e-6)


def test_unsorted_nodes_and_unused_domains(tmp_path: Path) -> None:
    model = network()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.opset_import.extend([helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("ai.onnx.ml", 3)])
    new = adopted(model, tmp_path)
    assert [entry.domain for entry in new.opset_import] == [""]
    np.testing.assert_allclose(plain(new, images()), plain(network(), images()), atol=1e-6)


def test_nodes_that_wait_for_one_another(tmp_path: Path) -> None:
    body = [
        helper.make_node("Add", ["features", "b"], ["a"], name="left"),
        helper.make_node("Relu", ["a"], ["b"], name="right"),
        helper.make_node("Conv", ["b", "head"], ["saliency"]),
    ]
    refused(network(body), tmp_path, "waits for its own result|cannot be loaded")


def test_local_functions(tmp_path: Path) -> None:
    inner = [
        helper.make_node("Sigmoid", ["x"], ["gate"]),
        helper.make_node("Mul", ["x", "gate"], ["y"]),
    ]
    function = helper.make_function("theirs", "Swish", ["x"], ["y"], inner, [helper.make_opsetid("", 17)])
    body = [
        helper.make_node("Swish", ["features"], ["s"], domain="theirs"),
        helper.make_node("Conv", ["s", "head"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["saliency"]),
    ]
    model = network(body)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("theirs", 1))
    new = adopted(model, tmp_path)
    assert not new.functions
    assert {node.domain for node in new.graph.node} == {""}
    np.testing.assert_allclose(plain(new, images()), plain(model, images()), atol=1e-6)


def test_external_data(tmp_path: Path) -> None:
    expected = plain(network(), images())
    onnx.save(network(), tmp_path / "theirs.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    path = adopt(tmp_path / "theirs.onnx", tmp_path / "new.onnx", PREPROCESSING)
    np.testing.assert_allclose(plain(path, images()), expected, atol=1e-6)
    (tmp_path / "weights").unlink()
    with pytest.raises(UserError, match=r"that can be read: .*weights"):
        adopt(tmp_path / "theirs.onnx", tmp_path / "other.onnx", PREPROCESSING)
    assert not (tmp_path / "other.onnx").exists()


def test_an_operator_whose_newer_form_only_takes_more_types(tmp_path: Path) -> None:
    body = [
        helper.make_node("GlobalMaxPool", ["features"], ["most"]),
        helper.make_node("Sub", ["features", "most"], ["below"]),
        helper.make_node("Conv", ["below", "head"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["saliency"]),
    ]
    new = adopted(network(body, opset=22), tmp_path)
    assert [(entry.domain, entry.version) for entry in new.opset_import] == [("", 21)]
    np.testing.assert_allclose(plain(new, images()), plain(network(body, opset=22), images()), atol=1e-6)


def test_a_format_newer_than_onnxruntime_reads(tmp_path: Path) -> None:
    model = network()
    model.ir_version = 14
    new = adopted(model, tmp_path)
    np.testing.assert_allclose(plain(new, images()), plain(network(), images()), atol=1e-6)


@pytest.mark.parametrize(
    ("body", "opset", "message"),
    [
        (
            ["CumProd", "features", "axis"],
            26,
            "opset 26 cannot be lowered to 21.*its CumProd has no form in it.*without",
        ),
        (["Sharpen", "features"], 17, "onnxruntime has no operator Sharpen.; export the network without it"),
        (["RandomNormalLike", "features"], 17, "node noise is a RandomNormalLike, so the map differs from run to run"),
    ],
)
def test_an_operator_that_stands_in_the_way_is_named(tmp_path: Path, body: list[str], opset: int, message: str) -> None:
    nodes = [
        helper.make_node(body[0], body[1:], ["made"], name="noise"),
        helper.make_node("Conv", ["made", "head"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["saliency"]),
    ]
    refused(network(nodes, {"axis": np.array(1)}, opset), tmp_path, message)


def test_an_operator_that_a_session_lacks_is_named(tmp_path: Path) -> None:
    model = network([helper.make_node("Warp", ["features"], ["saliency"], domain="my.own")])
    model.opset_import.append(helper.make_opsetid("my.own", 1))
    onnx.save(model, tmp_path / "own.onnx")
    with pytest.raises(UserError, match=r"onnxruntime has no operator my\.own:Warp\); export the network without it"):
        start_session(tmp_path / "own.onnx")


@pytest.mark.parametrize(
    ("opset", "nodes"),
    [
        (24, [helper.make_node("Swish", ["features"], ["made"])]),
        (23, [
            helper.make_node("Transpose", ["features"], ["last"], perm=[0, 2, 3, 1]),
            helper.make_node("RMSNormalization", ["last", "scale"], ["normal"], axis=-1),
            helper.make_node("Transpose", ["normal"], ["made"], perm=[0, 3, 1, 2]),
        ]),
    ],
    ids=["an attribute left out", "a weight among the constants"],
)  # fmt: skip
def test_newer_operators_are_written_out(tmp_path: Path, opset: int, nodes: list[onnx.NodeProto]) -> None:
    head = [helper.make_node("Conv", ["made", "head"], ["logit"]), helper.make_node("Sigmoid", ["logit"], ["saliency"])]
    model = network([*nodes, *head], {"scale": np.linspace(0.5, 1.5, 4, dtype=np.float32)}, opset)
    new = adopted(model, tmp_path)
    np.testing.assert_allclose(plain(new, images()), plain(model, images()), atol=1e-5)


def test_a_mask_of_minus_infinity_becomes_finite(tmp_path: Path) -> None:
    body = [
        helper.make_node("Add", ["features", "mask"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=3),
        helper.make_node("Conv", ["weights", "head"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["saliency"]),
    ]
    model = network(body, {"mask": np.where(np.arange(32) % 2, -np.inf, 0).astype(np.float32)})
    new = adopted(model, tmp_path)
    assert all(np.isfinite(numpy_helper.to_array(tensor)).all() for tensor in new.graph.initializer)
    np.testing.assert_allclose(plain(new, images()), plain(model, images()), atol=1e-6)
