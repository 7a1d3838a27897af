"""verify: what is as recorded, what has changed, what is missing, through all that a file was made from."""

import json
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from research_data import ResearchFile

from sodeploy import artifacts, command_line
from sodeploy.calib_data.subset import write_subset
from sodeploy.errors import UserError
from sodeploy.verify import cksum, main, verify


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """recipe.yaml -> best.pth -> net.onnx -> net.int8.onnx, each with its manifest; the folder."""
    made: Path | None = None
    for name in ("recipe.yaml", "best.pth", "net.onnx", "net.int8.onnx"):
        path = tmp_path / name
        path.write_text(f"content of {name}")
        if made is not None:
            artifacts.write_manifest(path, {"from": made})
        made = path
    return tmp_path


def lines(*files: Path) -> list[str]:
    return [f"{one.verdict} {one.file.name}" for one in verify(files)]


def test_everything_that_a_file_was_made_from_is_checked(chain: Path) -> None:
    assert lines(chain / "net.int8.onnx") == ["ok net.int8.onnx", "ok net.onnx", "ok best.pth", "ok recipe.yaml"]
    assert lines(chain / "net.onnx.json") == ["ok net.onnx", "ok best.pth", "ok recipe.yaml"]
    assert sorted(lines(chain)) == ["ok best.pth", "ok net.int8.onnx", "ok net.onnx", "ok recipe.yaml"]


@pytest.mark.parametrize("name", ["recipe.yaml", "best.pth", "net.onnx", "net.int8.onnx"])
def test_what_has_changed_is_named(chain: Path, name: str) -> None:
    (chain / name).write_text("something else")
    found = {one.file.name: one for one in verify([chain / "net.int8.onnx"])}
    assert {key for key, one in found.items() if one.verdict != "ok"} == {name}
    assert artifacts.sha256(chain / name) in found[name].why
    (chain / name).unlink()
    (one,) = [one for one in verify([chain / "net.int8.onnx"]) if one.verdict != "ok"]
    assert (one.file.name, one.verdict) == (name, "missing")


def test_an_input_that_was_made_anew_differs(chain: Path) -> None:
    (chain / "net.onnx").write_text("another network")
    artifacts.write_manifest(chain / "net.onnx", {"from": chain / "best.pth"})
    (bad,) = [one for one in verify([chain / "net.int8.onnx"]) if one.verdict != "ok"]
    assert (bad.file.name, bad.verdict) == ("net.onnx", "differs")
    assert "when it was read for another artifact" in bad.why


