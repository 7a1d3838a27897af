"""ONNX files as people have them are adopted with the map they had, or refused in one line that names the cause."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from sodeploy.errors import UserError
from sodeploy.export.adopt import adopt
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
    return onnx.load(adopt(folder / "theirs.onnx", folder / "new.onnx", PREPROCESSING, **options))


def contract(model: onnx.ModelProto) -> Contract:
    return contract_of({entry.key: entry.value for entry in model.metadata_props}, "new")


def refused(model: onnx.ModelProto, folder: Path, message: str, **options: Any) -> None:
    onnx.save(model, folder / "theirs.onnx")
    with pytest.raises(UserError, match=message) as caught:
        adopt(folder / "theirs.onnx", folder / "new.onnx", PREPROCESSING, **options)
    assert "\n" not in str(caught.value)
    assert "theirs.onnx" in str(caught.value)
    assert [path.name for path in folder.iterdir()] == ["theirs.onnx"]


# ---------------------------------------------------------------------------------------------- opsets and spellings


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


# --------------------------------------------------------------------------------- other makers' operators, training


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


# --------------------------------------------------------------------------------------------------- control flow


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


# ------------------------------------------------------------------------------------------------- inputs and outputs


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
    refused(with_output("0 to 255"), tmp_path, "a map of 0 to 255, no logit", logit=True)
    refused(with_output("logits of two"), tmp_path, "two channels of .* give --logit")
    refused(with_output("softmax of two"), tmp_path, "has 2 channels; --channel 2 is not one of 0 to 1", channel=2)


# -------------------------------------------------------------------------------------------------- sizes and batches


def test_batch_fixed_inside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = [
        helper.make_node("Conv", ["features", "head"], ["logit"]),
        helper.make_node("Reshape", ["logit", "one"], ["flat"]),
        helper.make_node("Sigmoid", ["flat"], ["saliency"]),
    ]
    model = network(body, {"one": np.array([1, 1, H, W], np.int64)}, shape=("n", 3, H, W))
    new = adopted(model, tmp_path)
    assert contract(new).batch == 1
    assert "the graph takes 1 only" in " ".join(capsys.readouterr().err.split())
    np.testing.assert_allclose(plain(new, images()), plain(model, images()), atol=1e-6)


def test_a_batch_that_mixes_its_images_is_fixed(tmp_path: Path) -> None:
    body = [
        helper.make_node("Conv", ["features", "head"], ["logit"]),
        helper.make_node("ReduceMax", ["logit"], ["most"]),
        helper.make_node("Sub", ["logit", "most"], ["lower"]),
        helper.make_node("Sigmoid", ["lower"], ["saliency"]),
    ]
    assert contract(adopted(network(body, shape=("n", 3, H, W)), tmp_path)).batch == 1


@pytest.mark.parametrize("batch", [2, 4, 5])
def test_fixed_batch(tmp_path: Path, batch: int) -> None:
    model = network(shape=(batch, 3, H, W))
    new = adopted(model, tmp_path)
    assert contract(new).batch == batch
    np.testing.assert_allclose(plain(new, images(batch)), plain(model, images(batch)), atol=1e-6)


def test_size_that_does_not_fit(tmp_path: Path) -> None:
    body = [
        helper.make_node("MaxPool", ["features"], ["small"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Resize", ["small", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("Concat", ["features", "large"], ["both"], axis=1),
        helper.make_node("Conv", ["both", "wide"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["saliency"]),
    ]
    constants = {"scales": np.array([1, 1, 4, 4], np.float32), "wide": np.full((1, 8, 1, 1), 0.3, np.float32)}
    model = network(body, constants, shape=(1, 3, "h", "w"))
    refused(
        model,
        tmp_path,
        "does not take a batch of 1 at 30x30; its sides must be multiples of 4: --size 28 28 or",
        size=(30, 30),
    )
    refused(model, tmp_path, "takes more than 4 GiB", size=(10**6, 10**6))
    assert contract(adopted(model, tmp_path, size=(32, 28))).height == 32
