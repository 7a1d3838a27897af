"""Adopted ONNX files give the same map in the current form; a file that cannot be adopted gives one clear line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from research_data import ResearchFile
from typer.testing import CliRunner

from sodeploy.errors import UserError
from sodeploy.export import adopt as module
from sodeploy.export.adopt import adopt, preprocessing_like
from sodeploy.export.foreign import Choices
from sodeploy.export.parity import scene
from sodeploy.runtime.contract import PRECISION_KEY, Contract, contract_of

PREPROCESSING: dict[str, Any] = {"network": "theirs", "mean": (0.5, 0.5, 0.5), "std": (1.0, 1.0, 1.0)}
SIZE = (32, 48)


def write(
    path: Path,
    shape: tuple[int | str, ...] = (1, 3, *SIZE),
    opset: int = 11,
    dtype: Any = np.float32,
    sigmoid: bool = True,
    side_output: bool = False,
    list_weights_as_inputs: bool = False,
) -> Path:
    """A network as an old exporter wrote it: convolution, batch norm, a halving, a resize and a 1 x 1 head."""
    random = np.random.default_rng(0)
    tensor_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    values = {
        "w": random.normal(0, 0.4, (8, 3, 3, 3)).astype(dtype),
        "head": random.normal(0, 1.0, (1, 8, 1, 1)).astype(dtype),
        **{name: random.uniform(0.5, 1.5, 8).astype(dtype) for name in ("gamma", "beta", "mean", "var")},
        "roi": np.zeros(0, np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    output = "saliency" if sigmoid else "logit"
    nodes = [
        helper.make_node("Conv", ["picture", "w"], ["c"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Resize", ["p", "roi", "scales"], ["u"], mode="linear"),
        helper.make_node("Conv", ["u", "head"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["saliency"]),
        helper.make_node("Sigmoid", ["c"], ["side"]),
    ]
    if not side_output:
        nodes.pop()
    if not sigmoid:
        nodes = [node for node in nodes if node.op_type != "Sigmoid"]
    inputs = [helper.make_tensor_value_info("picture", tensor_type, shape)]
    if list_weights_as_inputs:
        inputs += [helper.make_tensor_value_info("w", tensor_type, values["w"].shape)]
    outputs = [helper.make_tensor_value_info(output, tensor_type, (shape[0], 1, *shape[2:]))]
    if side_output:
        outputs.append(helper.make_tensor_value_info("side", tensor_type, (shape[0], 8, *shape[2:])))
    weights = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "theirs", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)
    model.metadata_props.add(key="author", value="somebody")
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def run(path: Path, batch: np.ndarray, output: str = "saliency") -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (saliency,) = session.run([output], {session.get_inputs()[0].name: batch})
    return np.asarray(saliency)


def contract(path: Path) -> Contract:
    return contract_of({entry.key: entry.value for entry in onnx.load(path).metadata_props}, path)


def test_old_graph_becomes_current_and_stays_the_same(tmp_path: Path) -> None:
    source = write(tmp_path / "old.onnx", list_weights_as_inputs=True)
    path = adopt(source, tmp_path / "new.onnx", {**PREPROCESSING, "colour": "BGR", "interpolation": "area"})
    model = onnx.load(path)
    assert model.opset_import[0].version >= 17
    assert 8 <= model.ir_version <= 10
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert all(node.name for node in model.graph.node)
    assert [tensor.name for tensor in model.graph.input] == ["picture"]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["author"] == "somebody"
    assert metadata[PRECISION_KEY] == "fp32"
    assert contract(path) == Contract(
        **PREPROCESSING, colour="BGR", interpolation="area", input_name="picture", height=32, width=48
    )
    batch = scene((1, 3, *SIZE))
    np.testing.assert_allclose(run(path, batch), run(source, batch), atol=1e-6)
    assert json.loads(Path(f"{path}.json").read_text())["parity"]["max_abs"] < 1e-6


def test_adopted_graph_can_be_adopted_again(tmp_path: Path) -> None:
    first = adopt(write(tmp_path / "old.onnx"), tmp_path / "a.onnx", PREPROCESSING)
    second = adopt(first, tmp_path / "b.onnx", {**PREPROCESSING, "stretch": True})
    assert contract(second).stretch
    assert len({entry.key for entry in onnx.load(second).metadata_props}) == len(onnx.load(second).metadata_props)


def test_one_output_of_several(tmp_path: Path) -> None:
    source = write(tmp_path / "old.onnx", side_output=True)
    with pytest.raises(UserError, match=r"several outputs; .*: saliency \(1x1x32x48\), side \(1x8x32x48\)"):
        adopt(source, tmp_path / "new.onnx", PREPROCESSING)
    with pytest.raises(UserError, match="has no output map; it has: saliency"):
        adopt(source, tmp_path / "new.onnx", PREPROCESSING, Choices(output_tensor="map"))
    with pytest.raises(UserError, match=r"output side is \(1, 8, 32, 48\) .* not one map"):
        adopt(source, tmp_path / "new.onnx", PREPROCESSING, Choices(output_tensor="side"))
    path = adopt(source, tmp_path / "new.onnx", PREPROCESSING, Choices(output_tensor="saliency"))
    assert [tensor.name for tensor in onnx.load(path).graph.output] == ["saliency"]


def test_first_output_is_the_map_of_a_network_of_ours(tmp_path: Path) -> None:
    source = write(tmp_path / "old.onnx", side_output=True)
    path = adopt(source, tmp_path / "new.onnx", PREPROCESSING, Choices(first_output=True))
    assert [tensor.name for tensor in onnx.load(path).graph.output] == ["saliency"]


def test_probability_is_no_logit(tmp_path: Path) -> None:
    source = write(tmp_path / "old.onnx")
    with pytest.raises(UserError, match="saliency is the result of a Sigmoid, from 0 to 1, so a probability already"):
        adopt(source, tmp_path / "new.onnx", PREPROCESSING, Choices(logit=True))
    assert list(tmp_path.iterdir()) == [source]


def test_fp16_becomes_fp32(tmp_path: Path) -> None:
    source = write(tmp_path / "half.onnx", opset=13, dtype=np.float16)
    path = adopt(source, tmp_path / "new.onnx", PREPROCESSING)
    model = onnx.load(path)
    types = {tensor.data_type for tensor in model.graph.initializer}
    types |= {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert TensorProto.FLOAT16 not in types
    batch = scene((1, 3, *SIZE))
    np.testing.assert_allclose(run(path, batch), run(source, batch.astype(np.float16)), atol=0.01)


def test_dynamic_dimensions(tmp_path: Path) -> None:
    source = write(tmp_path / "any.onnx", shape=("n", 3, "h", "w"), opset=17)
    with pytest.raises(UserError, match="takes any size; say which is its native one: --size H W"):
        adopt(source, tmp_path / "new.onnx", PREPROCESSING)
    fixed = adopt(source, tmp_path / "fixed.onnx", PREPROCESSING, Choices(size=SIZE, batch=2))
    dims = onnx.load(fixed).graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [2, 1, *SIZE]
    assert (contract(fixed).batch, contract(fixed).dynamic_size) == (2, False)
    kept = adopt(source, tmp_path / "kept.onnx", PREPROCESSING, Choices(size=SIZE, dynamic_size=True))
    assert (contract(kept).batch, contract(kept).dynamic_size) == (None, True)
    batch = scene((3, 3, 64, 32))
    np.testing.assert_allclose(run(kept, batch), run(source, batch), atol=1e-6)


def test_logits(tmp_path: Path) -> None:
    source = write(tmp_path / "logit.onnx", sigmoid=False)
    with pytest.raises(UserError, match="it is no probability; give --logit"):
        adopt(source, tmp_path / "new.onnx", PREPROCESSING)
    path = adopt(source, tmp_path / "new.onnx", PREPROCESSING, Choices(logit=True))
    assert contract(path).output == "logit"


def test_preparation_of_a_network_of_ours() -> None:
    fields, size = preprocessing_like("u2netp")
    assert size == (320, 320)
    assert fields["divide_by"] == "max"
    assert fields["mean"] == (0.485, 0.456, 0.406)


def test_adopting_needs_no_torch() -> None:
    """README's first commands install no PyTorch."""
    code = (
        "import sys; sys.modules['torch'] = None; from sodeploy.export.adopt import preprocessing_like; "
        "print(preprocessing_like('isnet_dis')[1])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout == "(1024, 1024)\n", ran.stderr


def test_published_u2netp(research_file: ResearchFile, tmp_path: Path) -> None:
    """A published file of 2021 (opset 11, seven outputs) gives the same map, bit for bit."""
    source = research_file("weights/u2netp-fp32-from-fp16.onnx")
    fields, size = preprocessing_like("u2netp")
    path = adopt(source, tmp_path / "u2netp.onnx", fields, Choices(size=size, output_tensor="1959"))
    batch = scene((1, 3, 320, 320))
    np.testing.assert_array_equal(run(path, batch, "1959"), run(source, batch, "1959"))
    assert len(onnx.load(path).graph.node) == 365


def two_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, (1, 1, 32, 48)))


