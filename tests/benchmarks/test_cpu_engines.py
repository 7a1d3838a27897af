"""The table of CPU engines: which graphs it takes, what it measures of a session, and the variants of a plan."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from sodeploy.calib_data import open_dataset
from sodeploy.errors import UserError
from sodeploy.quant.build_engine import build
from sodeploy.quant.graph import load_network
from sodeploy.quant.planning.plan import load_plan
from sodeploy.quant.sources import Images
from tests.benchmarks.test_rivals import BENCHMARKS, network  # noqa: F401 - a fixture

pytest.importorskip("openvino")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("cpu_engines")


@pytest.fixture
def model(network, tmp_path: Path) -> Path:  # noqa: F811
    build(network.path, tmp_path, Images(open_dataset("synthetic:calib:4:32", masks=False)), engines=False)
    return Path(network.path)


def test_every_graph_for_cpus_in_its_engine(benchmark: ModuleType, model: Path, tmp_path: Path) -> None:
    names = [path.name for path in benchmark.graphs_of(model)]
    assert names == ["tiny.onnx", "tiny.int8.cpu.onnx", "tiny.int8.openvino.onnx"]
    record = benchmark.compare(model, "synthetic:eval:3", None, [1], ["onnxruntime", "openvino"], 0.0)
    (table,) = benchmark.tables(json.loads(json.dumps([record])))
    assert [row[:2] for row in table.rows] == [
        ["fp32", "onnxruntime"],
        ["fp32", "openvino"],
        ["int8.cpu", "onnxruntime"],
        ["int8.openvino", "openvino"],
    ]
    assert (table.rows[0][2], table.rows[0][7]) == (".0000", "1.00")
    assert all(0 < float(row[2]) < 0.1 for row in table.rows[2:])
    for session in record["sessions"]:
        assert "failure" not in session
        assert session["start_s"] > 0
        assert session["peak_mib"] > 20


def test_each_variant_changes_its_graph(benchmark: ModuleType, model: Path, tmp_path: Path) -> None:
    variants = importlib.import_module("cpu_variants").variants
    plan = load_plan(tmp_path / "tiny.plan.json", load_network(model))
    made = dict(variants(plan, "openvino"))
    assert made["as_planned"] is plan
    assert made["heads_in_float"].target("openvino").layers == {}
    assert made["no_q_before_Resize_Concat"].target("openvino").unquantized == ["Resize", "Concat"]
    assert made["weight_steps_64"].target("openvino").weight_steps == 64
    assert all(shared.uint8 is None for shared in made["intervals_of_int8"].ranges)
    assert plan.target("openvino").unquantized == []


def test_what_it_cannot_take_is_said(benchmark: ModuleType) -> None:
    with pytest.raises(UserError, match="--threads 1,x: give whole numbers from 1 on"):
        benchmark.main([], threads="1,x")
    with pytest.raises(UserError, match="no model is given"):
        benchmark.main([], threads="1", engines="onnxruntime")
