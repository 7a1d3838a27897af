"""Exported checkpoints: the graph's form, its agreement with PyTorch, and no other file written."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from research_data import ResearchFile
from typer.testing import CliRunner

from sodeploy.artifacts import sha256, write_manifest
from sodeploy.errors import UserError
from sodeploy.export import to_onnx, tracing
from sodeploy.export.parity import scene
from sodeploy.export.to_onnx import export
from sodeploy.runtime.contract import PRECISION_KEY, contract_of
from sodeploy.training.models import build, entry

SIZE = (64, 96)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """U²-Netp whose map has structure: batch statistics of an image, and logits that reach both sides of zero."""
    torch.manual_seed(0)
    network = build("u2netp")
    with torch.no_grad():
        network(torch.from_numpy(scene((4, 3, *SIZE))))
        network.outconv.weight *= 20  # type: ignore[union-attr, operator]
    return network.eval()


@pytest.fixture(scope="module")
def checkpoint(network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "net.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export("u2netp", checkpoint, tmp_path_factory.mktemp("onnx") / "net.onnx", size=SIZE)


def run(path: Path, batch: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (saliency,) = session.run(None, {"image": batch})
    return np.asarray(saliency)


def test_graph_is_clean(exported: Path) -> None:
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    operators = {node.op_type for node in model.graph.node}
    assert operators == {"Conv", "Relu", "MaxPool", "Concat", "Resize", "Add", "Sigmoid"}
    assert len(model.graph.node) == 365
    assert [tensor.name for tensor in model.graph.input] == ["image"]
    assert [tensor.name for tensor in model.graph.output] == ["saliency"]
    assert [entry.version for entry in model.opset_import] == [to_onnx.OPSET]
    assert model.ir_version <= 10


def test_names_are_those_of_the_modules(exported: Path) -> None:
    model = onnx.load(exported)
    names = [node.name for node in model.graph.node]
    assert names[0] == "/stage1/rebnconvin/conv_s1/Conv"
    assert "/outconv/Conv" in names
    assert len(set(names)) == len(names)
    constants = {tensor.name for tensor in model.graph.initializer}
    assert {"/stage1/rebnconvin/conv_s1/Conv.weight", "outconv.weight"} <= constants
    assert not [name for name in constants if "::" in name or name.startswith("_v_")]


def test_metadata_carries_the_contract_at_the_exported_size(exported: Path) -> None:
    metadata = {entry.key: entry.value for entry in onnx.load(exported).metadata_props}
    contract = contract_of(metadata, exported)
    assert contract == entry("u2netp").contract.model_copy(update={"height": 64, "width": 96})
    assert metadata.keys() == {"sodeploy.contract", PRECISION_KEY}
    assert metadata[PRECISION_KEY] == "fp32"


def test_map_is_pytorch_s(exported: Path, network: torch.nn.Module) -> None:
    batch = scene((1, 3, *SIZE))[..., ::-1].copy()
    with torch.no_grad():
        wanted = network.predict(torch.from_numpy(batch)).numpy()  # type: ignore[operator]
    assert np.ptp(wanted) > 0.1  # else the comparison would say little
    np.testing.assert_allclose(run(exported, batch), wanted, atol=1e-5)


def test_manifest(exported: Path, checkpoint: Path) -> None:
    manifest = json.loads(Path(f"{exported}.json").read_text())
    assert manifest["inputs"]["checkpoint"]["sha256"] == sha256(checkpoint)
    assert manifest["sha256"] == sha256(exported)
    assert manifest["parity"]["max_abs"] < 1e-5
    assert manifest["parity"]["shapes"] == [[1, 3, 64, 96]] * 2
    assert manifest["nodes"] == 365


def test_same_input_same_bytes(exported: Path, checkpoint: Path, tmp_path: Path) -> None:
    again = export("u2netp", checkpoint, tmp_path / "other name.onnx", size=SIZE)
    assert again.read_bytes() == exported.read_bytes()


def test_dynamic_batch_needs_no_shape_arithmetic(checkpoint: Path, tmp_path: Path) -> None:
    path = export("u2netp", checkpoint, tmp_path / "net.onnx", size=SIZE, batch=None)
    model = onnx.load(path)
    assert len(model.graph.node) == 365
    assert contract_of({entry.key: entry.value for entry in model.metadata_props}, path).batch is None
    batch = scene((5, 3, *SIZE))
    together = run(path, batch)
    assert together.shape == (5, 1, *SIZE)
    np.testing.assert_allclose(together[3:4], run(path, batch[3:4]), atol=1e-5)


def test_dynamic_batch_keeps_the_arithmetic_of_sizes_that_no_scale_gives(checkpoint: Path, tmp_path: Path) -> None:
    path = export("u2netp", checkpoint, tmp_path / "net.onnx", size=(70, 98), batch=None)  # 35 to 70, 18 to 35
    resizes = [node for node in onnx.load(path).graph.node if node.op_type == "Resize"]
    assert {len(node.input) for node in resizes} == {3, 4}  # scales; computed sizes
    assert run(path, scene((2, 3, 70, 98))).shape == (2, 1, 70, 98)


@pytest.mark.parametrize("opset", [18, 21])
def test_dynamic_size_at_other_opsets(checkpoint: Path, network: torch.nn.Module, tmp_path: Path, opset: int) -> None:
    path = export("u2netp", checkpoint, tmp_path / "t.onnx", size=SIZE, batch=None, dynamic_size=True, opset=opset)
    model = onnx.load(path)
    assert [entry.version for entry in model.opset_import] == [opset]
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 3, "height", "width"]
    batch = scene((2, 3, 75, 131))
    with torch.no_grad():
        wanted = network.predict(torch.from_numpy(batch)).numpy()  # type: ignore[operator]
    np.testing.assert_allclose(run(path, batch), wanted, atol=1e-5)
    parity = json.loads(Path(f"{path}.json").read_text())["parity"]
    assert [1, 3, 69, 99] in parity["shapes"]


def test_official_checkpoint_gives_its_map(research_file: ResearchFile, tmp_path: Path) -> None:
    """Published U²-Netp weights: our graph and the graph that somebody else exported give the same map."""
    weights = research_file("weights/u2netp-bnfolded-from-fp16.pth")
    path = export("u2netp", weights, tmp_path / "u2netp.onnx")
    assert contract_of({e.key: e.value for e in onnx.load(path).metadata_props}, path) == entry("u2netp").contract
    batch = scene((1, 3, 320, 320))
    theirs = onnxruntime.InferenceSession(research_file("weights/u2netp-fp32-from-fp16.onnx"))
    np.testing.assert_allclose(run(path, batch), theirs.run(["1959"], {"input.1": batch})[0], atol=1e-4)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "u2nett"}, "no network is called 'u2nett'; known: .*u2netp"),
        ({"model": "isnet_gt_encoder"}, "sees masks, not images"),
        ({"model": "csnet_x1"}, "does not fit csnet_x1: .* it is a checkpoint of u2netp"),
        ({"checkpoint": "none.pth"}, "none.pth does not exist; give the .pth file"),
        ({"checkpoint": "text.pth"}, "text.pth is no PyTorch checkpoint: it is text"),
        ({"size": (20, 64)}, "nearest such size is 32x64"),
        ({"opset": 11}, "opset 11 is not one of 17 to 21"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    checkpoint: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    (tmp_path / "text.pth").write_text("these are no weights")
    if "checkpoint" in arguments:
        arguments = arguments | {"checkpoint": tmp_path / arguments["checkpoint"]}
    before = files(tmp_path)
    given = {"model": "u2netp", "checkpoint": checkpoint, "size": SIZE} | arguments
    with pytest.raises(UserError, match=message) as caught:
        export(output=tmp_path / "net.onnx", **given)
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == before


def test_weights_that_give_nan(network: torch.nn.Module, tmp_path: Path) -> None:
    weights = network.state_dict() | {"outconv.bias": torch.tensor([float("nan")])}
    torch.save(weights, tmp_path / "nan.pth")
    with pytest.raises(UserError, match=r"outconv\.bias has values that are NaN or infinite"):
        export("u2netp", tmp_path / "nan.pth", tmp_path / "net.onnx", size=SIZE)
    assert files(tmp_path) == ["nan.pth"]


def test_graph_that_differs_is_not_written(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simplify = to_onnx.simplify

    def wrong(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
        model = simplify(model, source)
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "coordinate_transformation_mode":
                    attribute.s = b"align_corners"  # the mistake that old exporters made
        return model

    monkeypatch.setattr(to_onnx, "simplify", wrong)
    output = tmp_path / "net.onnx"
    output.write_bytes(b"old")
    with pytest.raises(UserError, match=r"the ONNX of u2netp differs from PyTorch: max .* at most 0\.0"):
        export("u2netp", checkpoint, output, size=SIZE)
    assert output.read_bytes() == b"old"
    assert files(tmp_path) == ["net.onnx"]


@pytest.mark.parametrize("moment", ["compare", "write_bytes"])
def test_interrupt_or_full_disk_leaves_the_old_file(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    fault = KeyboardInterrupt() if moment == "compare" else OSError(errno.ENOSPC, "No space left on device")

    def fail(*_: Any) -> None:
        raise fault

    monkeypatch.setattr(tracing if moment == "compare" else Path, moment, fail)
    output = tmp_path / "net.onnx"
    output.write_text("old")
    with pytest.raises(type(fault)):
        export("u2netp", checkpoint, output, size=SIZE)
    assert output.read_text() == "old"
    assert files(tmp_path) == ["net.onnx"]


def test_the_image_is_prepared_as_the_options_say(checkpoint: Path, tmp_path: Path) -> None:
    """The preparation of VACC's IS-Net row."""
    common = ["--model", "u2netp", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "net.onnx")]
    options = ["--size", "64", "--interpolation", "area", "--mean", ".5", ".5", ".5", "--std", "1", "1", "1"]
    result = CliRunner().invoke(to_onnx.app, [*common, *options, "--divide-by", "255", "--no-stretch"])
    assert result.exit_code == 0, result.output
    contract = contract_of({entry.key: entry.value for entry in onnx.load(tmp_path / "net.onnx").metadata_props}, "net")
    assert (contract.interpolation, contract.mean, contract.std) == ("area", (0.5,) * 3, (1.0,) * 3)
    assert (contract.divide_by, contract.stretch, contract.height, contract.width) == ("255", False, 64, 64)


