"""Graphs are one table, and the plan says where a graph differs from it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sodeploy.errors import UserError
from sodeploy.quant import build_engine
from sodeploy.quant.calibration.inspect_graph import as_input
from sodeploy.quant.calibration.observer import calibrate
from sodeploy.quant.emit.cpu import emit_cpu, emit_openvino
from sodeploy.quant.emit.targets import TARGETS, targets_of
from sodeploy.quant.graph import Network, load_network
from sodeploy.quant.planning.decide import make_plan
from sodeploy.quant.planning.plan import Plan, TargetLayer, load_plan, save_plan
from sodeploy.quant.planning.targets import CPU_KINDS, for_cpu
from sodeploy.quant.sources import Edited
from sodeploy.runtime.contract import CPU_KEY
from sodeploy.runtime.openvino_session import runner_of
from sodeploy.runtime.session import installed_engines
from tests.quant.conftest import NetworkWriter


def test_every_graph_is_described_where_a_user_looks() -> None:
    assert len({target.name for target in TARGETS}) == len(TARGETS)
    assert all(f"u2netp{target.suffix}" in (build_engine.__doc__ or "") for target in TARGETS)


def test_a_plan_without_ranges_has_no_int8_graph(unet: Network, plan: Plan) -> None:
    assert {target.precision for target in targets_of(Plan.without_int8(unet))} == {"fp16"}
    assert {target.precision for target in targets_of(plan)} == {"fp16", "int8"}
    assert targets_of(plan, ("fp16", "bf16")) == list(TARGETS)


def test_a_plan_keeps_its_decisions(unet: Network, plan: Plan, tmp_path: Path) -> None:
    save_plan(plan, tmp_path / "plan.json")
    again = load_plan(tmp_path / "plan.json", unet)
    assert again.targets == plan.targets
    assert plan.target("cpu").layers["head/Conv"].form == "shifted planes"


def integers_of(graph: onnx.ModelProto, node: str) -> np.ndarray:
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    return np.asarray(numpy_helper.to_array(constants[f"{node}/weight/quantized"]))


@pytest.mark.parametrize("steps", [20, 64, 127])
def test_the_number_of_steps_is_the_plans(unet: Network, plan: Plan, steps: int) -> None:
    own = plan.model_copy(deep=True)
    own.target("cpu").weight_steps = steps
    weight = integers_of(emit_cpu(unet, own), "c_pre/Conv")
    assert steps - 1 <= np.abs(weight.astype(int)).max() <= steps


def test_what_stays_in_float_is_the_plans(unet: Network, plan: Plan, pictures: list, run: Callable) -> None:
    own = plan.model_copy(deep=True)
    ours = own.target("cpu").layers
    ours["c_pre/Conv"] = TargetLayer(precision="fp32", reason="to see it")
    del ours["head/Conv"]
    nodes = {node.name: node for node in emit_cpu(unet, own).graph.node}
    assert nodes["c_pre/Conv"].input[1] == "c.weight"
    assert nodes["head/Conv"].input[1] == "head.weight"  # in its usual form
    assert nodes["d_pre/Conv"].input[1] == "d_pre/Conv/weight"


def test_a_head_for_openvino_has_sixteen_bits(unet: Network, plan: Plan) -> None:
    graph = emit_openvino(unet, plan)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    steps, scales = (constants[f"head/Conv/weight/{name}"] for name in ("quantized", "scale"))
    parts = steps * scales.reshape(-1, 1, 1, 1)
    weight = next(unet.weight(node) for node in unet.nodes if node.name == "head/Conv")
    assert steps.dtype == np.int8
    np.testing.assert_allclose(parts[:1] + parts[1:], weight, rtol=0, atol=np.abs(weight).max() / 2**15)
    assert np.abs(parts[:1] - weight).max() > 10 * np.abs(parts[:1] + parts[1:] - weight).max()


def test_the_graph_for_openvino_keeps_every_step_of_the_plan(unet: Network, plan: Plan) -> None:
    weight = integers_of(emit_openvino(unet, plan), "c_pre/Conv")
    assert np.abs(weight.astype(int)).max() == 127


def test_the_graph_for_openvino_is_nearer_than_that_for_any_cpu(
    unet: Network, plan: Plan, pictures: list, run: Callable
) -> None:
    def maps(model: onnx.ModelProto) -> np.ndarray:
        return np.concatenate([run(model, as_input(picture, unet.contract)) for picture in pictures])

    reference = maps(unet.model)
    for_openvino, for_any = (np.square(maps(emit(unet, plan)) - reference).mean() for emit in (emit_openvino, emit_cpu))
    assert for_openvino < for_any


def without_targets(content: dict[str, Any]) -> None:
    del content["targets"]


def too_many_steps(content: dict[str, Any]) -> None:
    content["targets"]["cpu"]["weight_steps"] = 128


def unknown_target(content: dict[str, Any]) -> None:
    content["targets"]["abacus"] = content["targets"]["cpu"]


def entry(node: str, **values: str) -> Callable[[dict[str, Any]], None]:
    def edit(content: dict[str, Any]) -> None:
        content["targets"]["cpu"]["layers"][node] = {"precision": "fp32", "reason": "?", **values}

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without_targets, r"plan\.json has no decisions for the cpu graph, as plans of older versions; make the plan"),
        (too_many_steps, r"plan\.json: targets / cpu / weight_steps: Input should be less than or equal to 127"),
        (unknown_target, r"plan\.json: targets / abacus"),
        (entry("nowhere"), r"targets / cpu: nowhere is no node of .*unet\.onnx; remove the entry"),
        (entry("c_pre/Conv", precision="int8"), "c_pre/Conv cannot be int8 in it alone"),
        (entry("total/Add", form="shifted planes"), r"total/Add is no Conv"),
    ],
)
def test_an_edit_that_cannot_be_followed(
    unet: Network, plan: Plan, tmp_path: Path, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    save_plan(plan, tmp_path / "plan.json")
    content = json.loads((tmp_path / "plan.json").read_text())
    edit(content)
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        load_plan(tmp_path / "plan.json", unet)


@pytest.mark.parametrize(("side", "in_float"), [(4, False), (8, True)])
def test_windows_that_openvino_computes_wrongly_stay_in_float(
    tmp_path: Path, pictures: list, run: Callable, side: int, in_float: bool
) -> None:
    """Its int8 kernel for AMX joins 16 channels with 8 columns to 128 values, and leaves little of the result."""
    writer = NetworkWriter()
    weight = writer.rng.standard_normal((16, 16, side, side)).astype(np.float32) / (4 * side)
    read = [writer.conv("image", 3, 16, "a"), writer.constant("weight", weight)]
    reduced = writer.node("Conv", read, "reduced", strides=[side, side])
    sizes = writer.constant("sizes", np.array([1, 16, 32, 32], np.int64))
    writer.node("Sigmoid", [writer.conv(writer.node("Resize", [reduced, "", "", sizes], "up"), 16, 1, "head", False)],
                "saliency")  # fmt: skip
    network = load_network(writer.write(tmp_path / "reduction.onnx"))
    plan = make_plan(network, calibrate(network, pictures))
    assert plan.layers["reduced/Conv"].precision == "int8"
    assert ("reduced/Conv" in plan.target("openvino").layers) == in_float
    graph, image = emit_openvino(network, plan), as_input(pictures[0], network.contract)
    if "openvino" in installed_engines():
        found = runner_of(graph.SerializeToString(), Path("graph"))(image)
        np.testing.assert_allclose(found, run(graph, image), atol=0.02)


def test_a_plan_of_fp16_alone_needs_no_decisions(unet: Network, tmp_path: Path) -> None:
    save_plan(Plan.without_int8(unet), tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json", unet).targets == {}
    with pytest.raises(UserError, match="has no decisions for the cpu graph"):
        emit_cpu(unet, Plan.without_int8(unet))


def test_a_graph_for_cpus_with_vnni_says_so_and_keeps_every_step(unet: Network, plan: Plan) -> None:
    any_cpu, vnni = (emit_cpu(unet, for_cpu(plan, kind)) for kind in CPU_KINDS)
    kinds = [{entry.key: entry.value for entry in graph.metadata_props}[CPU_KEY] for graph in (any_cpu, vnni)]
    assert kinds == ["any", "vnni"]
    assert np.abs(integers_of(any_cpu, "c_pre/Conv").astype(int)).max() == 64
    assert np.abs(integers_of(vnni, "c_pre/Conv").astype(int)).max() == 127


def test_an_edited_plan_states_its_cpus_itself(unet: Network, plan: Plan, tmp_path: Path) -> None:
    save_plan(for_cpu(plan, "vnni"), tmp_path / "plan.json")
    with pytest.raises(UserError, match=r"--cpu vnni: .*plan\.json states it itself"):
        build_engine.build(unet.path, tmp_path, Edited(tmp_path / "plan.json"), cpu="vnni")
    built = build_engine.build(unet.path, tmp_path, Edited(tmp_path / "plan.json"), engines=False)
    metadata = {entry.key: entry.value for entry in onnx.load(built.graphs["int8.cpu"]).metadata_props}
    assert metadata[CPU_KEY] == "vnni"
