"""What doctor says of a file is so, and the command that it proposes adopts the file."""

import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from sodeploy.calib_data import open_dataset
from sodeploy.errors import UserError
from sodeploy.export import adopt, doctor
from sodeploy.export.doctor import diagnose
from sodeploy.runtime.contract import Contract, contract_of

SIZE = 48


def write(
    folder: Path,
    kind: int = TensorProto.FLOAT,
    side_output: bool = False,
    sigmoid: bool = True,
    scale: float = 1.0,
    shape: tuple[int | str, ...] = (1, 3, SIZE, SIZE),
) -> Path:
    """A network that finds what differs in colour from the border: a blur less a larger blur, in each channel."""
    blur = np.zeros((3, 3, 5, 5), np.float32)
    blur[range(3), range(3)] = 1 / 25
    values = {
        "blur": blur, "scale": np.float32(scale), "back": np.float32(1 / np.sqrt(scale)),
        "head": np.full((1, 3, 1, 1), 4.0, np.float32),
    }  # fmt: skip
    output = "saliency" if sigmoid else "logit"
    nodes = [
        helper.make_node("Cast", ["picture"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["float", "blur"], ["local"], pads=[2] * 4),
        helper.make_node("GlobalAveragePool", ["local"], ["ground"]),
        helper.make_node("Sub", ["local", "ground"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["contrast"]),
        helper.make_node("Mul", ["contrast", "scale"], ["far"]),
        helper.make_node("Sqrt", ["far"], ["root"]),  # keeps the two factors from being folded into one
        helper.make_node("Mul", ["root", "back"], ["near"]),
        helper.make_node("Conv", ["near", "head"], ["raw"]),
        helper.make_node("ReduceMean", ["raw"], ["middle"], axes=[1, 2, 3]),
        helper.make_node("Sub", ["raw", "middle"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["saliency"]),
    ]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, (1, 1, *shape[2:]))]
    if side_output:
        outputs.insert(0, helper.make_tensor_value_info("local", TensorProto.FLOAT, (1, 3, *shape[2:])))
    constants = [numpy_helper.from_array(value, name) for name, value in values.items()]
    picture = helper.make_tensor_value_info("picture", kind, shape)
    graph = helper.make_graph(nodes if sigmoid else nodes[:-1], "theirs", [picture], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    model.producer_name = "somebody"
    onnx.save(model, folder / "theirs.onnx")
    return folder / "theirs.onnx"


def follow(found: doctor.Diagnosis, folder: Path) -> Contract:
    """Run the proposed command, with its output in `folder`."""
    words = shlex.split(found.command)
    words = words[words.index(str(folder / "theirs.onnx")) :]
    target = folder / "adopted.onnx"
    words[words.index("--output") + 1] = str(target)
    result = CliRunner().invoke(adopt.app, words)
    assert result.exception is None, result.exception
    return contract_of({entry.key: entry.value for entry in onnx.load(target).metadata_props}, target)


@pytest.mark.parametrize(("side_output", "sigmoid"), [(False, True), (True, False)])
def test_what_it_says(tmp_path: Path, side_output: bool, sigmoid: bool) -> None:
    path = write(tmp_path, side_output=side_output, sigmoid=sigmoid)
    found = diagnose(path, open_dataset("synthetic:eval:2:64"))
    text = "\n".join(found.lines)
    assert "opset 13, IR 7, made by somebody" in text
    assert f"picture 1x3x{SIZE}x{SIZE} float" in text
    assert ("saliency: a probability" if sigmoid else "logit: a logit") in text
    assert text.count("maps and masks correlate by") == len(doctor.NORMALIZATIONS)
    assert ("--output-tensor logit --logit" in found.command) == side_output
    made = follow(found, tmp_path)
    assert made.height == SIZE
    assert made.output == ("probability" if sigmoid else "logit")


def test_free_size_and_integers(tmp_path: Path) -> None:
    path = write(tmp_path, kind=TensorProto.UINT8, shape=("n", 3, "h", "w"))
    found = diagnose(path, open_dataset("synthetic:eval:1:64"), size=(64, 32))
    assert "takes pixels from 0 to 255" in "\n".join(found.lines)
    made = follow(found, tmp_path)
    assert (made.height, made.width, made.mean) == (64, 32, (0, 0, 0))


def test_values_that_fp16_does_not_hold(tmp_path: Path) -> None:
    dataset = open_dataset("synthetic:eval:1:64")
    assert "fp16:          holds" in "\n".join(diagnose(write(tmp_path), dataset).lines)
    assert "overflow:      beyond 65504" in "\n".join(diagnose(write(tmp_path, scale=1e7), dataset).lines)
    assert "underflow:     results all below" in "\n".join(diagnose(write(tmp_path, scale=1e-7), dataset).lines)


def test_broken_files(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07" * 9)
    with pytest.raises(UserError, match=r"broken\.onnx is not an ONNX file") as caught:
        diagnose(tmp_path / "broken.onnx", open_dataset("synthetic:eval:1:64"))
    assert "\n" not in str(caught.value)
    path = write(tmp_path)
    model = onnx.load(path)
    model.graph.node[1].attribute[0].ints.append(1)
    onnx.save(model, path)
    with pytest.raises(UserError, match=r"theirs\.onnx"):
        diagnose(path, open_dataset("synthetic:eval:1:64"))


def test_operators_that_engines_lack() -> None:
    """The table is what the parser itself answers."""
    trt = pytest.importorskip("tensorrt_rtx")
    from sodeploy.runtime.engine_operators import REMEDIES

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    kinds = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    assert {kind for kind in kinds if not parser.supports_operator(kind)} == set(REMEDIES)
