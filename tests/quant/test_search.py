"""The search for the fewest layers in higher precision, on networks that really break in int8 and in fp16."""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sodeploy.calib_data import Dataset, Sample
from sodeploy.errors import UserError
from sodeploy.quant import build_engine, build_plan
from sodeploy.quant.budget import gate as gate_module
from sodeploy.quant.budget.gate import Gate, require_disjoint
from sodeploy.quant.budget.search import Candidate, fewest, search, summary
from sodeploy.quant.calibration.observer import calibrate
from sodeploy.quant.graph import Network, load_network
from sodeploy.quant.planning.evidence import Evidence
from sodeploy.quant.planning.plan import load_plan
from sodeploy.quant.sources import Images
from sodeploy.runtime.contract import Contract, embed
from sodeploy.runtime.measure.budget import Verdict, parse_budget
from sodeploy.runtime.measure.differences import Delta
from sodeploy.runtime.measure.metrics import Scores

SIZE = 32
CHANNELS = 8


@dataclass(frozen=True)
class Scene:
    """A bright rectangle on a dark ground, and its mask."""

    name: str
    seed: int

    def image(self) -> np.ndarray:
        rng = np.random.default_rng(self.seed)
        image = rng.integers(0, 90, (SIZE, SIZE, 3), np.uint8)
        return image + (self.mask() > 0)[..., None] * rng.integers(90, 160, 3).astype(np.uint8)

    def mask(self) -> np.ndarray:
        y, x, height, width = np.random.default_rng(self.seed + 1000).integers((4, 4, 8, 8), (12, 12, 16, 16))
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[y : y + height, x : x + width] = 255
        return mask

    def digest(self) -> str:
        return f"{self.seed:064x}"


CALIBRATION = Dataset("calibration", [Scene(f"c{seed}", seed) for seed in range(4)])
EVALUATION = Dataset("evaluation", [Scene(f"e{seed}", seed) for seed in range(100, 121)])


