"""What the plan decides, and the arithmetic of weights, scales and corrected biases."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from sodeploy.errors import UserError
from sodeploy.quant.calibration.methods import METHODS
from sodeploy.quant.calibration.statistics import Statistics
from sodeploy.quant.graph import Network
from sodeploy.quant.int8 import SMALLEST_SCALE, bias_correction, dequantize_weight, fp16_scale, quantize_weight
from sodeploy.quant.planning import decide
from sodeploy.quant.planning.decide import all_ranges, make_plan
from sodeploy.quant.planning.evidence import Evidence
from sodeploy.quant.planning.plan import Plan, load_plan, save_plan


def test_layers(plan: Plan) -> None:
    precisions = {name: layer.precision for name, layer in plan.layers.items()}
    assert precisions == {
        "a_pre/Conv": "int8",
        "b_pre/Conv": "int8",
        "c_pre/Conv": "int8",
        "total/Add": "int8",
        "d_pre/Conv": "int8",
        "head/Conv": "fp16",
    }
    assert plan.layers["head/Conv"].reason.startswith("head")


def test_values_that_pass_on_share_a_range(plan: Plan) -> None:
    groups = [shared.tensors for shared in plan.ranges]
    assert ["a", "pooled", "total", "up", "joined"] in [sorted(g, key=g.index) for g in groups]
    shared = plan.range_of()
    assert shared["a"] is shared["joined"]
    assert shared["b"] is not shared["c"]


def test_signs(plan: Plan) -> None:
    shared = plan.range_of()
    assert shared["image"].signed
    assert not shared["a"].signed


@pytest.mark.parametrize("method", METHODS)
def test_no_range_exceeds_what_was_seen(unet: Network, statistics: Statistics, method: str) -> None:
    plan = make_plan(unet, Evidence(statistics), method)  # type: ignore[arg-type]
    assert all(0 < shared.amax <= shared.maximum for shared in plan.ranges)
    assert all((shared.clipped == 0) == (shared.amax == shared.maximum) for shared in plan.ranges) or method != "max"


def test_ranges_that_are_known_are_not_read_again(
    unet: Network, statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, by_max = make_plan(unet, statistics, "mse"), make_plan(unet, statistics, "max")
    evidence = Evidence(statistics, ranges={"mse": all_ranges(unet, statistics, "mse")})
    assert make_plan(unet, evidence, "max") == by_max
    monkeypatch.setattr(decide, "shared_range", None)
    assert make_plan(unet, evidence, "mse") == wanted


def test_layers_left_in_float_by_request(unet: Network, statistics: Statistics) -> None:
    plan = make_plan(unet, Evidence(statistics), float_layers={"c_pre/Conv": "costs too much"})
    assert plan.layers["c_pre/Conv"].precision == "fp16"
    assert plan.layers["c_pre/Conv"].reason == "costs too much"


def test_a_layer_that_does_not_exist(unet: Network, statistics: Statistics) -> None:
    with pytest.raises(UserError, match=r"no node 'nowhere'"):
        make_plan(unet, Evidence(statistics), float_layers={"nowhere": "?"})


def test_values_near_the_end_of_fp16_stay_in_fp32(unet: Network, statistics: Statistics) -> None:
    histogram = statistics.histograms["total"]
    before = histogram.high
    histogram.high = 40_000.0
    try:
        layers = make_plan(unet, Evidence(statistics)).layers
    finally:
        histogram.high = before
    kept = {name for name, layer in layers.items() if layer.precision == "fp32"}
    assert kept == {"total/Add", "up/Resize", "joined/Concat", "d_pre/Conv"}  # what makes it, passes it on, or reads it
    assert "values reach 4e+04" in layers["total/Add"].reason


def test_statistics_of_another_network(unet: Network) -> None:
    with pytest.raises(UserError, match="gathered from another network"):
        make_plan(unet, Evidence(Statistics("another")))


def test_fp16_scales_never_cut_the_largest_value() -> None:
    wanted = np.abs(np.random.default_rng(0).standard_normal(1000)).astype(np.float32)
    scales = fp16_scale(wanted)
    assert np.all(scales >= wanted)
    assert np.all(scales <= wanted * 1.001)
    assert np.array_equal(scales, scales.astype(np.float16).astype(np.float32))
    assert fp16_scale(0.0) == fp16_scale(1e-30) == SMALLEST_SCALE


def test_rounding_a_weight_errs_by_half_a_step_at_most() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 4, 3, 3)).astype(np.float32)
    scales = fp16_scale(np.abs(weight).max(axis=(1, 2, 3)) / 127)
    back = dequantize_weight(quantize_weight(weight, scales, 0), scales, 0)
    assert np.all(np.abs(back - weight) <= scales.reshape(-1, 1, 1, 1) * 0.5001)


@pytest.mark.parametrize("groups", [1, 4])
def test_bias_correction_restores_the_mean_of_a_convolution(groups: int) -> None:
    rng = np.random.default_rng(groups)
    weight = rng.standard_normal((8, 8 // groups, 1, 1)).astype(np.float32)
    scales = fp16_scale(np.abs(weight).max(axis=(1, 2, 3)) / 3)  # coarse, so that there is something to correct
    image = rng.random((8, 100)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=groups)

    def convolve(kernel: np.ndarray) -> np.ndarray:
        parts = np.split(image, groups)
        return np.concatenate([k[:, :, 0, 0] @ x for k, x in zip(np.split(kernel, groups), parts, strict=True)])

    rounded = dequantize_weight(quantize_weight(weight, scales, 0), scales, 0)
    shift = convolve(rounded).mean(axis=1) - convolve(weight).mean(axis=1)
    assert np.abs(shift).max() > 0.05
    assert shift + bias_correction(node, rounded - weight, image.mean(axis=1)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("transposed", [0, 1])
def test_bias_correction_of_a_matrix_product(transposed: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 5) if transposed else (5, 6)).astype(np.float32)
    axis = 0 if transposed else 1
    scales = fp16_scale(np.abs(weight).max(axis=1 - axis) / 3)
    x = rng.random((50, 5)).astype(np.float32)
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=transposed)
    rounded = dequantize_weight(quantize_weight(weight, scales, axis), scales, axis)
    shift = (x @ ((rounded - weight).T if transposed else rounded - weight)).mean(axis=0)
    assert shift + bias_correction(node, rounded - weight, x.mean(axis=0)) == pytest.approx(0, abs=1e-5)


def test_a_plan_survives_its_file(plan: Plan, unet: Network, tmp_path: Path) -> None:
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json", unet) == plan
    lines = (tmp_path / "plan.json").read_text().splitlines()
    assert sum('"op": "Conv"' in line for line in lines) == 5  # a line each: plans can be compared


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"head/Conv"', '"tail/Conv"', "layer tail/Conv is no node"),
        ('"precision": "fp16"', '"precision": "int4"', "layers / head/Conv / precision"),
        (
            '"op": "Conv", "precision": "fp16"',
            '"op": "Conv", "precision": "int8"',
            "head/Conv needs 1 positive",
        ),
        ('"amax": ', '"amax": -', "ranges / 0 / amax"),
        ('"weight_scales": [', '"weight_scales": [0.5, ', "a_pre/Conv needs 16 positive"),
        ('"format": 1', '"format": 1, "oops": 2', "oops"),
        ("{", "", "Invalid JSON"),
    ],
)
def test_an_edit_gone_wrong(plan: Plan, unet: Network, tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "plan.json"
    save_plan(plan, path)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        load_plan(path, unet)


def test_a_plan_for_another_network(plan: Plan, unet: Network, tmp_path: Path) -> None:
    save_plan(plan.model_copy(update={"onnx_sha256": "0" * 64}), tmp_path / "plan.json")
    with pytest.raises(UserError, match=r"was made for unet\.onnx \(sha256 000000000000\)"):
        load_plan(tmp_path / "plan.json", unet)


def test_onnx_is_not_changed_by_planning(unet: Network, unet_file: Path, statistics: Statistics) -> None:
    before = unet.model.SerializeToString()
    make_plan(unet, Evidence(statistics))
    assert unet.model.SerializeToString() == before
    assert isinstance(onnx.load(unet_file), onnx.ModelProto)