def test_a_folder_that_was_moved_is_found_beside_the_artifact(
    chain: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    moved = tmp_path_factory.mktemp("elsewhere") / "out"
    shutil.copytree(chain, moved)
    shutil.rmtree(chain)
    assert {line.split()[0] for line in lines(moved / "net.int8.onnx")} == {"ok"}


def test_a_relative_input_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    artifacts.write_text("runs/best.pth", "weights")
    artifacts.write_text("out/deep/net.onnx", "network")
    artifacts.write_manifest("out/deep/net.onnx", {"checkpoint": "runs/best.pth"})
    monkeypatch.chdir("/")
    assert lines(tmp_path / "out" / "deep" / "net.onnx") == ["ok net.onnx", "ok best.pth"]


def test_a_file_of_which_nothing_is_known(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("x")
    (one,) = verify([tmp_path / "a.onnx"])
    assert (one.verdict, one.why) == ("unknown", "it has no manifest a.onnx.json and is no published file")
    with pytest.raises(UserError, match="has no manifests"):
        verify([tmp_path])
    (tmp_path / "csnet-L-x1.pth.tar").write_text("x")
    (one,) = verify([tmp_path / "csnet-L-x1.pth.tar"])
    assert one.verdict == "differs"
    assert "as published; if it is to be the file of csnet_x1, fetch it again" in one.why


def test_sums_of_other_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [
        {"file": "a.onnx", "network": "u2net", "md5": "9dd4e461268c8034f5c8564e155c67a6"},  # of "x"
        {"file": "b-2d711642.pth", "network": "the backbone", "sha256": "2d711642"},
    ]
    (tmp_path / "list.json").write_text(json.dumps(listed))
    monkeypatch.setattr("sodeploy.verify.PUBLISHED", tmp_path / "list.json")
    for name in ("a.onnx", "renamed.onnx", "b-2d711642.pth", "other.bin"):
        (tmp_path / name).write_text("x")
    found = verify([tmp_path / name for name in ("a.onnx", "renamed.onnx", "b-2d711642.pth")])
    assert [one.verdict for one in found] == ["ok"] * 3
    assert found[1].why == "the published file a.onnx of u2net, by its md5"
    listed.pop(0)
    (tmp_path / "list.json").write_text(json.dumps(listed))
    (one,) = verify([tmp_path / "other.bin"])
    assert one.verdict == "unknown"  # the beginning of a sum says nothing of a file of another name
    (tmp_path / "b-2d711642.pth").write_text("y")
    assert verify([tmp_path / "b-2d711642.pth"])[0].verdict == "differs"


def test_published_files(research_file: ResearchFile) -> None:
    for name in ("csnet-L-x1", "csnet-L-x2"):
        (one,) = verify([research_file(f"weights/{name}.pth.tar")])
        assert one.verdict == "ok"
        assert "csnet_x" in one.why


def test_weights_of_our_networks(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from sodeploy.training.models import build

    torch.save({"state_dict": build("u2net_tiny").state_dict()}, tmp_path / "a.pth")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "b.pth")
    (tmp_path / "c.pth").write_bytes(b"PK\3\4 cut short")
    ours, other, broken = verify([tmp_path / name for name in ("a.pth", "b.pth", "c.pth")])
    assert (ours.verdict, other.verdict, broken.verdict) == ("ok", "unknown", "differs")
    assert "names and shapes of u2net_tiny" in ours.why


def test_the_images_of_a_subset(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for index in range(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), random.integers(0, 256, (20, 20, 3), dtype=np.uint8))
    chosen = write_subset(tmp_path / "images", 3, tmp_path / "calib.txt")
    assert lines(tmp_path / "calib.txt") == ["ok calib.txt"]
    cv2.imwrite(str(chosen[1].image_path), np.zeros((20, 20, 3), np.uint8))
    assert lines(tmp_path / "calib.txt") == ["ok calib.txt", f"differs {chosen[1].image_path.name}"]
    chosen[0].image_path.unlink()
    assert lines(tmp_path / "calib.txt") == ["differs calib.txt"]


@pytest.mark.parametrize(("text", "value"), [(b"", 4294967295), (b"123456789", 930766865), (bytes(70000), None)])
def test_the_sum_of_posix(tmp_path: Path, text: bytes, value: int | None) -> None:
    (tmp_path / "a").write_bytes(text)
    if value is not None:
        assert cksum(tmp_path / "a") == value
    if shutil.which("cksum"):
        printed = subprocess.run(["cksum", tmp_path / "a"], capture_output=True, text=True, check=True).stdout
        assert cksum(tmp_path / "a") == int(printed.split()[0])


def test_the_command(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = typer.main.get_command(command_line.application_of(main))
    command([str(chain / "best.pth")], standalone_mode=False)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"ok      {chain / 'best.pth'}: as in its manifest, made from 1 file"
    (chain / "recipe.yaml").unlink()
    with pytest.raises(UserError, match="1 of 2 files are not as they should be"):
        command([str(chain / "best.pth")], standalone_mode=False)
    assert f"missing {chain / 'recipe.yaml'}: there is no such file" in capsys.readouterr().out
    digest = artifacts.sha256(chain / "best.pth")
    command([str(chain / "best.pth"), "--sha256", digest.upper()], standalone_mode=False)
    command([str(chain / "best.pth"), "--cksum", str(cksum(chain / "best.pth"))], standalone_mode=False)
    for words, complaint in (
        (["--cksum", "1"], "1 of 1"),
        (["--sha256", "12"], "no sha256"),
        (["--sha256", "0" * 64], "1 of 1"),
    ):
        with pytest.raises(UserError, match=complaint):
            command([str(chain / "best.pth"), *words], standalone_mode=False)
