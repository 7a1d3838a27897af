"""OpenVINO's session: the maps of onnxruntime's, precision as asked, and every refusal in one line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sodeploy.errors import UserError
from sodeploy.runtime import openvino_session
from sodeploy.runtime.bench import bench
from sodeploy.runtime.contract import DIALECT_KEY, embed
from sodeploy.runtime.openvino_session import OpenVinoSession
from sodeploy.runtime.session import open_session, parse_engines

openvino = pytest.importorskip("openvino")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def batch(count: int, height: int = 16, width: int = 24) -> np.ndarray:
    return np.random.default_rng(count).random((count, 3, height, width), np.float32)


@pytest.mark.parametrize("fixed", [1, 2, 4, None])
@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_its_maps_are_those_of_onnxruntime(save_model, fixed, streams, dtype):
    path = save_model(batch=fixed, dtype=dtype)
    with open_session(path, threads=1) as reference, OpenVinoSession(path, threads=1, streams=streams) as session:
        for count in (1, 3):
            output = session.infer(batch(count))
            assert output.dtype == np.float32
            np.testing.assert_allclose(
                output, reference.infer(batch(count)), atol=2e-3 if dtype == np.float16 else 1e-6
            )


def test_any_size_where_the_model_takes_any(save_model):
    with open_session(save_model(dynamic_size=True), threads=1, engine="openvino") as session:
        for height in range(10, 20):  # more shapes than are kept compiled
            assert session.infer(batch(1, height, 30)).shape == (1, 1, height, 30)
    with (
        open_session(save_model("fixed.onnx"), engine="openvino") as session,
        pytest.raises(UserError, match="takes 16x24 only, got 30x30"),
    ):
        session.infer(batch(1, 30, 30))


def test_contract_precision_and_metadata_come_from_the_file(save_model):
    path = save_model(metadata={"sodeploy.precision": "int8", "a": "b"})
    with open_session(path, threads=1, engine="openvino") as session:
        assert (session.contract.network, session.precision, session.metadata["a"]) == ("tiny", "int8", "b")


def test_the_precision_of_the_body_is_as_asked(save_model):
    path = save_model()
    with OpenVinoSession(path) as session:
        assert session.kernels().keys() == {"f32"}  # whatever the CPU's default is
    core = openvino.Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU does not compute in bf16")
    with OpenVinoSession(path, body="bf16") as session:
        assert session._config["INFERENCE_PRECISION_HINT"] == "bf16"


def test_a_cpu_without_bf16_is_named(save_model, monkeypatch):
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "INT8"])
    with pytest.raises(UserError, match="this CPU does not compute in bf16; choose the engine openvino"):
        open_session(save_model(), engine="openvino-bf16")


def test_compiled_models_are_kept_for_one_version(save_model, tmp_path):
    with open_session(save_model(), engine="openvino"):
        (folder,) = (tmp_path / "cache" / "sodeploy").iterdir()
    assert folder.name == f"openvino-{openvino.__version__.split('-')[0]}"
    kept = {path.name for path in folder.rglob("*.blob")}
    assert len(kept) == 1
    with open_session(save_model(), engine="openvino"):
        assert {path.name for path in folder.rglob("*.blob")} == kept


@pytest.mark.parametrize(
    "spoiled", [lambda _: b"broken", lambda blob: blob.replace(openvino.__version__[:6].encode(), b"2025.1")]
)
def test_a_cache_that_is_broken_or_of_another_version_is_made_anew(save_model, tmp_path, spoiled):
    with open_session(save_model(), engine="openvino"):
        pass
    for path in (tmp_path / "cache").rglob("*.blob"):
        assert path.read_bytes() != spoiled(path.read_bytes())
        path.write_bytes(spoiled(path.read_bytes()))
    with open_session(save_model(), engine="openvino") as session:
        assert session.infer(batch(1)).shape == (1, 1, 16, 24)


def test_an_operator_that_openvino_lacks_is_named(tmp_path, make_contract):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Sharpen", ["image"], ["saliency"], domain="our.own")],
        "g",
        [value("image", TensorProto.FLOAT, [1, 3, 16, 24])],
        [value("saliency", TensorProto.FLOAT, [1, 1, 16, 24])],
    )
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("our.own", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    embed(model, make_contract())
    onnx.save(model, tmp_path / "own.onnx")
    with pytest.raises(UserError, match=r"own\.onnx: OpenVINO lacks our\.own\.Sharpen; use the engine onnxruntime"):
        open_session(tmp_path / "own.onnx", engine="openvino")


def test_a_node_that_openvino_does_not_take_is_named_with_the_reason(tmp_path, make_contract):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MaxPool", ["image"], ["saliency"], kernel_shape=[40, 40])],
        "g",
        [value("image", TensorProto.FLOAT, [1, 3, 16, 24])],
        [value("saliency", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    embed(model, make_contract())
    onnx.save(model, tmp_path / "wide.onnx")
    expected = r"its MaxPool that makes saliency \(Kernel .* larger than the data .*\); use the engine onnxruntime"
    with pytest.raises(UserError, match=expected):
        open_session(tmp_path / "wide.onnx", engine="openvino")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "openvino", "threads": 10_000}, r"10000 threads were asked of \d+ cores"),
        ({"engine": "onnxruntime", "threads": 10_000}, r"10000 threads were asked of \d+ cores"),
        ({"engine": "openvino", "device": "cuda"}, "the engine openvino runs on a CPU"),
    ],
)
def test_what_cannot_be_had_is_said(save_model, arguments, message):
    with pytest.raises(UserError, match=message):
        open_session(save_model(), **arguments)


def test_a_broken_file_is_one_line(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(
        UserError, match=r"x\.onnx: OpenVINO cannot read it as an ONNX model: it is damaged or of another kind"
    ):
        open_session(tmp_path / "x.onnx", engine="openvino")


def test_without_a_cpu_plugin(save_model, monkeypatch):
    monkeypatch.setattr(openvino.Core, "available_devices", property(lambda _: []))
    with pytest.raises(
        UserError, match=r"tiny\.onnx: this OpenVINO has no CPU plugin; .*pip install --force-reinstall"
    ):
        open_session(save_model(), engine="openvino")


def test_without_openvino(save_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"engine openvino cannot be imported .*pip install 'sodeploy\[openvino\]'"):
        open_session(save_model(), engine="openvino")


def test_a_closed_session_does_not_run(save_model):
    session = open_session(save_model(), engine="openvino")
    session.close()
    with pytest.raises(ValueError, match="is closed"):
        session.infer(batch(1))


def test_nothing_is_written_where_the_cache_cannot_be(save_model, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with open_session(save_model(), engine="openvino") as session:
        assert "CACHE_DIR" not in session._config
    assert openvino_session._cache_folder("1.0") is None


@pytest.mark.parametrize("text", ["openvinno", "onnxruntime,", "openvino,openvino"])
def test_an_unknown_engine_is_named(text):
    with pytest.raises(UserError, match=f"--engine {text}: "):
        parse_engines(text)


def test_a_bench_compares_engines_and_measures_a_graph_where_it_belongs(save_model):
    float32 = save_model("a.onnx")
    ours = save_model("a.int8.openvino.onnx", metadata={"sodeploy.precision": "int8", DIALECT_KEY: "openvino"})
    record = bench([float32, ours], "synthetic:eval:2:64", workers=1, engines=["onnxruntime", "openvino"])
    rows = [(Path(row.model).name, row.engine, row.name, row.stand_in) for row in record.rows]
    assert rows == [
        ("a.onnx", "onnxruntime", "a in onnxruntime", ""),
        ("a.onnx", "openvino", "a in openvino", ""),
        ("a.int8.openvino.onnx", "openvino", "a.int8.openvino in openvino", ""),
    ]


def test_a_graph_for_openvino_in_onnxruntime_is_a_stand_in(save_model):
    ours = save_model(metadata={"sodeploy.precision": "int8", DIALECT_KEY: "openvino"})
    (row,) = bench([ours], "synthetic:eval:1:64", workers=1).rows
    assert row.stand_in == "is made for OpenVINO"


def test_infer_takes_the_engine(repository, save_model, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    import cv2

    cv2.imwrite(str(images / "a.png"), picture)
    maps = {}
    for engine in ("onnxruntime", "openvino"):
        command = [sys.executable, repository / "runtime" / "infer.py", save_model(), "--images", images]
        command += ["--output", tmp_path / engine, "--engine", engine]
        subprocess.run(command, check=True, capture_output=True)
        maps[engine] = cv2.imread(str(tmp_path / engine / "a.png"), cv2.IMREAD_GRAYSCALE).astype(int)
    assert np.abs(maps["openvino"] - maps["onnxruntime"]).max() <= 1


def test_the_operator_that_is_refused_is_named_and_not_the_ones_behind_it(save_model):
    path = save_model()
    model = onnx.load(path)
    reader = next(node for node in model.graph.node if model.graph.input[0].name in node.input)
    name = model.graph.input[0].name
    pool = helper.make_node("MaxPool", [name], ["pooled"], "pool", kernel_shape=[99, 99], strides=[2, 2])
    reader.input[:] = ["pooled" if one == name else one for one in reader.input]
    model.graph.node.insert(0, pool)
    onnx.save(model, path)
    with pytest.raises(UserError, match="OpenVINO does not take its MaxPool that makes pooled"):
        OpenVinoSession(path, threads=1)