def quantized(model: onnx.ModelProto) -> None:
    scale = numpy_helper.from_array(np.float32(0.02), "scale")
    zero = numpy_helper.from_array(np.int8(0), "zero")
    model.graph.initializer.extend([scale, zero])
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", ["picture", "scale", "zero"], ["q"]))
    model.graph.node.insert(1, helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]))
    model.graph.node[2].input[0] = "dq"


def from_the_future(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


def flat_input(model: onnx.ModelProto) -> None:
    del model.graph.input[0].type.tensor_type.shape.dim[3]


def four_channels(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (two_inputs, r"has 2 inputs \(picture, mask\)"),
        (quantized, "is quantized; adopt the float model"),
        (from_the_future, "has opset 99, onnx .* knows up to"),
        (flat_input, r"has 3 dimensions, not \(N, 3, H, W\)"),
        (four_channels, "input picture takes 4 channels, an image with alpha; networks of 3 channels"),
    ],
)
def test_file_that_is_no_saliency_network(tmp_path: Path, edit: Any, message: str) -> None:
    source = write(tmp_path / "theirs.onnx")
    model = onnx.load(source)
    edit(model)
    onnx.save(model, source)
    with pytest.raises(UserError, match=message) as caught:
        adopt(source, tmp_path / "new.onnx", PREPROCESSING)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]


