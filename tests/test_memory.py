"""Memory: models become bytes without copies of their weights, and freed memory goes back to the system."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sodeploy.quant import graph
from sodeploy.quant.calibration.parts import GraphInParts
from sodeploy.quant.weights_aside import with_weights_aside, without_constants
from sodeploy.runtime.onnx_bytes import model_bytes, save_model


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((128, 256)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weight"], ["product"], name="product"),
            helper.make_node("Add", ["product", "bias"], ["y"], name="sum"),
        ],
        "two nodes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 128])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.float32(1), "bias")],
        doc_string="a graph",
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="test")
    helper.set_model_props(made, {"key": "value", "other": "ä"})
    return made


def test_the_bytes_are_those_of_protobuf(model: onnx.ModelProto, tmp_path: Path) -> None:
    assert model_bytes(model) == model.SerializeToString()
    save_model(model, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == model.SerializeToString()


def test_a_change_without_the_weights_is_the_same(model: onnx.ModelProto) -> None:
    seen = []

    def change(light: onnx.ModelProto) -> onnx.ModelProto:
        seen.append(len(light.SerializeToString()))
        return onnx.shape_inference.infer_shapes(light)

    changed = with_weights_aside(change, model)
    assert seen[0] < 1000
    assert changed.SerializeToString() == onnx.shape_inference.infer_shapes(model).SerializeToString()


def test_a_copy_without_constants_has_all_else(model: onnx.ModelProto) -> None:
    copied = without_constants(model)
    assert not copied.graph.initializer
    copied.graph.initializer.extend(model.graph.initializer)
    assert copied == model


def test_large_constants_are_read_when_they_are_needed(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "_LARGE", 1000)
    constants = graph.Network(model, contract=None, digest="", path=Path()).constants
    assert list(constants) == ["weight", "bias"]
    assert constants["bias"] is constants["bias"]
    assert constants["weight"] is not constants["weight"]
    np.testing.assert_array_equal(constants["weight"], numpy_helper.to_array(model.graph.initializer[0]))
    assert "product" not in constants


def test_the_input_of_a_graph_in_parts_is_read_without_a_session(model: onnx.ModelProto) -> None:
    """As for a network of one layer, whose weights are rounded by the image alone."""
    image = np.zeros((1, 128), np.float32)
    (found,) = GraphInParts(model, ["x"]).run(image)
    assert found["x"] is image


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_bytes_of_a_large_model_take_little_more_than_themselves() -> None:
    """protobuf's own take 3.7 times as much."""
    peak = _run(
        """
import numpy as np, onnx
from onnx import helper, numpy_helper
from sodeploy.runtime.onnx_bytes import model_bytes
weights = [numpy_helper.from_array(np.ones(2**20, np.float32), str(index)) for index in range(33)]
model = helper.make_model(helper.make_graph([], "large", [], [], weights))
del weights
before = resident()
data = model_bytes(model)
print((peak() - before) / len(data))
"""
    )
    assert float(peak) < 1.5


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sessions_share_an_arena_until_it_is_freed() -> None:
    kept, freed = _run(
        """
import numpy as np, onnx
from onnx import TensorProto, helper
from sodeploy.runtime.onnx_memory import free_shared_memory, share_memory
from sodeploy.runtime.onnx_session import session_options, start_session
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "abs", [x], [y])
model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
def run(size):
    return start_session(model, share_memory(session_options(1))).run(None, {"x": -np.ones(size, np.float32)})[0][-1]
assert run(1) == 1
before = resident()
for _ in range(3):
    assert run(25 * 2**20) == 1
kept = resident() - before
free_shared_memory()
print(kept / 2**20, (resident() - before) / 2**20)
assert run(10) == 1
"""
    ).split()
    assert 90 < float(kept) < 150  # of one session, 100 MiB, not of three
    assert float(freed) < 30


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has the setting, and /proc the figure")
def test_freed_blocks_go_back_to_the_system() -> None:
    left = _run(
        """
from sodeploy.memory import free_large_blocks_at_once
free_large_blocks_at_once()
bytearray(2**24)  # freed, after which glibc keeps blocks of up to 16 MiB by itself
before = resident()
blocks = [bytearray(b"1") * 2**20 for _ in range(100)]
del blocks[:-1]
print((resident() - before) / 2**20)
"""
    )
    assert float(left) < 20


def _run(script: str) -> str:
    """The output of a script in a process of its own, which has `resident()` and `peak()` in bytes."""
    figures = """
def _figure(name):
    with open("/proc/self/status") as file:
        return 1024 * int(next(line for line in file if line.startswith(name)).split()[1])
def resident():
    return _figure("VmRSS")
def peak():
    return _figure("VmHWM")
"""
    return subprocess.run([sys.executable, "-c", figures + script], check=True, capture_output=True, text=True).stdout
