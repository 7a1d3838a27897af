"""The maps of data sets: where they lie, what is skipped, and that two models never mix."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer

from sodeploy import command_line
from sodeploy.calib_data.images import read_image
from sodeploy.errors import UserError
from sodeploy.runtime.evaluate import evaluate
from sodeploy.runtime.maps import main, write_maps
from sodeploy.runtime.processing import predict
from sodeploy.runtime.session import open_session

pytest.importorskip("onnxruntime")

SaveModel = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two data sets under one root; the second lies as ECSSD does."""
    folder = tmp_path / "data"
    random = np.random.default_rng(0)
    for name, masks in (("DUTS-TE", "DUTS-TE-Mask"), ("ECSSD", "ground_truth_mask")):
        images = "DUTS-TE-Image" if name == "DUTS-TE" else "images"
        for index in range(3):
            for place in (images, masks):
                (folder / name / place).mkdir(parents=True, exist_ok=True)
            picture = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / name / images / f"{index}.jpg"), picture)
            cv2.imwrite(str(folder / name / masks / f"{index}.png"), (picture[..., 0] > 200) * np.uint8(255))
    return folder


def test_maps_lie_where_evaluate_finds_them(save_model: SaveModel, root: Path, tmp_path: Path) -> None:
    model = save_model()
    outcomes = write_maps(model, "t,e", tmp_path / "maps", root=root)
    assert {name: outcome.written for name, outcome in outcomes.items()} == {"DUTS-TE": 3, "ECSSD": 3}
    with open_session(model) as session:
        expected = predict(read_image(root / "ECSSD" / "images" / "1.jpg"), session.contract, session.infer)
    stored = cv2.imread(str(tmp_path / "maps" / "ECSSD" / "1.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(stored, expected)
    pytest.importorskip("py_sod_metrics")
    scored = evaluate([tmp_path / "maps"], ["t", "e"], workers=1, root=root)
    assert [(one.dataset, len(one.scores)) for one in scored] == [("DUTS-TE", 3), ("ECSSD", 3)]


def test_what_stands_there_is_skipped(save_model: SaveModel, root: Path, tmp_path: Path) -> None:
    model = save_model()
    output = tmp_path / "maps"
    write_maps(model, "ECSSD", output, root=root, limit=2)
    before = (output / "ECSSD" / "0.png").stat().st_mtime_ns
    again = write_maps(model, "ECSSD", output, root=root)["ECSSD"]
    assert (again.written, again.skipped) == (1, 2)
    assert (output / "ECSSD" / "0.png").stat().st_mtime_ns == before
    assert write_maps(model, "ECSSD", output, root=root, overwrite=True)["ECSSD"].written == 3


def test_the_maps_of_two_models_never_mix(save_model: SaveModel, root: Path, tmp_path: Path) -> None:
    output = tmp_path / "maps"
    write_maps(save_model("one.onnx"), "ECSSD", output, root=root)
    other = save_model("other.onnx", weights=(1, 0, 0))
    with pytest.raises(UserError, match=r"holds maps of .*one\.onnx, which is another model"):
        write_maps(other, "ECSSD", output, root=root)
    write_maps(other, "ECSSD", output, root=root, overwrite=True)
    write_maps(other, "DUTS-TE", output, root=root)
    sets = json.loads((output / "maps.json").read_text())["sets"]
    assert {name: one["model"] for name, one in sets.items()} == {"ECSSD": str(other), "DUTS-TE": str(other)}


def test_maps_that_were_half_replaced_are_refused(save_model: SaveModel, root: Path, tmp_path: Path) -> None:
    write_maps(save_model("one.onnx"), "ECSSD", tmp_path, root=root)
    (root / "ECSSD" / "images" / "2.jpg").write_bytes(b"no image")
    other = save_model("other.onnx", weights=(1, 0, 0))
    assert len(write_maps(other, "ECSSD", tmp_path, root=root, overwrite=True)["ECSSD"].failed) == 1
    with pytest.raises(UserError, match="ECSSD holds maps of two models, because replacing them did not end"):
        write_maps(other, "ECSSD", tmp_path, root=root)


def test_the_command_ends_with_an_error_where_maps_are_missing(
    save_model: SaveModel, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "ECSSD" / "images" / "1.jpg").write_bytes(b"no image")
    command = typer.main.get_command(command_line.application_of(main))
    words = [str(save_model()), "--root", str(root), "--output", str(tmp_path / "maps")]
    with pytest.raises(UserError, match=r"1 images have no map: .*1\.jpg is broken"):
        command([*words, "--sal_mode", "e", "--data", "DUTS-TE"], standalone_mode=False)
    told = capsys.readouterr().out.splitlines()
    assert [line.split(" maps in ")[0] for line in told] == ["ECSSD: 2", "DUTS-TE: 3"]
    with pytest.raises(UserError, match="absent does not exist; give an"):
        write_maps("absent", "ECSSD", tmp_path / "x", root=root)
    assert not (tmp_path / "x").exists()


def test_a_checkpoint_needs_no_export(root: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from sodeploy.training.models import build

    torch.manual_seed(0)
    torch.save(build("u2net_tiny").state_dict(), tmp_path / "tiny.pth")
    outcomes = write_maps(tmp_path / "tiny.pth", "ECSSD", tmp_path / "maps", root=root, network="u2net_tiny", limit=1)
    assert outcomes["ECSSD"].written == 1
    assert cv2.imread(str(tmp_path / "maps" / "ECSSD" / "0.png"), cv2.IMREAD_UNCHANGED).shape == (20, 30)