def test_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist; give an \.onnx file"):
        adopt(tmp_path / "none.onnx", tmp_path / "new.onnx", PREPROCESSING)
    for content in (b"", b"\xff" * 50, b"<html>not found</html>"):
        (tmp_path / "broken.onnx").write_bytes(content)
        with pytest.raises(UserError, match=r"broken\.onnx is not an ONNX file"):
            adopt(tmp_path / "broken.onnx", tmp_path / "new.onnx", PREPROCESSING)


def test_size_it_does_not_take(tmp_path: Path) -> None:
    source = write(tmp_path / "old.onnx")
    with pytest.raises(UserError, match="takes a size of 32x48 only, not 64x64; leave --size out"):
        adopt(source, tmp_path / "new.onnx", PREPROCESSING, Choices(size=(64, 64)))
    with pytest.raises(UserError, match="takes 32x48 only; leave --dynamic-size out"):
        adopt(source, tmp_path / "new.onnx", PREPROCESSING, Choices(dynamic_size=True))


def test_changed_output_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "old.onnx")
    simplify = module.simplify

    def wrong(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
        model = simplify(model, source)
        head = next(tensor for tensor in model.graph.initializer if tensor.name == "head")
        head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) * np.float32(1.1), "head"))
        return model

    monkeypatch.setattr(module, "simplify", wrong)
    with pytest.raises(UserError, match=r"adopting .* changed its output saliency: max "):
        adopt(source, tmp_path / "new.onnx", PREPROCESSING)
    assert list(tmp_path.iterdir()) == [source]


