"""Ranges with a shift: where they are taken, and that what the graphs compute is the same but for finer steps."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from sodeploy.calib_data import Dataset
from sodeploy.errors import UserError
from sodeploy.quant.build_engine import build
from sodeploy.quant.calibration.histogram import MagnitudeHistogram
from sodeploy.quant.calibration.observer import calibrate
from sodeploy.quant.calibration.statistics import Statistics
from sodeploy.quant.emit.checks import check_tensorrt
from sodeploy.quant.emit.cpu import emit_cpu, emit_openvino
from sodeploy.quant.emit.tensorrt import emit_simulation, emit_tensorrt
from sodeploy.quant.graph import Network, load_network
from sodeploy.quant.int8 import fp16_scale
from sodeploy.quant.layer_report import layer_report
from sodeploy.quant.planning.decide import make_plan
from sodeploy.quant.planning.evidence import Evidence
from sodeploy.quant.planning.plan import Plan, Range, load_plan, save_plan
from sodeploy.quant.planning.ranges import shared_range
from sodeploy.quant.sources import Images
from sodeploy.runtime.processing import preprocess
from tests.quant.conftest import NetworkWriter, Picture

Run = Callable[[onnx.ModelProto, np.ndarray], np.ndarray]


class Gated(NetworkWriter):
    """Activations of several kinds: PReLU, pooled and read twice, ReLU, sigmoid, and one that a sum reads."""

    def prelu(self, x: str) -> str:
        slopes = self.constant(f"{x}.slope", np.full((8, 1, 1), 0.05, np.float32))
        return self.node("PRelu", [x, slopes], f"{x}_prelu")

    def save(self, path: Path) -> Path:
        a = self.prelu(self.conv("image", 3, 8, "a", relu=False))
        pooled = self.node("MaxPool", [a], "pooled", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
        b = self.conv(pooled, 8, 8, "b", dilation=2)  # a ReLU
        c = self.node("Sigmoid", [self.conv(a, 8, 8, "c", relu=False, groups=8)], "gate")
        d = self.prelu(self.conv(c, 8, 8, "d", relu=False))
        e = self.prelu(self.conv(b, 8, 8, "e", relu=False))
        total = self.node("Add", [self.conv(d, 8, 8, "f", relu=False), e], "total")
        head = self.conv(self.conv(total, 8, 8, "g"), 8, 1, "head", relu=False)
        self.node("Sigmoid", [head], "saliency")
        return self.write(path)


@dataclass(frozen=True)
class Gates:
    """The network, and its plan with the largest values as ranges, so that nothing is clipped."""

    network: Network
    statistics: Statistics
    plan: Plan


@pytest.fixture(scope="module")
def gates(pictures: list[Picture], tmp_path_factory: pytest.TempPathFactory) -> Gates:
    network = load_network(Gated(seed=2).save(tmp_path_factory.mktemp("gated") / "gated.onnx"))
    statistics = calibrate(network, pictures)
    return Gates(network, statistics, make_plan(network, Evidence(statistics), "max"))


@pytest.fixture(scope="module")
def inputs(gates: Gates) -> list[np.ndarray]:
    return [preprocess(Picture("", seed).image(), gates.network.contract)[None] for seed in range(20, 24)]


def without_shifts(gates: Gates) -> Plan:
    plan = gates.plan.model_copy(deep=True)
    for shared in plan.ranges:
        shared.amax, shared.shift = shared.reach, None
    return plan


def test_a_shift_is_taken_where_values_lie_on_one_side_and_are_float_anyway(gates: Gates) -> None:
    ranges = gates.plan.range_of()
    shifted = {tensor for tensor, shared in ranges.items() if shared.shift is not None}
    assert {"a_prelu", "pooled", "gate", "d_prelu"} <= shifted
    assert not shifted & {"b", "total", "e_prelu"}  # from a ReLU; a sum; read by a sum
    assert ranges["a_prelu"] is ranges["pooled"]
    assert ranges["gate"].amax < 0.51  # half of a sigmoid's width


def test_zero_falls_on_a_step_and_the_range_holds_all_values(gates: Gates) -> None:
    for shared in gates.plan.ranges:
        if shared.shift is not None:
            scale = float(fp16_scale(shared.amax / 127))
            assert shared.shift / scale == pytest.approx(round(shared.shift / scale), abs=0.07)  # fp16 rounds it
            assert shared.maximum is not None
            assert shared.reach >= shared.maximum - 0.51 * scale
            assert shared.amax < 0.93 * shared.maximum


def test_the_graph_is_one_that_engines_take(gates: Gates) -> None:
    graph = emit_tensorrt(gates.network, gates.plan)
    check_tensorrt(graph)
    padded = [node for node in graph.graph.node if node.op_type == "Pad"]
    assert len(padded) == len({node.output[0] for node in padded}) == 4  # a: two ways of padding, d, and the gate
    for node in graph.graph.node:
        reads = node.input[0] if node.op_type == "Conv" else ""
        assert "/padded_" not in reads or not any(next(a.ints for a in node.attribute if a.name == "pads"))


def test_what_is_computed_stays(gates: Gates, inputs: list[np.ndarray], run: Run) -> None:
    graph = emit_simulation(gates.network, gates.plan)
    for x in inputs:
        assert np.abs(run(graph, x) - run(gates.network.model, x)).mean() < 0.01


def test_steps_are_finer(gates: Gates, pictures: list[Picture]) -> None:
    """By nearly a factor of two, 6 dB, for what a sigmoid makes, and for what a PReLU of slope .05 does."""

    def signal_to_noise(plan: Plan) -> dict[str, float]:
        report = layer_report(gates.network, plan, pictures[:2])
        return {row.node: row.input_sqnr for row in report.rows if row.input_sqnr is not None}

    ours, theirs = signal_to_noise(gates.plan), signal_to_noise(without_shifts(gates))
    assert ours["d/Conv"] - theirs["d/Conv"] == pytest.approx(6, abs=0.7)
    assert ours["c/Conv"] - theirs["c/Conv"] > 4
    assert ours["g_pre/Conv"] == theirs["g_pre/Conv"]


def test_borders_are_padded_with_zero(gates: Gates, run: Run) -> None:
    """Layer d reads a shifted gate. Where the gate is wide open inside, its border shows what the padding was."""
    graph = emit_simulation(gates.network, gates.plan)
    for model in (graph, reference := onnx.ModelProto.FromString(gates.network.model.SerializeToString())):
        del model.graph.output[:]
        name = "d/exact" if model is graph else "d"
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    x = np.zeros((1, 3, 32, 32), np.float32)
    ours, theirs = run(graph, x), run(reference, x)
    inside = np.abs(ours - theirs)[:, :, 4:-4, 4:-4].max()
    border = np.abs(theirs[:, :, 0] - theirs[:, :, 16]).max()
    assert np.abs(ours - theirs).max() < max(2 * inside, 0.05 * border)


def test_a_shift_survives_the_plans_file_and_shows_in_reports(
    gates: Gates, pictures: list[Picture], tmp_path: Path
) -> None:
    save_plan(gates.plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json", gates.network) == gates.plan
    (row,) = [row for row in layer_report(gates.network, gates.plan, pictures[:2]).rows if row.node == "d/Conv"]
    assert row.shift == gates.plan.range_of()["gate"].shift
    assert row.clipped == 0
    assert row.input_sqnr is not None
    assert row.input_sqnr > 40


def test_an_addition_cannot_have_a_shift(gates: Gates, tmp_path: Path) -> None:
    plan = gates.plan.model_copy(deep=True)
    plan.range_of()["e_prelu"].shift = 0.5
    save_plan(plan, tmp_path / "plan.json")
    with pytest.raises(UserError, match=r"range of .*, which total/Add adds up in int8, cannot have a shift"):
        load_plan(tmp_path / "plan.json", gates.network)


def test_on_a_cpu_what_a_prelu_reads_stays_in_float(gates: Gates, inputs: list[np.ndarray], run: Run) -> None:
    in_float = gates.plan.target("cpu").layers
    assert all("PReLU" in layer.reason for layer in in_float.values() if layer.form is None)
    integer = gates.plan.nodes("int8") - in_float.keys()
    assert integer == {"b_pre/Conv", "c/Conv", "f/Conv", "total/Add", "g_pre/Conv"}
    graph = emit_cpu(gates.network, gates.plan)
    assert "d" not in {node.input[0] for node in graph.graph.node if node.op_type == "QuantizeLinear"}
    for x in inputs:
        assert np.abs(run(graph, x) - run(gates.network.model, x)).mean() < 0.02


def test_for_openvino_slopes_have_as_many_dimensions_as_what_they_scale(
    gates: Gates, inputs: list[np.ndarray], run: Run
) -> None:
    graph = emit_openvino(gates.network, gates.plan)
    constants = {tensor.name: list(tensor.dims) for tensor in graph.graph.initializer}
    slopes = [constants[node.input[1]] for node in graph.graph.node if node.op_type == "PRelu"]
    assert slopes == [[1, 8, 1, 1]] * 3
    for x in inputs:
        assert np.abs(run(graph, x) - run(gates.network.model, x)).mean() < 0.02


def test_a_network_of_prelus_alone_does_not_pay_on_a_cpu(
    pictures: list[Picture], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = Gated(seed=1)
    features = writer.prelu(writer.conv("image", 3, 8, "a", relu=False))
    features = writer.prelu(writer.conv(features, 8, 8, "b", relu=False))
    writer.node("Sigmoid", [writer.conv(features, 8, 1, "head", relu=False)], "saliency")
    build(writer.write(tmp_path / "prelus.onnx"), tmp_path, Images(Dataset("pictures", pictures)), engines=False)
    assert "prelus.int8.cpu.onnx computes in fp32" in capsys.readouterr().err.replace("\n", "")


def test_what_is_lopsided_by_a_few_values_is_not_shifted(gates: Gates) -> None:
    """One value far out on one side, which is clipped."""
    counted = Statistics(gates.network.digest)
    counted.histograms["gate"] = histogram = MagnitudeHistogram()
    histogram.add(np.random.default_rng(0).uniform(-1, 1, 1_000_000).astype(np.float32))
    histogram.add(np.array([1.6], np.float32))
    shared = shared_range(gates.network, ["gate"], counted, "mse")
    assert shared.shift is None
    assert shared.amax == pytest.approx(1, abs=0.1)


def test_reach() -> None:
    assert Range(tensors=["x"], amax=2.0, signed=True).reach == 2.0
    assert Range(tensors=["x"], amax=2.0, shift=-1.5, signed=True).reach == 3.5


class Sums(NetworkWriter):
    """A sum whose later term is resized and so float, and a Concat that only a normalization reads."""

    def save(self, path: Path) -> Path:
        a = self.conv("image", 3, 8, "a")
        pooled = self.node("AveragePool", [a], "averaged", kernel_shape=[2, 2], strides=[2, 2])
        sizes = self.constant("sizes", np.array([1, 8, 32, 32], np.int64))
        up = self.node("Resize", [pooled, "", "", sizes], "up", mode="linear")
        total = self.node("Add", [a, up], "total")
        b = self.conv(total, 8, 8, "b")
        small = self.node("Mul", [b, self.constant("factor", np.float32([0.01]))], "small")
        joined = self.node("Concat", [b, small], "joined", axis=1)
        ones = self.constant("ones", np.ones(16, np.float32))
        zeros = self.constant("zeros", np.zeros(16, np.float32))
        normal = self.node("InstanceNormalization", [joined, ones, zeros], "normal")
        head = self.conv(self.conv(normal, 16, 8, "c"), 8, 1, "head", relu=False)
        self.node("Sigmoid", [head], "saliency")
        return self.write(path)


@pytest.fixture(scope="module")
def sums(pictures: list[Picture], tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, Plan]:
    network = load_network(Sums(seed=2).save(tmp_path_factory.mktemp("sums") / "sums.onnx"))
    return network, make_plan(network, Evidence(calibrate(network, pictures)), "max")


def test_a_sum_that_no_layer_makes_may_be_shifted(sums: tuple[Network, Plan]) -> None:
    _, plan = sums
    assert plan.range_of()["total"].shift is not None
    assert plan.range_of()["total"].amax < 0.51 * (plan.range_of()["total"].maximum or 0)


def test_what_only_float_layers_read_is_not_rounded_for_a_cpu(sums: tuple[Network, Plan]) -> None:
    network, plan = sums
    assert {"b", "small", "joined"} <= set(plan.range_of()["b"].tensors)  # one range, for graphs that need it
    quantized = {node.input[0] for node in emit_cpu(network, plan).graph.node if node.op_type == "QuantizeLinear"}
    assert "b" in quantized  # an integer layer writes it
    assert not quantized & {"small", "joined"}


def test_uint8_spends_its_steps_on_the_side_where_values_lie(gates: Gates) -> None:
    """Twice the steps of int8 for what a ReLU makes, so that less is clipped; zero is a step of every interval."""
    counted = Statistics(gates.network.digest)
    counted.histograms["b"] = histogram = MagnitudeHistogram()
    histogram.add(np.abs(np.random.default_rng(0).standard_normal(100_000)).astype(np.float32) ** 2)
    shared = shared_range(gates.network, ["b"], counted, "mse")
    assert shared.uint8 is not None
    assert shared.uint8[0] == 0
    assert shared.amax < shared.uint8[1] <= histogram.maximum
    histogram.add(np.array([-2], np.float32))
    shared = shared_range(gates.network, ["b"], counted, "max")
    assert shared.uint8 == (-2, pytest.approx(histogram.maximum))
    scale, zero_point = shared.uint8_parameters
    assert zero_point == round(2 / float(scale))


def test_without_counts_uint8_covers_what_amax_and_shift_say() -> None:
    for shared, low, high in (
        (Range(tensors=["x"], amax=2.55, signed=False), 0, 2.55),
        (Range(tensors=["x"], amax=1.27, signed=True), -1.28, 1.27),
        (Range(tensors=["x"], amax=1.27, shift=1.0, signed=True), -0.28, 2.27),
    ):
        scale, zero_point = shared.uint8_parameters
        assert float(scale) == pytest.approx(0.01)
        assert [-int(zero_point) / 100, (255 - int(zero_point)) / 100] == pytest.approx([low, high])


def test_an_interval_without_zero_is_refused(gates: Gates, tmp_path: Path) -> None:
    plan = gates.plan.model_copy(deep=True)
    plan.ranges[0].uint8 = (0.5, 1.0)
    save_plan(plan, tmp_path / "plan.json")
    with pytest.raises(UserError, match=r"the interval 0.5 to 1 does not hold zero"):
        load_plan(tmp_path / "plan.json", gates.network)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("reach", [1e-40, 1e5, 1e20, 3e38])
def test_values_that_fp16_cannot_hold_have_a_finite_range_and_no_warning(
    unet: Network, statistics: Statistics, reach: float
) -> None:
    histogram = MagnitudeHistogram()
    histogram.add(np.array([0, reach / 3, reach], np.float32))
    counted = Statistics(statistics.network, {"saliency": histogram}, images=statistics.images)
    shared = shared_range(unet, ["saliency"], counted, "max")
    assert np.isfinite(shared.reach)
    assert shared.shift is None or abs(shared.shift) <= 65504
