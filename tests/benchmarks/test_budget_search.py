"""A network that is broken on purpose must still compute what it did."""

import importlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from sodeploy.quant.graph import load_network
from sodeploy.runtime.contract import Contract, embed

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
GRAPH = """<ir_version: 9, opset_import: ["" : 19]>
tiny (float[1, 3, 16, 16] image) => (float[1, 1, 8, 8] saliency) {
    a = Conv <pads = [1, 1, 1, 1]> (image, wa, ba)
    ar = Relu (a)
    ap = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (ar)
    b = Conv <pads = [1, 1, 1, 1]> (ap, wb, bb)
    joined = Concat <axis = 1> (b, ap)
    c = Conv <pads = [1, 1, 1, 1]> (joined, wc, bc)
    saliency = Sigmoid (c)
}"""


def test_a_magnified_channel_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    budget_search = importlib.import_module("budget_search")
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(GRAPH)
    shapes = {"wa": (4, 3, 3, 3), "wb": (4, 4, 3, 3), "wc": (1, 8, 3, 3), "ba": (4,), "bb": (4,), "bc": (1,)}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32) * np.float32(0.2)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    for node in model.graph.node:
        node.name = node.output[0]
    embed(model, Contract(network="tiny", height=16, width=16, mean=(0, 0, 0), std=(1, 1, 1)))
    onnx.save(model, tmp_path / "tiny.onnx")
    network = load_network(tmp_path / "tiny.onnx")

    places = budget_search.breakable(network)
    assert {place.layer: place.readers for place in places} == {"a": {"b": 0, "c": 4}, "b": {"c": 0}}
    image = rng.random((1, 3, 16, 16), np.float32)
    broken = budget_search.magnify(network, places, 1000.0)
    before, after = (
        onnxruntime.InferenceSession(one.SerializeToString()).run(None, {"image": image})[0] for one in (model, broken)
    )
    assert after == pytest.approx(before, abs=1e-5)
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in broken.graph.initializer}
    assert kept["ba"][0] == pytest.approx(1000 * network.constants["ba"][0])