def test_command_line(repository: Path, tmp_path: Path) -> None:
    source, output = write(tmp_path / "theirs.onnx"), tmp_path / "out" / "new.onnx"
    arguments = ["--mean", ".485", "-.1", "0", "--std", "1", ".5", "2", "--size", "32", "48", "--divide-by", "max"]
    done = subprocess.run(
        [sys.executable, "export/adopt.py", str(source), *arguments, "--output", str(output)],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(output)
    made = contract(output)
    assert (made.network, made.mean, made.std, made.divide_by) == ("theirs", (0.485, -0.1, 0), (1, 0.5, 2), "max")


@pytest.mark.parametrize(
    ("words", "mean"),
    [
        (["--mean", ".5"], (0.5, 0.5, 0.5)),
        (["--mean=-.5"], (-0.5, -0.5, -0.5)),
        (["--mean", ".1,.2,.3"], (0.1, 0.2, 0.3)),
        (["--mean", ".1,", ".2,", ".3"], (0.1, 0.2, 0.3)),
        (["--mean=.1,.2,.3"], (0.1, 0.2, 0.3)),
        (["--mean=.1", ".2", ".3"], (0.1, 0.2, 0.3)),
        (["--mean", "[0.1,0.2,0.3]"], (0.1, 0.2, 0.3)),
        (["--mean", ".1 .2 .3"], (0.1, 0.2, 0.3)),
        (["--mean", "-1e-1", "0", "+.3"], (-0.1, 0, 0.3)),
    ],
)
@pytest.mark.parametrize("size", [["--size", "32", "48"], ["--size", "32x48"], ["--size=32,48"], []])
def test_options_of_several_numbers(
    tmp_path: Path, words: list[str], mean: tuple[float, ...], size: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def record(_: Path, output: Path, fields: dict[str, Any], choices: Choices) -> Path:
        given.update(fields, size=choices.size)
        return Path(output)

    monkeypatch.setattr(module, "adopt", record)
    line = [str(tmp_path / "theirs.onnx"), *words, *size, "--std", ".5", "--color", "bgr"]
    result = CliRunner().invoke(module.app, [*line, "--output", str(tmp_path / "new.onnx")])
    assert result.exception is None, result.output
    assert given["mean"] == pytest.approx(mean)
    assert given["std"] == (0.5, 0.5, 0.5)
    assert given["size"] == (SIZE if size else None)
    assert given["colour"] == "BGR"


def test_like_a_network_of_ours_takes_the_size_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "theirs.onnx", side_output=True)
    image = tmp_path / "photo.png"
    cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8))
    module.main(source, tmp_path / "new.onnx", like="u2netp", preview=image)
    said = " ".join(capsys.readouterr().err.split())
    assert "of its outputs the first, saliency, is the map" in said
    assert "it takes 32x48 only, where 320x320 is usual" in said
    assert "its contract: u2netp takes 1 RGB image of 32x48" in said
    assert contract(tmp_path / "new.onnx").divide_by == "max"
    assert cv2.imread(str(tmp_path / "new.preview.png")).shape == (30, 120, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mean", "0", "0", "--std", "1"], "--mean 0,0 is not one number for all channels or three"),
        (["--mean", "x", "--std", "1"], "--mean x is not one number for all channels or three"),
        (["--mean", "1e999", "--std", "1"], "--mean 1e999 is not one number for all channels or three"),
        (["--mean", "0", "--std", "-1"], "--std -1.0 -1.0 -1.0 has a negative number"),
        (["--mean", "0", "--std", "255"], "here --std 1 1 1"),
        (["--mean", "0", "0", "0", "--std", "1", "0", "1"], "--std 1.0 0.0 1.0 has a zero to divide by"),
        (["--mean", "123", "117", "104", "--std", "1", "1", "1"], "give mean / 255 and std / 255"),
        (["--like", "u2netp", "--colour", "RBG"], "--colour RBG is unknown; choose RGB or BGR"),
        (["--like", "u2nett"], "no network is called 'u2nett'"),
        (["--like", "u2netp", "--size", "64"], "takes a size of 32x48 only, not 64x64; leave --size out"),
    ],
)
def test_wrong_options(tmp_path: Path, arguments: list[str], message: str) -> None:
    source = write(tmp_path / "theirs.onnx")
    result = CliRunner().invoke(module.app, [str(source), "--output", str(tmp_path / "new.onnx"), *arguments])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert list(tmp_path.iterdir()) == [source]
