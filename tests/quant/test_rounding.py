"""Adaptive rounding: less error of what a layer computes than nearest steps leave."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from sodeploy.quant.calibration import inspect_graph
from sodeploy.quant.calibration.inspect_graph import opened
from sodeploy.quant.calibration.statistics import Statistics
from sodeploy.quant.emit.cpu import emit_cpu
from sodeploy.quant.emit.tensorrt import emit_simulation
from sodeploy.quant.graph import Network, channel_axis, load_network
from sodeploy.quant.int8 import FEW_STEPS, STEPS, dequantize_weight, quantize_weight, scales_of, weight_scales
from sodeploy.quant.planning.covariance import Covariance
from sodeploy.quant.planning.decide import make_plan
from sodeploy.quant.planning.evidence import Evidence
from sodeploy.quant.planning.gptq import _inverse_factor, round_adaptively
from sodeploy.quant.planning.plan import rounded_key
from sodeploy.quant.planning.rounding import _sampled_inputs, adaptive_steps
from sodeploy.runtime.processing import preprocess
from tests.quant.conftest import NetworkWriter, Picture


@pytest.mark.parametrize(("groups", "size"), [(1, 90), (3, 9)])
def test_the_output_errs_less(groups: int, size: int) -> None:
    rng = np.random.default_rng(size)
    mixing = rng.standard_normal((groups, size, size)) * np.geomspace(1, 0.01, size)[:, None]
    x = rng.standard_normal((groups, 400, size)) @ mixing  # correlated, as neighbouring pixels are
    covariance = x.transpose(0, 2, 1) @ x / 400
    weight = rng.standard_normal((groups, 8, size))
    scales = np.abs(weight).max(axis=2) / 7  # coarse, so that there is something to gain
    steps = round_adaptively(weight, scales, covariance)
    nearest = np.rint(weight / scales[:, :, None])
    assert np.abs(steps).max() <= 127

    def error(rounded: np.ndarray) -> float:
        return float(np.mean(((rounded * scales[:, :, None] - weight) @ x.transpose(0, 2, 1)) ** 2))

    assert error(steps) < error(nearest) / 2


@pytest.mark.parametrize("cores", [1, 3])
def test_the_number_of_cores_changes_no_step(
    unet: Network, pictures: list, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = adaptive_steps(unet, pictures)
    monkeypatch.setattr(inspect_graph, "usable_cores", lambda: cores)
    found = adaptive_steps(unet, pictures)
    assert list(found) == list(wanted)
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_the_factor_is_the_one_of_the_inverse() -> None:
    x = np.random.default_rng(0).standard_normal((30, 12))
    covariance = x.T @ x
    order = np.random.default_rng(1).permutation(12)
    factor = np.triu(_inverse_factor(np.tril(covariance), order, damping=0.5, scale=2.0))
    damped = 2 * (covariance + 0.5 * np.eye(12))[np.ix_(order, order)]
    assert factor == pytest.approx(np.linalg.cholesky(np.linalg.inv(damped)).T)


def test_columns_of_several_blocks_are_rounded_by_the_formulas() -> None:
    """Column by column, as in the paper: what a column leaves moves all later ones, in the order of the inputs."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 150)) @ rng.standard_normal((150, 150))
    covariance, weight, scales = x.T @ x / 300, rng.standard_normal((5, 150)), np.full(5, 0.3)
    order = np.argsort(-np.diag(covariance))
    damped = covariance + 1e-3 * np.diag(covariance).mean() * np.eye(150)
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    left, wanted = weight[:, order], np.empty((5, 150))
    for column, place in enumerate(order):
        wanted[:, place] = np.clip(np.rint(left[:, column] / 0.3), -3, 3)
        error = (left[:, column] - 0.3 * wanted[:, place]) / upper[column, column]
        left[:, column + 1 :] -= error[:, None] * upper[column, column + 1 :]
    found = round_adaptively(weight[None], scales[None], np.tril(covariance)[None], largest=3)
    assert (found[0] == wanted).all()


def test_the_covariance_is_the_one_of_all_images() -> None:
    rng = np.random.default_rng(0)
    images = [rng.standard_normal((2, 40, 9)) + 5 for _ in range(3)]
    every = np.concatenate(images, axis=1)
    wanted = [np.tril(np.cov(group, rowvar=False, bias=True)) for group in every]
    for keeps_inputs in (False, True):
        found = Covariance(len(images), keeps_inputs)
        for image in images:
            found.include(found.read(image.copy()))
        assert np.tril(found.take()) == pytest.approx(np.stack(wanted))


def test_without_correlation_it_is_the_nearest_step() -> None:
    rng = np.random.default_rng(0)
    weight, scales = rng.standard_normal((1, 4, 20)), np.full((1, 4), 0.05)
    steps = round_adaptively(weight, scales, np.eye(20)[None])
    assert (steps == np.rint(weight / 0.05)).all()