def brightness_network(path: Path, magnified: dict[int, float], gain: float = 30) -> Network:
    """Finds what is bright, by five blurs of 8 channels.

    Args:
        gain: of the sigmoid that tells bright from dark.
        magnified: blur -> factor of the first channel of its result, which the next blur all but ignores.
    """
    rng = np.random.default_rng(0)
    nodes, constants = [], []

    def conv(x: str, name: str, weight: np.ndarray, bias: np.ndarray) -> str:
        for kind, values in (("weight", weight), ("bias", bias)):
            constants.append(numpy_helper.from_array(values.astype(np.float32), f"{name}.{kind}"))
        pads = [weight.shape[2] // 2] * 4
        nodes.append(helper.make_node("Conv", [x, f"{name}.weight", f"{name}.bias"], [name], name=name, pads=pads))
        return name

    x, channels = "image", 3
    for index in range(5):
        weight = rng.uniform(0.5, 1.5, (CHANNELS, channels, 3, 3))
        weight /= weight.sum(axis=(1, 2, 3), keepdims=True)
        weight[:, 0] /= magnified.get(index - 1, 1)
        weight[0] *= magnified.get(index, 1)
        x, channels = conv(x, f"blur{index}", weight, np.zeros(CHANNELS)), CHANNELS
        nodes.append(helper.make_node("Relu", [x], [f"{x}/relu"], name=f"relu{index}"))
        x = f"{x}/relu"
    weight = np.full((1, CHANNELS, 1, 1), gain / CHANNELS)
    weight[:, 0] /= magnified.get(4, 1)
    conv(x, "head", weight, np.full(1, -0.43 * gain))
    nodes.append(helper.make_node("Sigmoid", ["head"], ["saliency"], name="sigmoid"))
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "brightness",
        [tensor("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [tensor("saliency", TensorProto.FLOAT, [1, 1, SIZE, SIZE])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    embed(model, Contract(network="brightness", height=SIZE, width=SIZE, mean=(0, 0, 0), std=(1, 1, 1)))
    onnx.save(model, path)
    return load_network(path)


def open_gate(network: Network, folder: Path, budget: str = "s=0.02,mae=0.01", images: Dataset = EVALUATION) -> Gate:
    return Gate(network, images, parse_budget(budget), folder / "net.search.json", workers=1)


def found_by(network: Network, folder: Path, int8: bool = True, budget: str = "s=0.02,mae=0.01") -> list[Candidate]:
    evidence = Evidence(calibrate(network, CALIBRATION)) if int8 else None
    with open_gate(network, folder, budget) as gate:
        return search(network, gate, evidence)


def left(candidate: Candidate, precision: str) -> set[str]:
    return {name for name, layer in candidate.plan.layers.items() if layer.precision == precision}


@pytest.mark.parametrize(
    ("magnified", "culprits"), [({}, set()), ({1: 1000}, {"blur2"}), ({0: 1000, 3: 1000}, {"blur1", "blur4"})]
)
def test_the_layers_that_break_in_int8_are_found(
    tmp_path: Path, magnified: dict[int, float], culprits: set[str]
) -> None:
    candidates = found_by(brightness_network(tmp_path / "net.onnx", magnified), tmp_path)
    fp16, int8, *_ = candidates
    assert fp16.verdict.bound("s") < 0.001
    assert (int8.verdict.bound("s") > 0.1) == bool(culprits)
    assert left(candidates[-1], "fp16") == {"head", *culprits}
    assert candidates[-1].verdict.bound("s") <= 0.02
    assert candidates[-1].verdict.bound("mae") <= 0.01
    for name in culprits:
        reason = candidates[-1].plan.layers[name].reason
        assert reason.startswith("int8 here costs .")
        assert "(.0200 allowed); channel 0 of blur" in reason


def test_the_nodes_that_overflow_in_fp16_are_found(tmp_path: Path) -> None:
    """Blur 1 reaches 2e5, and blur 2 reads that: neither the values nor their copies fit."""
    network = brightness_network(tmp_path / "net.onnx", {1: 3e5})
    candidates = found_by(network, tmp_path, int8=False)
    assert candidates[0].verdict.deltas == {}
    assert left(candidates[-1], "fp32") == {"blur1", "relu1", "blur2", "relu2"}
    assert "NaN or infinite" in candidates[-1].plan.layers["blur2"].reason
    body, *_, int8 = found_by(network, tmp_path)  # what overflows is known from the calibration here
    assert left(body, "fp32") == left(int8, "fp32") == {"blur1", "relu1", "blur2"}
    assert left(int8, "int8") == {"blur0", "blur3", "blur4"}


def test_a_budget_that_fp16_cannot_keep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = brightness_network(tmp_path / "net.onnx", dict.fromkeys(range(5), 3e5))
    with pytest.raises(UserError, match=r"below fp32: .* it loses the whole map, .*; raise --max-drop"):
        found_by(network, tmp_path, int8=False)
    assert "with every layer in fp16 net.onnx loses" in capsys.readouterr().err


def test_a_budget_that_int8_cannot_keep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = brightness_network(tmp_path / "net.onnx", dict.fromkeys(range(5), 1000), gain=3000)
    candidates = found_by(network, tmp_path, budget="mae=0.00001,w_f=0.00001,s=0.00001")
    assert not left(candidates[-1], "int8")
    assert "no layer of net.onnx can run in int8 under this budget" in capsys.readouterr().err


def test_an_interrupted_search_goes_on_where_it_stood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = brightness_network(tmp_path / "net.onnx", {0: 1000, 3: 1000})
    evidence = Evidence(calibrate(network, CALIBRATION))
    with open_gate(network, tmp_path) as gate:
        whole = search(network, gate, evidence)
        total = len(gate.measured)
    (tmp_path / "net.search.json").unlink()
    (tmp_path / "net.search.npz").unlink()
    count = 0

    def interrupt(saliency: np.ndarray, sample: Sample) -> Scores:
        nonlocal count
        count += 1
        if count == 3 * len(EVALUATION):  # fp32 and two candidates are through, the third nearly
            raise KeyboardInterrupt
        return score(saliency, sample)

    score = gate_module._score
    monkeypatch.setattr(gate_module, "_score", interrupt)
    with open_gate(network, tmp_path) as gate, pytest.raises(KeyboardInterrupt):
        search(network, gate, evidence)
    monkeypatch.setattr(gate_module, "_score", score)
    with open_gate(network, tmp_path) as gate:
        found = search(network, gate, evidence)
        assert [candidate.plan for candidate in found] == [one.plan for one in whole]
        assert len(gate.remembered) == 1
        assert len(gate.measured) == total - 1
        rows = {row[0]: row for row in summary(gate, whole, 1.0).rows}
    assert rows["int8, 2 layers left in fp16"][1:3] == ["3", "0"]
    monkeypatch.setattr(gate_module, "_opened", None)  # to run any network again would fail
    with open_gate(network, tmp_path) as gate:
        found = search(network, gate, evidence)
        assert [candidate.plan for candidate in found] == [one.plan for one in whole]


@dataclass(frozen=True)
class Deadly(Scene):
    """Ends the process that scores it, as a system short of memory does."""

    def mask(self) -> np.ndarray:
        if multiprocessing.parent_process() is not None:
            os._exit(1)
        return super().mask()


def test_a_killed_process_is_one_line(tmp_path: Path) -> None:
    network = brightness_network(tmp_path / "net.onnx", {})
    images = Dataset("deadly", [Deadly(f"d{seed}", seed) for seed in range(20)])
    with (
        pytest.raises(UserError, match="a worker process was killed"),
        Gate(network, images, {"s": 0.1}, tmp_path / "net.search.json", workers=2) as gate,
    ):
        search(network, gate)


def test_a_record_of_other_images_is_not_used(tmp_path: Path) -> None:
    network = brightness_network(tmp_path / "net.onnx", {})
    found_by(network, tmp_path, int8=False)
    with open_gate(network, tmp_path, images=Dataset("fewer", EVALUATION.samples[1:])) as gate:
        search(network, gate)
        assert len(gate.measured) == 1
    state = json.loads((tmp_path / "net.search.json").read_text())
    assert len(state["verdicts"]) == 1
    (tmp_path / "net.search.json").write_text("{")
    with pytest.raises(UserError, match=r"net\.search\.json is not JSON .*; delete it and search again"):
        open_gate(network, tmp_path)


def judged(needed: set[str]) -> tuple[Callable[[Sequence[str]], Verdict], list[set[str]]]:
    """A loss that fits once all of `needed` are raised, and what was asked of it."""
    asked: list[set[str]] = []

    def judge(raised: Sequence[str]) -> Verdict:
        asked.append(set(raised))
        return Verdict({"s": Delta(0, -float(not needed <= set(raised)), 0)})

    return judge, asked


@pytest.mark.parametrize("needed", ["a", "b", "abc", "ace", "h", "bh", "abcdefgh", "dg"])
def test_the_fewest_are_found_wherever_they_are_ranked(needed: str) -> None:
    judge, asked = judged(set(needed))
    costs = fewest("abcdefgh", judge, lambda verdict: verdict.fits({"s": 0.5}))
    assert "".join(costs) == needed
    assert all(verdict.bound("s") == 1 for verdict in costs.values())
    assert len(asked) <= 14


def test_one_bad_layer_among_many_is_found_at_once() -> None:
    judge, asked = judged({"0"})
    assert list(fewest([str(index) for index in range(200)], judge, lambda verdict: verdict.fits({"s": 0.5}))) == ["0"]
    assert len(asked) == 2


def test_evaluation_images_in_the_calibration_set_are_refused() -> None:
    require_disjoint(CALIBRATION, EVALUATION)
    mixed = Dataset("mixed", [*CALIBRATION, Scene("again", 103), Scene("and again", 104)])
    with pytest.raises(UserError, match=r"2 of the calibration images mixed .* evaluation \(again, and again\)"):
        require_disjoint(mixed, EVALUATION)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    brightness_network(tmp_path / "net.onnx", {1: 1000})
    budget = {"s": 0.02}
    out = tmp_path / "out"
    within = build_plan.Within(budget, EVALUATION)
    built = build_engine.build(tmp_path / "net.onnx", out, Images(CALIBRATION), within=within, engines=False)
    plan = load_plan(out / "net.plan.json", load_network(tmp_path / "net.onnx"))
    assert plan.layers["blur2"].precision == "fp16"
    assert all(path.is_file() for path in built.graphs.values())
    record = json.loads((out / "net.plan.json.json").read_text())
    assert record["budget"] == budget
    assert -record["differences"]["s"]["low"] <= budget["s"]
    table = capsys.readouterr().out
    assert "int8, 1 layer left in fp16" in table
    assert f"Difference to fp32 on evaluation ({len(EVALUATION)} images)" in table
    assert record["method"] == "kl"
    built = build_engine.build(tmp_path / "net.onnx", out, within=within, engines=False)
    assert list(built.graphs) == ["fp16", "fp16.sim"]
    assert built.search == out / "net.search.json"
    assert built.plan == out / "net.plan.json"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--int8", "--plan", "p.json", "--eval", "synthetic:eval:3", "--max-drop", "s=0.01"], "instead of --plan"),
        (["--int8", "--calib", "synthetic:calib:2", "--eval", "nowhere", "--max-drop", "s=0.01"], "nowhere"),
        (
            ["--int8", "--calib", "synthetic:eval:2:32", "--eval", "synthetic:eval:3:32", "--max-drop", "s=0.1"],
            "-00000",
        ),
        (
            ["--int8", "--calib", "synthetic:calib:2:32", "--eval", "EMPTY", "--max-drop", "s=0.1"],
            "EMPTY: all 2 masks have no object",
        ),
    ],
)
def test_a_command_gone_wrong(repository: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    brightness_network(tmp_path / "net.onnx", {})
    for name in ("0", "1"):
        for folder in ("images", "masks"):
            (tmp_path / "EMPTY" / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "EMPTY" / folder / f"{name}.png"), np.zeros((32, 32), np.uint8))
    arguments = [*arguments, "--root", str(tmp_path)] if "EMPTY" in arguments else arguments
    script = [sys.executable, str(repository / "quant" / "build_engine.py"), str(tmp_path / "net.onnx")]
    command = [*script, *arguments, "--output-dir", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
    assert not (tmp_path / "out").exists()
