"""An ONNX file that does not keep its contract, its shapes or its own metadata ends in one line, in every stage."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sodeploy.errors import UserError
from sodeploy.quant.graph import load_network
from sodeploy.runtime.contract import CALIBRATION_KEY, METADATA_KEY, Contract, calibration_of, embed, parse_contract
from sodeploy.runtime.onnx_file import read_model
from sodeploy.runtime.onnx_session import start_session
from sodeploy.runtime.session import open_session

SIZE = 32
CONTRACT = Contract(network="tiny", height=SIZE, width=SIZE, mean=(0, 0, 0), std=(1, 1, 1))


def tiny() -> onnx.ModelProto:
    weight = np.random.default_rng(0).normal(0, 0.3, (1, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["logit"], name="conv", pads=[1] * 4),
        helper.make_node("Sigmoid", ["logit"], ["saliency"], name="sigmoid"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, SIZE, SIZE))],
        [helper.make_tensor_value_info("saliency", TensorProto.FLOAT, (1, 1, SIZE, SIZE))],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    embed(model, CONTRACT)
    return model


def five_pads(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute[0].ints.append(1)


def five_dimensions(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim.add(dim_value=1)


def other_size(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[1] = 1


def second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, (1,)))


def other_height(model: onnx.ModelProto) -> None:
    embed(model, CONTRACT.model_copy(update={"height": 64}))


def other_output(model: onnx.ModelProto) -> None:
    embed(model, CONTRACT.model_copy(update={"output_name": "map"}))


def enormous(model: onnx.ModelProto) -> None:
    fields = json.loads(CONTRACT.to_json()) | {"height": 2**20, "width": 2**20}
    next(entry for entry in model.metadata_props if entry.key == METADATA_KEY).value = json.dumps(fields)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (five_pads, r"not a valid ONNX model: .*pads has incorrect size"),
        (five_dimensions, r"not a valid ONNX model: .*differ in rank"),
        (other_size, r"constant w has the shape \[1, 1, 3, 3\], 36 bytes, but holds 108"),
        (second_input, "the graph has image, extra"),
        (other_height, "contract field height is 64, but input image of the graph takes 32"),
        (other_output, "the contract names output map, the graph has saliency"),
        (enormous, r"an input of 1048576 x 1048576 takes 12288\.0 GiB, more than 4 GiB"),
    ],
)
def test_one_line(tmp_path: Path, edit: Callable[[onnx.ModelProto], None], message: str) -> None:
    model = tiny()
    edit(model)
    path = tmp_path / "tiny.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=message) as caught:
        load_network(path)
    assert "\n" not in str(caught.value)
    assert "tiny.onnx" in str(caught.value)
    if edit is not five_dimensions:  # onnxruntime runs that one as it is meant
        with pytest.raises(UserError, match=r"tiny\.onnx"):
            open_session(path)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    model = tiny()
    model.graph.node[0].name = "QQQQQ"
    path = tmp_path / "tiny.onnx"
    path.write_bytes(model.SerializeToString().replace(b"QQQQQ", b"\xff\xfeAAA"))
    with pytest.raises(UserError, match="a name in it is not UTF-8 text"):
        load_network(path)
    model.metadata_props.add(key="author", value="QQQQQ")
    path.write_bytes(model.SerializeToString().replace(b"QQQQQ", b"\xff\xfeAAA"))
    with pytest.raises(UserError, match="its metadata is not UTF-8 text"):
        open_session(path)


@pytest.mark.parametrize("text", ["x", "[]", '{"digests_sha256": null}', '{"digests_sha256": [[1]]}', '{"method": 3}'])
def test_nonsense_in_our_metadata(text: str) -> None:
    with pytest.raises(UserError, match=r"tiny\.onnx: metadata sodeploy\.calibration") as caught:
        calibration_of({CALIBRATION_KEY: text}, "tiny.onnx")
    assert "\n" not in str(caught.value)


def test_metadata_that_is_not_there() -> None:
    assert calibration_of({}, "tiny.onnx") == {}
    assert calibration_of({CALIBRATION_KEY: "null"}, "tiny.onnx") == {}


@pytest.mark.parametrize("mean", ["[NaN, 0, 0]", "[Infinity, 0, 0]"])
def test_means_that_are_no_numbers(mean: str) -> None:
    text = CONTRACT.to_json().replace("[0.0,0.0,0.0]", mean)
    assert mean in text
    with pytest.raises(UserError, match=r"tiny\.onnx: contract field mean"):
        parse_contract(text, "tiny.onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"it is empty \(0 bytes\); copy or download it again"),
        (b"\xef\xbb\xbf \n<HTML><head>", r"it is a web page \(HTML\); download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "it is a pointer of Git LFS"),
        (b'{"error": "Entry not found", "code": 404}', "it is text"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "it is XML text"),
        (b"\x1f\x8b\x08\x00abc", "it is a gzip archive; unpack it"),
        (b"PK\x03\x04\x14\x00", "such as a checkpoint; export it: sodeploy to_onnx"),
        (b"\x89PNG\r\n\x1a\n", "it is an image; give an .onnx file"),
    ],
)
def test_files_that_are_something_else_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "theirs.onnx"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_model(file, "give an .onnx file")
    with pytest.raises(UserError, match=message):
        start_session(file)