def test_dead_inputs_do_no_harm() -> None:
    rng = np.random.default_rng(0)
    weight, scales = rng.standard_normal((2, 4, 9)), np.full((2, 4), 0.05)
    assert (round_adaptively(weight, scales, np.zeros((2, 9, 9))) == np.rint(weight / 0.05)).all()


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("stride", "dilation", "pads"), [(1, 1, [1] * 4), (2, 1, [0, 1, 2, 0]), (1, 3, [3] * 4)])
def test_sampled_inputs_are_those_of_the_convolution(
    groups: int, stride: int, dilation: int, pads: list[int], run: Callable[[onnx.ModelProto, np.ndarray], np.ndarray]
) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 8 // groups, 3, 3)).astype(np.float32)
    x = rng.standard_normal((8, 11, 13)).astype(np.float32)
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], group=groups, strides=[stride] * 2, dilations=[dilation] * 2, pads=pads
    )

    class One:
        def weight_shape(self, node: onnx.NodeProto) -> tuple[int, ...]:
            return weight.shape

    sampled = _sampled_inputs(One(), node, x[None], np.random.default_rng(1))  # type: ignore[arg-type]
    products = sampled @ weight.reshape(groups, 8 // groups, -1).transpose(0, 2, 1)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "one",
        [value("x", 1, [1, 8, 11, 13])],
        [value("y", 1, None)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    expected = run(model, x[None])[0].reshape(groups, 8 // groups, -1)
    np.testing.assert_allclose(np.sort(products, axis=1), np.sort(expected, axis=2).transpose(0, 2, 1), atol=1e-4)


def test_int8_loses_less(
    unet: Network,
    statistics: Statistics,
    pictures: list[Picture],
    run: Callable[[onnx.ModelProto, np.ndarray], np.ndarray],
) -> None:
    steps = adaptive_steps(unet, pictures)
    convolutions = [node.name for node in unet.nodes if node.op_type == "Conv"]
    assert steps.keys() == {rounded_key(name, count) for name in convolutions for count in (STEPS, FEW_STEPS)}
    assert all(np.abs(steps[rounded_key(name, FEW_STEPS)]).max() <= FEW_STEPS for name in convolutions)
    again = adaptive_steps(unet, pictures[::-1])
    assert all((steps[name] == again[name]).all() for name in steps)  # whatever the order
    inputs = [preprocess(Picture("", seed).image(), unet.contract)[None] for seed in range(20, 26)]

    def error(evidence: Evidence) -> float:
        simulation = emit_simulation(unet, make_plan(unet, evidence, "max"))
        return float(np.mean([np.square(run(simulation, x) - run(unet.model, x)).mean() for x in inputs]))

    assert error(Evidence(statistics, steps)) < error(Evidence(statistics))


def test_the_graph_for_any_cpu_has_jointly_rounded_weights_too(
    unet: Network,
    statistics: Statistics,
    pictures: list[Picture],
    run: Callable[[onnx.ModelProto, np.ndarray], np.ndarray],
) -> None:
    steps = adaptive_steps(unet, pictures)
    inputs = [preprocess(Picture("", seed).image(), unet.contract)[None] for seed in range(20, 26)]

    def error(evidence: Evidence) -> float:
        graph = emit_cpu(unet, make_plan(unet, evidence, "max"))
        return float(np.mean([np.square(run(graph, x) - run(unet.model, x)).mean() for x in inputs]))

    assert error(Evidence(statistics, steps)) < 0.7 * error(Evidence(statistics))


@pytest.mark.parametrize("transposed", [False, True])
def test_a_matrix_product_is_rounded_jointly(tmp_path: Path, pictures: list[Picture], transposed: bool) -> None:
    """Rows of a stretched image times a weight, in either layout."""
    writer = NetworkWriter(seed=1)
    features = writer.conv("image", 3, 16, "a")
    last = writer.node("Transpose", [features], "last", perm=[0, 2, 3, 1])
    rows = writer.node("Reshape", [last, writer.constant("rows.shape", np.array([-1, 16]))], "rows")
    weight = writer.rng.standard_normal((16, 8)).astype(np.float32)
    stored = writer.constant("w", np.ascontiguousarray(weight.T if transposed else weight))
    product = writer.node("Gemm", [rows, stored], "product", transB=int(transposed))
    back = writer.node("Reshape", [product, writer.constant("shape", np.array([1, 32, 32, 8]))], "back")
    first = writer.node("Transpose", [back], "first", perm=[0, 3, 1, 2])
    writer.node("Sigmoid", [writer.conv(first, 8, 1, "head", relu=False)], "saliency")
    network = load_network(writer.write(tmp_path / "product.onnx"))
    (node,) = [node for node in network.nodes if node.op_type == "Gemm"]
    steps = adaptive_steps(network, pictures)[rounded_key(node.name, FEW_STEPS)]
    axis = channel_axis(node)
    scales = scales_of(weight_scales(network.weight(node), axis), FEW_STEPS)
    nearest = quantize_weight(network.weight(node), scales, axis)
    x = opened(network.model, ["rows"])(preprocess(pictures[0].image(), network.contract)[None])[0]
    x = x - x.mean(axis=0)

    def error(rounded: np.ndarray) -> float:
        off = dequantize_weight(rounded, scales, axis) - network.weight(node)
        return float(np.square(x @ (off.T if transposed else off)).mean())

    assert error(steps) < 0.8 * error(nearest)
