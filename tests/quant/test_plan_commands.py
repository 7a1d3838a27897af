"""Plans shown, compared and edited, as functions and as the commands of quant/plan.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from sodeploy.errors import UserError
from sodeploy.quant.calibration.statistics import Statistics
from sodeploy.quant.emit.checks import check_tensorrt
from sodeploy.quant.emit.tensorrt import emit_tensorrt
from sodeploy.quant.graph import Network
from sodeploy.quant.plan import differences, edit, layer_table, matched, range_table, summary, target_table
from sodeploy.quant.planning.decide import make_plan
from sodeploy.quant.planning.evidence import Evidence
from sodeploy.quant.planning.plan import Plan, load_plan, save_plan
from sodeploy.quant.planning.rounding import adaptive_steps


@pytest.fixture
def plan_file(plan: Plan, unet_file: Path, tmp_path: Path) -> Path:
    """The plan beside its network, where build_engine.py leaves both."""
    (tmp_path / "unet.onnx").write_bytes(unet_file.read_bytes())
    save_plan(plan, tmp_path / "unet.plan.json")
    return tmp_path / "unet.plan.json"


def command(repository: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    script = repository / "quant" / "plan.py"
    return subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_the_summary_counts_layers_by_precision_and_reason(plan: Plan) -> None:
    shown = summary(plan)
    head = plan.layers["head/Conv"]
    assert shown.title == "unet (unet.onnx): 5 int8, 1 fp16, 0 fp32; ranges by kl from 6 images"
    assert ["all graphs", "fp16", "1", head.reason] in shown.rows
    assert sum(int(row[2]) for row in shown.rows if row[:2] == ["all graphs", "int8"]) == 5
    assert ["cpu only", "fp32 as shifted planes", "1", plan.target("cpu").layers["head/Conv"].reason] in shown.rows


def test_rare_reasons_share_a_row(plan: Plan) -> None:
    many = plan.model_copy(deep=True)
    for index in range(20):
        many.layers[f"extra{index}"] = plan.layers["head/Conv"].model_copy(update={"reason": f"reason {index}"})
    rows = [row for row in summary(many).rows if row[:2] == ["all graphs", "fp16"]]
    assert rows[-1][2:] == ["15", "15 other reasons; --only fp16 lists them"]
    assert len(rows) == 7


def test_a_glob_changes_the_layers_that_it_matches(
    unet: Network, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    assert matched(unet, plan, ["[bc]_pre/*=fp16", "c_pre/Conv=fp32"]) == {"b_pre/Conv": "fp16", "c_pre/Conv": "fp32"}
    assert "[bc]_pre/*: 2 layers to fp16" in capsys.readouterr().err


def test_names_that_are_near_are_listed(unet: Network, plan: Plan) -> None:
    with pytest.raises(UserError, match=r"no node 'a_pre/Konv'; near names: a_pre/Conv"):
        matched(unet, plan, ["a_pre/Konv=fp16"])


def test_show_names_every_layer_and_range(plan: Plan) -> None:
    layers, ranges, cpu = layer_table(plan), range_table(plan), target_table("cpu", plan.target("cpu"))
    assert [row[0] for row in layer_table(plan, {"fp16"}).rows] == ["head/Conv"]
    head = plan.target("cpu").layers["head/Conv"]
    assert cpu.title == "cpu graph only: weights have 64 steps on each side of zero"
    assert cpu.rows == [["head/Conv", "fp32 as shifted planes", head.reason]]
    openvino = target_table("openvino", plan.target("openvino"))
    assert openvino.rows[0][:2] == ["head/Conv", "int8 as two int8 parts"]
    assert layers.title == "unet (unet.onnx): 5 int8, 1 fp16, 0 fp32; ranges by kl from 6 images"
    assert ["head/Conv", "Conv", "fp16", plan.layers["head/Conv"].reason] in layers.rows
    assert len(layers.rows) == 6
    assert ranges.rows[0][:2] == ["image", "yes"]
    assert ranges.rows[1][0] == "a, pooled, total and 2 more"


def test_a_plan_does_not_differ_from_itself(plan: Plan) -> None:
    assert list(differences(plan, plan.model_copy(deep=True))) == []


def test_every_kind_of_difference_has_a_line(unet: Network, statistics: Statistics, plan: Plan) -> None:
    other = make_plan(unet, Evidence(statistics), "max", {"c_pre/Conv": "outliers"})
    other.layers["d_pre/Conv"].bias_correction[0] += 1.0  # type: ignore[index]
    other.layers["head/Conv"].reason = "because"
    other.target("cpu").weight_steps = 127
    del other.target("cpu").layers["head/Conv"]
    lines = list(differences(plan, other))
    assert "calibration: kl, 6 images -> max, 6 images" in lines
    assert "cpu graph: 64 -> 127 weight steps" in lines
    assert "cpu graph: layer head/Conv: fp32 as shifted planes -> as in every graph" in lines
    assert "layer c_pre/Conv: int8 (features) -> fp16 (outliers)" in lines
    assert "layer d_pre/Conv: 1 of 16 values of bias_correction differ" in lines
    assert any(line.startswith("layer head/Conv: reason: head") and line.endswith("-> because") for line in lines)
    (image,) = [line for line in lines if line.startswith("range of image: ")]
    assert f"{other.range_of()['image'].amax:.6g} signed" in image


def test_a_layer_set_to_fp16_and_back_is_as_it_was(unet: Network, statistics: Statistics, plan: Plan) -> None:
    changed = edit(unet, plan, {"c_pre/Conv": "fp16", "total/Add": "fp16"}, "outliers")
    assert changed.layers["c_pre/Conv"].model_dump(exclude_none=True) == {
        "op": "Conv",
        "precision": "fp16",
        "reason": "outliers",
    }
    assert "c" not in changed.range_of()  # nothing reads or writes it in int8 any more
    check_tensorrt(emit_tensorrt(unet, changed))
    back = edit(unet, changed, {"c_pre/Conv": "int8", "total/Add": "int8"}, "features", statistics)
    assert {line.split(":")[0] for line in differences(plan, back)} == {"layer total/Add"}  # its reason alone


def test_a_rounded_layer_set_to_fp16_and_back_has_its_bias(
    unet: Network, statistics: Statistics, pictures: list
) -> None:
    steps = adaptive_steps(unet, pictures)
    rounded = make_plan(unet, Evidence(statistics, steps))
    changed = edit(unet, rounded, {"c_pre/Conv": "fp16"}, "outliers")
    back = edit(unet, changed, {"c_pre/Conv": "int8"}, "features", statistics, steps)
    assert back.layers["c_pre/Conv"].bias_correction == rounded.layers["c_pre/Conv"].bias_correction
    assert (
        back.layers["c_pre/Conv"].bias_correction
        != edit(unet, changed, {"c_pre/Conv": "int8"}, "features", statistics).layers["c_pre/Conv"].bias_correction
    )  # of weights at their nearest steps


def test_edited_ranges_are_kept(unet: Network, plan: Plan) -> None:
    own = plan.model_copy(deep=True)
    own.range_of()["d"].amax = 1.25
    assert edit(unet, own, {"c_pre/Conv": "fp16"}, "?").range_of()["d"].amax == 1.25


def test_a_node_without_an_entry_gets_one_in_its_place(unet: Network, plan: Plan) -> None:
    changed = edit(unet, plan, {"up/Resize": "fp32"}, "overflows")
    assert list(changed.layers) == [
        "a_pre/Conv",
        "b_pre/Conv",
        "c_pre/Conv",
        "total/Add",
        "up/Resize",
        "d_pre/Conv",
        "head/Conv",
    ]
    assert changed.nodes("fp32") == {"up/Resize"}


def test_a_head_can_be_forced_into_int8(unet: Network, statistics: Statistics, plan: Plan) -> None:
    changed = edit(unet, plan, {"head/Conv": "int8"}, "to see what happens", statistics)
    assert len(changed.layers["head/Conv"].weight_scales or []) == 1
    assert "head" in changed.range_of()
    check_tensorrt(emit_tensorrt(unet, changed))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nowhere": "fp16"}, r"has no node 'nowhere'"),
        ({"up/Resize": "int8"}, "up/Resize is a Resize that has no int8 form"),
        ({"head/Conv": "int8"}, r"head/Conv needs scales to become int8; give --statistics"),
    ],
)
def test_edits_that_cannot_be(unet: Network, plan: Plan, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        edit(unet, plan, changes, "?")


def test_statistics_of_another_network(unet: Network, plan: Plan) -> None:
    with pytest.raises(UserError, match="another network"):
        edit(unet, plan, {"head/Conv": "int8"}, "?", Statistics("another"))


def test_the_commands(repository: Path, plan_file: Path, unet: Network) -> None:
    shown = command(repository, "show", plan_file, "--layers")
    assert shown.returncode == 0, shown.stderr
    assert "total/Add" in shown.stdout
    edited = plan_file.with_name("edited.json")
    done = command(repository, "edit", plan_file, "--set", "b_pre/Conv=fp16", "--reason", "odd [x]", "-o", edited)
    assert done.returncode == 0, done.stderr
    assert load_plan(edited, unet).layers["b_pre/Conv"].reason == "odd [x]"
    compared = command(repository, "diff", plan_file, edited)
    assert compared.stdout == "layer b_pre/Conv: int8 (features) -> fp16 (odd [x])\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "{folder}/missing.json"], "missing.json does not exist"),
        (["show", "{folder}"], "is a folder"),
        (["show", "{folder}/unet.onnx"], "Invalid JSON"),
        (["show", "{plan}", "--only", "int4"], "--only int4 is no precision; choose int8, fp16, fp32"),
        (["edit", "{plan}", "--set", "b_pre/Conv", "-o", "{folder}/x"], "--set b_pre/Conv is not NODES=int8"),
        (["edit", "{plan}", "--set", "b_pre/Conv=int4", "-o", "{folder}/x"], "--set b_pre/Conv=int4 is not"),
        (["edit", "{plan}", "--set", "x=fp16", "-o", "{folder}/x"], "has no node 'x'"),
        (["edit", "{folder}/sub/moved.json", "--set", "x=fp16", "-o", "{folder}/x"], "say where it lies with --model"),
    ],
)
def test_bad_input_is_one_line(repository: Path, plan_file: Path, arguments: list[str], message: str) -> None:
    folder = plan_file.parent
    (folder / "sub").mkdir()
    (folder / "sub" / "moved.json").write_bytes(plan_file.read_bytes())
    done = command(repository, *(argument.format(folder=folder, plan=plan_file) for argument in arguments))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
    assert not (folder / "x").exists()


def test_a_range_that_another_method_chose_is_shown(plan: Plan) -> None:
    other = plan.ranges[0].model_copy(update={"method": "mse"})
    edited = plan.model_copy(update={"ranges": [other, *plan.ranges[1:]]})
    title = summary(edited).title
    assert "1 of them by mse" in title
    assert "by mse" not in summary(plan).title
    assert range_table(edited).rows[0][-1] == "mse"
    assert {row[-1] for row in range_table(plan).rows} == {""}


def test_every_range_has_its_predicted_decibels(plan: Plan) -> None:
    assert all(shared.decibels is not None and 15 < shared.decibels < 60 for shared in plan.ranges)
