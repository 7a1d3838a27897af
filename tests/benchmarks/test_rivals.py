"""A comparison is fair only if each process is billed for itself, and every graph keeps the network's contract."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sodeploy.quant.graph import Network, load_network
from sodeploy.runtime.contract import Contract, embed
from sodeploy.runtime.session import open_session

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
GRAPH = """<ir_version: 9, opset_import: ["" : 19]>
tiny (float[1, 3, 16, 16] image) => (float[1, 1, 16, 16] saliency) {
    a = Conv <pads = [1, 1, 1, 1]> (image, wa)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, wb)
    saliency = Sigmoid (c)
}"""


@pytest.fixture
def rivals(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("rivals")


@pytest.fixture
def network(tmp_path: Path) -> Network:
    model = onnx.parser.parse_model(GRAPH)
    rng = np.random.default_rng(0)
    for name, shape in {"wa": (8, 3, 3, 3), "wb": (1, 8, 3, 3)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    embed(model, Contract(network="tiny", height=16, width=16, mean=(0, 0, 0), std=(1, 1, 1)))
    onnx.save(model, tmp_path / "tiny.onnx")
    return load_network(tmp_path / "tiny.onnx")


def test_a_process_is_billed_for_its_own_memory_alone(rivals: ModuleType, tmp_path: Path) -> None:
    ours = np.ones(300 << 20, np.uint8)  # what the parent holds
    small = rivals.measure([sys.executable, "-c", "pass"], tmp_path / "log")
    large = rivals.measure([sys.executable, "-c", "bytearray(b'1') * (200 << 20)"], tmp_path / "log")
    assert ours.nbytes == 300 << 20
    assert small.peak_mib < 100
    assert 200 < large.peak_mib < 300


def test_a_rival_that_fails_is_a_row_with_its_last_words(rivals: ModuleType, network: Network, tmp_path: Path) -> None:
    absent = rivals.rival(network, "modelopt-entropy", rivals.CommandFailed("no such wheel"), tmp_path / "x", tmp_path)
    assert (absent.graph, absent.failure) == (None, "cannot be installed: no such wheel")
    failed = rivals.rival(network, "onnxruntime-minmax", sys.executable, tmp_path / "no.npy", tmp_path)
    assert failed.graph is None
    assert "no.npy" in failed.failure


def test_the_overview_has_all_networks_in_one_table(rivals: ModuleType) -> None:
    text = (BENCHMARKS.parent / "docs" / "records" / "rivals.json").read_text()
    entry = next(one for one in json.loads(text) if Path(one["model"]).name == "u2netp.onnx")
    cost_alone = {"tool": "closed", "graph": None, "cost": [90.0, 700.0, 170.0], "failure": "of another kind"}
    entry["tools"].append(cost_alone)
    entry["tools"].append({"tool": "broken", "graph": None, "cost": None, "failure": "its last words"})
    other = json.loads(json.dumps(entry).replace("u2netp", "other"))
    (table,) = rivals.overview([entry, other])
    rows = [row for row in table.rows if row[0] == "u2netp"]
    assert [["other", *row[1:]] for row in rows] == table.rows[len(rows) :]
    assert [row[1] for row in rows] == ["fp32", "sodeploy by kl, for OpenVINO", "nncf-fast"]
    assert all(row[2:5] for row in rows)
    *_, closed, broken = rivals.tables([entry])[0].rows
    assert (closed[0], closed[-3:]) == ("closed: of another kind", ["90.0", "700", ""])
    assert (broken[0], broken[-3:]) == ("broken: its last words", ["", "", ""])


def test_planning_is_a_multiple_of_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    costs = {"inference": (10.0, 300.0, 20.0), "calibration": (12.5, 350.0, 22.0)}
    works = {name: dict(zip(("seconds", "peak_mib", "cpu_seconds"), cost, strict=True)) for name, cost in costs.items()}
    record = [{"model": "a/net.onnx", "images": 8, "hardware": "a CPU, 2 cores", "works": works}]
    (table,) = importlib.import_module("calibration_time").tables(record)
    assert table.rows[1] == ["net", "8", "calibration", "12.5", "1.25", "22.0", "1.10", "350", "+50"]


def test_a_graph_that_bench_does_not_open_is_a_row_with_its_cost(
    rivals: ModuleType, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.nncf-accurate.onnx").write_bytes(b"of an earlier run")
    cost = rivals.Cost(90.0, 700.0, 170.0)
    monkeypatch.setattr(rivals, "measure", lambda command, log: cost)
    made = rivals.rival(network, "nncf-accurate", sys.executable, tmp_path / "inputs.npy", tmp_path)
    assert (made.graph, made.cost) == (None, cost)
    assert "OpenVINO model" in made.failure


def test_a_rivals_graph_keeps_the_contract(rivals: ModuleType, network: Network, tmp_path: Path) -> None:
    inputs = np.random.default_rng(1).random((3, 3, 16, 16), np.float32)
    np.save(tmp_path / "inputs.npy", inputs)
    made = rivals.rival(network, "onnxruntime-entropy", sys.executable, tmp_path / "inputs.npy", tmp_path)
    assert not made.failure
    with open_session(made.graph, threads=1) as session, open_session(network.path, threads=1) as original:
        assert (session.contract, session.precision) == (network.contract, "int8")
        difference = np.abs(session.infer(inputs) - original.infer(inputs))
    assert difference.mean() < 0.05  # one value may be far off: see runtime.session on CPUs that saturate
