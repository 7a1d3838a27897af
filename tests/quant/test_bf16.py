"""bf16: the graph is valid, has float32's range, and TensorRT-RTX compiles it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sodeploy.errors import UserError
from sodeploy.quant import build_engine, engine
from sodeploy.quant.calibration.observer import calibrate
from sodeploy.quant.emit.bf16 import coordinates, emit_bf16, emit_bf16_simulation
from sodeploy.quant.emit.convert import rounded
from sodeploy.quant.emit.float_types import BF16, FP16
from sodeploy.quant.emit.fp16 import emit_fp16_simulation, round_to_fp16
from sodeploy.quant.engines.kernels import summary
from sodeploy.quant.graph import Network, load_network
from sodeploy.quant.planning.fp16_range import beyond_fp16
from sodeploy.quant.planning.plan import Plan, load_plan, save_plan
from sodeploy.runtime.processing import preprocess
from sodeploy.runtime.session import open_session
from tests.quant.conftest import NetworkWriter, Picture

Run = Callable[[onnx.ModelProto, np.ndarray], np.ndarray]

needs_rtx = pytest.mark.skipif(
    "tensorrt_rtx" not in engine.installed_builders(),
    reason="tensorrt_rtx is not installed: pip install 'sodeploy[rtx]'",
)


@pytest.fixture(scope="module")
def image(unet: Network, pictures: list[Picture]) -> np.ndarray:
    return preprocess(pictures[0].image(), unet.contract)[None]


def decibels(reference: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(reference.var() / np.mean((reference - got) ** 2)))


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {info.name: info.type.tensor_type.elem_type for info in (*graph.input, *graph.value_info, *graph.output)}


class Upsampling(NetworkWriter):
    """A ConvTranspose, which TensorRT-RTX refuses in bf16, between two layers."""

    def save(self, path: Path) -> Path:
        a = self.conv("image", 3, 16, "a")
        pooled = self.node("MaxPool", [a], "pooled", kernel_shape=[2, 2], strides=[2, 2])
        weight = self.constant("up.weight", self.rng.standard_normal((16, 16, 2, 2)).astype(np.float32) / 8)
        up = self.node("ConvTranspose", [pooled, weight], "up", strides=[2, 2])
        self.node("Sigmoid", [self.conv(up, 16, 1, "head", relu=False)], "saliency")
        return self.write(path)


class Sampling(NetworkWriter):
    """A layer moves the points of a grid of 256 x 256, and its features are sampled there."""

    def save(self, path: Path, size: int = 256) -> Path:
        a = self.conv("image", 3, 16, "a")
        moved = self.node("Transpose", [self.conv(a, 16, 2, "moves", relu=False)], "moves_last", perm=[0, 2, 3, 1])
        small = self.node("Mul", [moved, self.constant("step", np.array(1e-3, np.float32))], "small")
        line = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
        points = np.stack(np.meshgrid(line, line), -1)[None]
        grid = self.node("Add", [small, self.constant("points", points)], "grid")
        sampled = self.node("GridSample", [a, grid], "sampled", mode="bilinear")
        self.node("Sigmoid", [self.conv(sampled, 16, 1, "head", relu=False)], "saliency")
        return self.write(path, size)


class Cancelling(NetworkWriter):
    """Values near 1e4 cancel to about 1."""

    def save(self, path: Path) -> Path:
        a = self.conv("image", 3, 16, "a")
        offset = self.constant("offset", np.array(1e4, np.float32))
        far = self.node("Add", [a, offset], "far")
        near = self.node("Sub", [self.node("Relu", [far], "still_far"), offset], "near")
        self.node("Sigmoid", [self.conv(near, 16, 1, "head", relu=False)], "saliency")
        return self.write(path)


def test_rounding_is_to_nearest_even_and_never_infinite() -> None:
    steps = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-7, -3.4e38, np.inf], np.float32)
    expected = [1, 1, 1 + 2**-6, 1 + 2**-7, -BF16.largest, BF16.largest]
    assert BF16.rounded(steps).astype(np.float64).tolist() == expected
    assert FP16.rounded(np.array([7e4, -np.inf], np.float32)).tolist() == [FP16.largest, -FP16.largest]


def test_the_simulation_rounds_as_the_type_does(run: Run) -> None:
    """onnxruntime's CPU keeps the casts, and rounds as `FloatType.rounded` does."""
    values = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32) * 1e5
    nodes = [
        helper.make_node("Cast", ["image"], ["short"], to=BF16.element),
        helper.make_node("Cast", ["short"], ["saliency"], to=TensorProto.FLOAT),
    ]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, values.shape) for name in ("image", "saliency")]
    graph = helper.make_graph(nodes, "casts", infos[:1], infos[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    assert np.array_equal(run(model, values), BF16.rounded(values).astype(np.float32))


def test_everything_is_bf16_but_what_goes_in_and_out(unet: Network) -> None:
    model = emit_bf16(unet)
    onnx.checker.check_model(model, full_check=True)
    types = types_of(model)
    assert types.pop("image") == types.pop("saliency") == TensorProto.FLOAT
    assert set(types.values()) == {TensorProto.BFLOAT16}
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.BFLOAT16, TensorProto.INT64}
    assert [node.op_type for node in model.graph.node].count("Cast") == 2


def test_values_of_a_million_are_noise_in_fp16_and_fit_bf16(
    large: Network, pictures: list[Picture], image: np.ndarray, run: Run
) -> None:
    layers = beyond_fp16(large, calibrate(large, pictures))
    assert layers["c_pre/Conv"].bf16
    plan = Plan.without_int8(large, layers)
    assert plan.nodes("fp32")
    assert not plan.needs_fp32()
    reference = run(large.model, image)
    assert not np.isfinite(run(round_to_fp16(large), image)).all()
    fp16, bf16 = (run(emit(large, plan), image) for emit in (emit_fp16_simulation, emit_bf16_simulation))
    assert decibels(reference, fp16) > decibels(reference, bf16) > 20
    assert set(types_of(emit_bf16(large, plan)).values()) == {TensorProto.FLOAT, TensorProto.BFLOAT16}
    assert types_of(emit_bf16(large, plan))["c_pre"] == TensorProto.BFLOAT16


def test_what_cancels_stays_in_fp32(tmp_path: Path, pictures: list[Picture], image: np.ndarray, run: Run) -> None:
    network = load_network(Cancelling().save(tmp_path / "cancelling.onnx"))
    plan = Plan.without_int8(network, beyond_fp16(network, calibrate(network, pictures)))
    assert {"far/Add", "near/Sub"} <= plan.needs_fp32()
    reference = run(network.model, image)
    assert decibels(reference, run(emit_bf16_simulation(network), image)) < 10
    assert decibels(reference, run(emit_bf16_simulation(network, plan), image)) > 20


def test_coordinates_stay_in_fp32(tmp_path: Path, run: Run) -> None:
    network = load_network(Sampling().save(tmp_path / "sampling.onnx"))
    assert coordinates(network) == {"sampled/GridSample", "grid/Add", "small/Mul", "moves_last/Transpose"}
    image = np.random.default_rng(0).standard_normal((1, 3, 256, 256)).astype(np.float32)
    reference = run(network.model, image)
    with_them, without = (run(graph, image) for graph in (emit_bf16_simulation(network), rounded(network, BF16)))
    assert decibels(reference, with_them) > decibels(reference, without) + 6
    types = types_of(emit_bf16(network))
    assert (types["sampled"], types["grid"], types["a"]) == (*[TensorProto.FLOAT] * 2, TensorProto.BFLOAT16)


def test_the_plan_keeps_the_flag(large: Network, pictures: list[Picture], tmp_path: Path) -> None:
    plan = Plan.without_int8(large, beyond_fp16(large, calibrate(large, pictures)))
    save_plan(plan, tmp_path / "plan.json")
    again = load_plan(tmp_path / "plan.json", large)
    assert again.layers == plan.layers
    again.layers["c_pre/Conv"].bf16 = None  # as an edit to fp32 has it
    assert again.needs_fp32() == {"c_pre/Conv"}


def test_a_build_writes_bf16_alone_and_says_what_it_costs(
    large: Network, pictures: list[Picture], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built = build_engine.build(large.path, tmp_path, floats=["bf16"], engines=False)
    assert built.graphs.keys() == {"bf16", "bf16.sim"}
    assert "dB to float32" in caplog.text
    with open_session(built.graphs["bf16.sim"]) as session:
        assert session.precision == "bf16"
    with pytest.raises(UserError) as refused:
        open_session(built.graphs["bf16"])
    assert "\n" not in str(refused.value)
    build_engine.build(large.path, tmp_path, engines=False)
    assert "--bf16 writes a graph that has" in caplog.text


@needs_rtx
def test_rtx_compiles_a_graph_of_bf16(unet: Network, tmp_path: Path) -> None:
    graph = emit_bf16(unet)
    onnx.save(graph, tmp_path / "unet.bf16.onnx")
    report = engine.build(tmp_path / "unet.bf16.onnx", tmp_path / "unet.engine", "tensorrt_rtx")
    assert report.precision == "bf16"
    assert summary(report.kernels)["convolutions"] == {"bf16": 5}


@needs_rtx
@pytest.mark.parametrize("kind", [Upsampling, Sampling])
def test_rtx_compiles_what_it_refuses_in_bf16(kind: type, tmp_path: Path) -> None:
    network = load_network(kind().save(tmp_path / "network.onnx"))
    onnx.save(emit_bf16(network), tmp_path / "network.bf16.onnx")
    report = engine.build(tmp_path / "network.bf16.onnx", tmp_path / "network.engine", "tensorrt_rtx")
    assert summary(report.kernels)["convolutions"]["bf16"] >= 2
