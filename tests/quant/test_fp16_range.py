"""Values that fp16 cannot hold stay in fp32, with the reason in the plan."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from sodeploy.quant.calibration.histogram import MagnitudeHistogram
from sodeploy.quant.calibration.observer import calibrate
from sodeploy.quant.emit.fp16 import emit_fp16, emit_fp16_simulation
from sodeploy.quant.emit.tensorrt import emit_simulation, emit_tensorrt
from sodeploy.quant.graph import Network, load_network
from sodeploy.quant.planning.decide import make_plan
from sodeploy.quant.planning.evidence import Evidence
from sodeploy.quant.planning.fp16_range import beyond_fp16, fp16_decibels
from sodeploy.quant.planning.plan import Plan
from tests.quant.conftest import NetworkWriter, Picture, UNet

Run = Callable[[onnx.ModelProto, np.ndarray], np.ndarray]


def decibels(reference: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(reference.var() / np.mean((reference - got) ** 2)))


class Normalized(NetworkWriter):
    """Three convolutions; the weight of the second is `factor` times as large, and a normalization follows it."""

    def save(self, path: Path, factor: float, channels: slice = slice(None)) -> Path:
        a = self.conv("image", 3, 16, "a")
        b = self.conv(a, 16, 16, "b", relu=False)
        weight = next(tensor for tensor in self.constants if tensor.name == "b.weight")
        values = onnx.numpy_helper.to_array(weight).copy()
        values[channels] *= factor
        weight.CopyFrom(onnx.numpy_helper.from_array(values, "b.weight"))
        self.nodes[-1].input.pop()  # no bias: it would be larger than the products
        ones, zeros = self.constant("ones", np.ones(16, np.float32)), self.constant("zeros", np.zeros(16, np.float32))
        normal = self.node("InstanceNormalization", [b, ones, zeros], "normal", epsilon=1e-20)
        c = self.conv(self.node("Relu", [normal], "positive"), 16, 16, "c")
        self.node("Sigmoid", [self.conv(c, 16, 1, "head", relu=False)], "saliency")
        return self.write(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return load_network(Normalized().save(tmp_path_factory.mktemp("tiny") / "tiny.onnx", 1e-6))


@pytest.fixture(scope="module")
def tiny_plan(tiny: Network, pictures: list[Picture]) -> Plan:
    return make_plan(tiny, Evidence(calibrate(tiny, pictures)))


@pytest.mark.parametrize(("largest", "at_least", "at_most"), [(1.0, 70, 80), (1e-5, 30, 60), (1e-8, -1, 1)])
def test_the_noise_of_fp16_grows_below_its_normal_range(largest: float, at_least: float, at_most: float) -> None:
    values = np.random.default_rng(0).uniform(0, largest, 10000).astype(np.float32)
    histogram = MagnitudeHistogram()
    histogram.add(values)
    exact = values.astype(np.float64)
    measured = 10 * np.log10(np.sum(exact**2) / np.sum((exact - values.astype(np.float16)) ** 2))
    assert at_least < fp16_decibels(histogram) < at_most
    assert fp16_decibels(histogram) == pytest.approx(measured, abs=1)


def test_zeros_are_exact() -> None:
    histogram = MagnitudeHistogram()
    histogram.add(np.zeros(4, np.float32))
    assert fp16_decibels(histogram) == np.inf


def test_healthy_networks_have_no_such_node(unet: Network, pictures: list[Picture]) -> None:
    assert not beyond_fp16(unet, calibrate(unet, pictures))


def test_tiny_weights_and_what_they_make_stay_in_fp32(tiny: Network, tiny_plan: Plan) -> None:
    kept = tiny_plan.nodes("fp32")
    assert kept == {"b/Conv", "normal/InstanceNormalization"}
    assert "loses bits below 6.1e-05" in tiny_plan.layers["b/Conv"].reason
    assert tiny_plan.layers["c_pre/Conv"].precision == "int8"
    assert beyond_fp16(tiny, None).keys() == kept  # weights alone tell


def test_graphs_with_tiny_weights_keep_the_map(
    tiny: Network, tiny_plan: Plan, pictures: list[Picture], run: Run
) -> None:
    image = np.random.default_rng(5).standard_normal((1, 3, 32, 32)).astype(np.float32)
    wanted = run(tiny.model, image)
    for emit, least in ((emit_fp16, 40), (emit_fp16_simulation, 40), (emit_tensorrt, 15), (emit_simulation, 15)):
        assert decibels(wanted, run(emit(tiny, tiny_plan), image)) > least, emit
    without = Plan.without_int8(tiny)
    assert decibels(wanted, run(emit_fp16_simulation(tiny, without), image)) < 20


def test_one_tiny_channel_matters_before_a_normalization(tmp_path: Path) -> None:
    network = load_network(Normalized().save(tmp_path / "channel.onnx", 1e-6, slice(3, 4)))
    assert "b/Conv" in beyond_fp16(network, None)


def test_int8_does_not_pass_through_nodes_in_fp32(tmp_path: Path, pictures: list[Picture]) -> None:
    """A joined tensor that reaches 1e9 must not give its range to what it is joined with."""
    path = UNet().save(tmp_path / "unet.onnx")
    model = onnx.load(path)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "c.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(16, 1e9, np.float32), "c.bias"))
    onnx.save(model, path)
    network = load_network(path)
    plan = make_plan(network, Evidence(calibrate(network, pictures)))
    assert {"c_pre/Conv", "joined/Concat", "d_pre/Conv"} <= plan.nodes("fp32")
    assert plan.layers["b_pre/Conv"].precision == "int8"
    assert plan.range_of()["a"].amax < 1e3
