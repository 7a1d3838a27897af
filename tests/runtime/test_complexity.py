"""MACs and parameters equal a count by hand, whichever form the weights have."""

import numpy as np
import pytest

from sodeploy.runtime.contract import Contract
from sodeploy.runtime.measure.complexity import Complexity, complexity

onnx = pytest.importorskip("onnx")
helper = onnx.helper


@pytest.fixture
def count(tmp_path, make_contract):
    """Counts a graph given as nodes and constants; input `image` (batch, 3, 16, 24), output `saliency`."""

    def run(nodes: list, constants: dict[str, np.ndarray], batch: int | None = 1) -> Complexity:
        contract: Contract = make_contract(batch=batch)
        value = helper.make_tensor_value_info
        shape = [batch or "N", 3, 16, 24]
        graph = helper.make_graph(
            nodes,
            "counted",
            [value("image", onnx.TensorProto.FLOAT, shape)],
            [value("saliency", onnx.TensorProto.FLOAT, None)],
            [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        path = tmp_path / "counted.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return complexity(path, contract)

    return run


def weights(*shape: int) -> np.ndarray:
    return np.full(shape, 0.1, np.float32)


def test_convolutions_strided_grouped_and_transposed(count):
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),  # (6, 8, 12)
        helper.make_node("Conv", ["a", "w2"], ["b"], group=3, pads=[1, 1, 1, 1]),  # (9, 8, 12)
        helper.make_node("ConvTranspose", ["b", "w3"], ["saliency"], strides=[2, 2]),  # (1, 16, 24)
    ]
    constants = {"w1": weights(6, 3, 3, 3), "b1": weights(6), "w2": weights(9, 2, 3, 3), "w3": weights(9, 1, 2, 2)}
    found = count(nodes, constants)
    assert found.params == 6 * 27 + 6 + 9 * 18 + 9 * 4
    assert found.macs == 6 * 96 * 27 + 9 * 96 * 18 + 9 * 96 * 4
    assert found.weights == "fp32"


def test_matrix_products(count):
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),  # (1, 1152)
        helper.make_node("Gemm", ["flat", "w1", "b1"], ["a"], transB=1),  # (1, 5)
        helper.make_node("MatMul", ["a", "w2"], ["b"]),  # (1, 7)
        helper.make_node("Add", ["b", "b2"], ["saliency"]),
    ]
    constants = {"w1": weights(5, 1152), "b1": weights(5), "w2": weights(5, 7), "b2": weights(7)}
    found = count(nodes, constants)
    assert found.params == 5 * 1152 + 5 + 35 + 7
    assert found.macs == 1152 * 5 + 5 * 7


@pytest.mark.parametrize("form", ["stored as int8", "stored as float"])
def test_quantised_weights_count_as_before_and_scales_not_at_all(count, form):
    stored = np.ones((6, 3, 1, 1), np.int8) if form == "stored as int8" else weights(6, 3, 1, 1)
    parameters = {"s": np.full(6, 0.1, np.float32), "z": np.zeros(6, np.int8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "xs", "xz"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["x"]),
        helper.make_node("DequantizeLinear", ["w" if form == "stored as int8" else "wq", "s", "z"], ["wd"], axis=0),
        helper.make_node("Conv", ["x", "wd", "b"], ["saliency"]),
    ]
    if form == "stored as float":
        nodes.insert(2, helper.make_node("QuantizeLinear", ["w", "s", "z"], ["wq"], axis=0))
    constants = {"w": stored, "b": weights(6), "xs": np.float32(0.1), "xz": np.int8(0), **parameters}
    assert count(nodes, constants) == Complexity(params=24, macs=6 * 3 * 16 * 24, weights="int8")


def test_half_precision_weights_are_recognised(save_model, make_contract):
    assert complexity(save_model(dtype=np.float16), make_contract()) == Complexity(4, 3 * 16 * 24, "fp16")


def test_shared_weights_count_once_and_constants_never(count):
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["b"]),
        helper.make_node("Mul", ["b", "half"], ["c"]),
        helper.make_node("Add", ["c", "mask"], ["d"]),
        helper.make_node("Resize", ["d", "", "scales"], ["saliency"]),
    ]
    constants = {
        "w": weights(3, 3, 1, 1),
        "half": np.array([0.5], np.float32),
        "mask": weights(1, 1, 16, 24),
        "scales": np.ones(4, np.float32),
    }
    assert count(nodes, constants) == Complexity(params=9, macs=2 * 9 * 16 * 24, weights="fp32")


def test_a_network_without_weights_counts_nothing(count):
    assert count([helper.make_node("Relu", ["image"], ["saliency"])], {}) == Complexity(0, 0, "fp32")


@pytest.mark.parametrize("batch", [1, 4, None])
def test_macs_are_of_one_image(save_model, make_contract, batch):
    assert complexity(save_model(batch=batch), make_contract(batch=batch)).macs == 3 * 16 * 24


def test_a_dynamic_graph_is_counted_at_the_native_size(save_model, make_contract):
    assert complexity(save_model(dynamic_size=True), make_contract()).macs == 3 * 16 * 24


def test_u2netp_is_counted_as_published(research_file, make_contract):
    contract = make_contract(height=320, width=320, input_name="input.1", output_name="1959")
    found = complexity(research_file("weights/u2netp-fp32-from-fp16.onnx"), contract)
    assert found.macs == 19_756_089_600  # 19.756 G
    assert found.params == 1_131_181 - 5_696  # batch norms folded: their weight and bias are gone
