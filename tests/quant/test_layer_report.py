"""The report's figures against plain numpy, and that a spoiled layer comes out on top."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from sodeploy.errors import UserError
from sodeploy.quant import layer_errors as layer_errors_module
from sodeploy.quant.calibration.inspect_graph import as_input, opened
from sodeploy.quant.emit.tensorrt import with_fake_quantization
from sodeploy.quant.graph import Network
from sodeploy.quant.int8 import fp16_scale
from sodeploy.quant.layer_report import LayerReport, layer_report, suggestion, table, to_json
from sodeploy.quant.planning.plan import Plan, save_plan


@pytest.fixture(scope="module")
def report(unet: Network, plan: Plan, pictures: list) -> LayerReport:
    return layer_report(unet, plan, pictures[:3])


def decibels(signal: np.ndarray, noise: np.ndarray) -> float:
    return float(10 * np.log10(np.square(signal).sum() / np.square(noise).sum()))


def test_every_int8_layer_has_a_row_the_costliest_first(report: LayerReport, plan: Plan) -> None:
    assert {row.node for row in report.rows} == plan.nodes("int8")
    errors = [row.map_error for row in report.rows]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] > 0
    assert sum(row.share for row in report.rows) == pytest.approx(1)
    assert report.map_error < 3 * errors[0]


def test_estimates_are_marked(report: LayerReport) -> None:
    marked = table(LayerReport([replace(row, exact=False) for row in report.rows], report.map_error, report.images))
    assert all(row[-2].startswith("~") for row in marked.rows)
    assert "estimate" in marked.caption
    assert not any(row[-2].startswith("~") for row in table(report).rows)


@pytest.mark.parametrize("parts", [1, 4, 100])
def test_running_what_changes_is_running_everything(
    unet: Network, plan: Plan, pictures: list, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_errors_module, "_PARTS", parts)
    layers = [node.name for node in unet.nodes if node.name in plan.nodes("int8")]
    reference = opened(unet.model)
    whole = []
    for picture in pictures[:2]:
        image = as_input(picture, unet.contract)
        for layer in layers:
            alone = plan.model_copy(update={"layers": {layer: plan.layers[layer]}})
            quantized = opened(with_fake_quantization(unet, alone, unet.model))
            whole.append((layer, np.square(quantized(image)[0] - reference(image)[0]).mean()))
    found = layer_errors_module.exact_errors(unet, plan, layers, pictures[:2])
    assert all(error.exact for error in found.values())
    for layer, error in found.items():
        assert error.squares == pytest.approx([square for name, square in whole if name == layer], rel=1e-3)


@pytest.mark.parametrize("parts", [1, 3])
def test_estimates_scale_with_what_leaves_a_part_and_the_costliest_are_exact(
    unet: Network, plan: Plan, pictures: list, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_errors_module, "_PARTS", parts)
    monkeypatch.setattr(layer_errors_module, "COSTLIEST", 1)
    layers = [node.name for node in unet.nodes if node.name in plan.nodes("int8")]
    exact = layer_errors_module.exact_errors(unet, plan, layers, pictures[:2])
    found = layer_errors_module.estimated_errors(unet, plan, layers, pictures[:2])
    assert not all(error.exact for error in found.values())
    assert max(found.values(), key=lambda error: error.mean()).exact
    for layer, error in found.items():
        ratios = np.divide(error.squares, exact[layer].squares)
        assert np.all(ratios == 1) if error.exact else np.all((ratios > 1 / 4) & (ratios < 4))


def test_the_map_error_is_the_one_of_all_images(report: LayerReport) -> None:
    for row in report.rows:
        assert row.map_error**2 == pytest.approx(np.mean(np.square(row.by_image)))


def test_the_suggestion_names_the_costliest(report: LayerReport) -> None:
    words = shlex.split(suggestion(report, Path("out/u.onnx"), Path("out/u.plan.json")))
    assert words[words.index("edit") + 1] == "out/u.plan.json"
    assert words[words.index("--set") + 1] == f"{report.rows[0].node}=fp16"
    assert words[words.index("--output") + 1] == "out/u.edited.plan.json"


def test_the_input_of_each_layer_is_named(report: LayerReport) -> None:
    tensors = {row.node: row.tensor for row in report.rows}
    assert tensors["b_pre/Conv"] == "pooled"
    assert tensors["total/Add"] == "b"  # the residual, which alone goes through Q/DQ


def test_input_noise_and_clipping_are_those_of_numpy(
    report: LayerReport, unet: Network, plan: Plan, pictures: list
) -> None:
    look = opened(unet.model, ["b"])
    values = np.stack([look(as_input(picture, unet.contract))[0] for picture in pictures[:3]]).astype(np.float64)
    amax = plan.range_of()["b"].amax
    scale = float(fp16_scale(amax / 127))
    noise = np.clip(np.rint(values / scale), -128, 127) * scale - values
    row = next(row for row in report.rows if row.node == "c_pre/Conv")
    assert row.input_sqnr == pytest.approx(decibels(values, noise), abs=0.01)
    assert row.clipped == pytest.approx((np.abs(values) > amax).mean(), abs=1e-7)


def test_weight_noise_is_that_of_numpy(report: LayerReport, unet: Network, plan: Plan) -> None:
    weight = unet.constants["d.weight"]
    scales = np.reshape(plan.layers["d_pre/Conv"].weight_scales, (-1, 1, 1, 1))
    row = next(row for row in report.rows if row.node == "d_pre/Conv")
    assert row.weight_sqnr == pytest.approx(decibels(weight, np.rint(weight / scales) * scales - weight), abs=0.01)
    assert next(row for row in report.rows if row.op == "Add").weight_sqnr is None


def test_a_spoiled_layer_is_found(unet: Network, plan: Plan, pictures: list) -> None:
    spoiled = plan.model_copy(deep=True)
    layer = spoiled.layers["c_pre/Conv"]
    layer.weight_scales = [30 * scale for scale in layer.weight_scales or []]
    layer.bias_correction = None
    worst = layer_report(unet, spoiled, pictures[:1]).rows[0]
    assert worst.node == "c_pre/Conv"
    assert worst.share > 0.5
    assert worst.weight_sqnr is not None
    assert worst.weight_sqnr < 20


def test_a_range_too_narrow_shows_as_clipping(unet: Network, plan: Plan, pictures: list) -> None:
    narrow = plan.model_copy(deep=True)
    narrow.range_of()["joined"].amax /= 10
    row = next(row for row in layer_report(unet, narrow, pictures[:1]).rows if row.node == "d_pre/Conv")
    assert row.clipped > 0.1
    assert row.input_sqnr is not None
    assert row.input_sqnr < 15


def test_table_and_json_hold_the_same_layers(report: LayerReport) -> None:
    rows = table(report).rows
    document = json.loads(to_json(report))
    assert [row[0] for row in rows] == [row["node"] for row in document["rows"]]
    assert document["images"] == ["picture 0", "picture 1", "picture 2"]


def test_nothing_to_report_on(unet: Network, plan: Plan, pictures: list) -> None:
    with pytest.raises(UserError, match="no int8 layer"):
        layer_report(unet, plan.model_copy(update={"layers": {}}), pictures)
    with pytest.raises(UserError, match="no image"):
        layer_report(unet, plan, [])


def test_the_command(repository: Path, unet_file: Path, plan: Plan, pictures: list, tmp_path: Path) -> None:
    save_plan(plan, tmp_path / "plan.json")
    (tmp_path / "images").mkdir()
    for picture in pictures[:3]:
        cv2.imwrite(str(tmp_path / "images" / f"{picture.name}.png"), picture.image())
    script = [sys.executable, repository / "quant" / "layer_report.py", unet_file, tmp_path / "plan.json"]
    options = ["--images", tmp_path / "images", "--count", "2", "--json", tmp_path / "report.json"]
    done = subprocess.run([*script, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "5 int8 layers, on 2 images" in done.stdout
    assert "other images may name another costliest layer" in done.stderr
    assert f" edit {tmp_path / 'plan.json'} --set " in done.stderr
    assert len(json.loads((tmp_path / "report.json").read_text())["rows"]) == 5