@pytest.mark.parametrize("replaced", [False, True])
def test_the_size_of_training(
    network: torch.nn.Module, tmp_path: Path, replaced: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(network.state_dict(), tmp_path / "best.pth")
    trained = entry("u2netp").contract.model_copy(update={"height": 96, "width": 64})
    write_manifest(tmp_path / "best.pth", {}, network="u2netp", contract=trained.model_dump(mode="json"))
    if replaced:  # by weights that the manifest does not describe
        torch.save({"state_dict": network.state_dict()}, tmp_path / "best.pth")
    published = entry("u2netp").contract
    made = onnx.load(export("u2netp", tmp_path / "best.pth", tmp_path / "net.onnx"))
    shape = [dim.dim_value for dim in made.graph.input[0].type.tensor_type.shape.dim]
    expected = (published.height, published.width) if replaced else (96, 64)
    assert tuple(shape[2:]) == expected
    assert ("was trained at 96x64" in capsys.readouterr().err) is not replaced


def test_command_line(repository: Path, checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    arguments = ["--model", "u2netp", "--checkpoint", checkpoint, "--output", tmp_path / "net.onnx"]
    done = subprocess.run(
        [sys.executable, "export/to_onnx.py", *map(str, arguments), "--size", "64", "96"],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "net.onnx")
    assert "max " in done.stderr
    assert (tmp_path / "net.onnx").read_bytes() == exported.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "64x"], "size '64x' is not one or two positive numbers"),
        (["--size", "0"], "size '0' is not one or two positive numbers"),
        (["--std", "1", "0", "1"], "--std 1.0 0.0 1.0 has a zero to divide by"),
        (["--interpolation", "cubic"], "--interpolation cubic is unknown; choose linear or area"),
        (["--batch", "2", "--dynamic-batch"], "--batch 2 and --dynamic-batch contradict each other"),
    ],
)
def test_wrong_options(checkpoint: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    common = ["--model", "u2netp", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "net.onnx")]
    result = CliRunner().invoke(to_onnx.app, common + arguments)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert not files(tmp_path)


def test_flat_map_is_warned_of(network: torch.nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = network.state_dict()
    weights["outconv.weight"] = torch.zeros_like(weights["outconv.weight"])
    torch.save(weights, tmp_path / "flat.pth")
    export("u2netp", tmp_path / "flat.pth", tmp_path / "net.onnx", size=SIZE)
    assert "are these trained weights?" in " ".join(capsys.readouterr().err.split())


def test_a_checkpoint_that_does_not_fit_is_refused_before_pytorch_is_imported(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(3)}, tmp_path / "other.pth")
    line = (
        "import sys; from sodeploy.export.to_onnx import export; from sodeploy.errors import UserError\n"
        "try: export('u2net_tiny', sys.argv[1], 'none.onnx')\n"
        "except UserError as error: print('torch' in sys.modules, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", line, str(tmp_path / "other.pth")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("False ")
    assert "does not fit u2net_tiny: it lacks" in done.stdout
