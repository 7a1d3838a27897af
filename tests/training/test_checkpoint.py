"""Checkpoints in every form that people have load, and unusable ones are refused."""

import contextlib
import errno
import gzip
import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from research_data import ResearchFile
from safetensors.torch import save_file

from sodeploy import artifacts
from sodeploy.errors import UserError
from sodeploy.training.checkpoint import load_checkpoint, read_weights, write_checkpoint
from sodeploy.training.checkpoint_file import refuse_misfit
from sodeploy.training.models import build
from sodeploy.training.models.network import SaliencyNetwork
from sodeploy.training.signatures import FILE, SHAPES, computed, deployed, hashed


@pytest.fixture(scope="module")
def trained() -> SaliencyNetwork:
    torch.manual_seed(1)
    return build("u2net_tiny")


def loads_as(path: Path, trained: SaliencyNetwork) -> bool:
    network = build("u2net_tiny")
    load_checkpoint(path, network)
    expected = trained.state_dict()
    return all(torch.equal(tensor, expected[key]) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"module." + key: tensor for key, tensor in state.items()},
        lambda state: {"_orig_mod.module." + key: tensor for key, tensor in state.items()},
        lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
        lambda state: {"model": {"module." + key: tensor for key, tensor in state.items()}},
        lambda state: {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")},
        lambda state: {"epoch": 3, "model": None, "ema": state},
        lambda state: {"state_dict": state, "state_dict_ema": {key: tensor * 0 for key, tensor in state.items()}},
        lambda state: {"model": {"state_dict": state}, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
        lambda state: {**state, "epoch": 3, "lr": 0.1, "name": "x"},
        lambda state: {**state, "outconv.total_ops": torch.zeros(1), "total_params": torch.zeros(1)},
        lambda state: {"state_dict": {"model.net." + key: tensor for key, tensor in state.items()}, "callbacks": {}},
        lambda state: {
            **{"teacher." + key: tensor * 0 for key, tensor in state.items()},
            **{"student." + key: tensor for key, tensor in state.items()},
            "loss.weight": torch.ones(3),
        },
        lambda state: {"generator": state, "discriminator": {"conv.weight": torch.ones(3)}},
    ],
    ids=[
        "plain",
        "data parallel",
        "compiled",
        "wrapped",
        "wrapped data parallel",
        "before PyTorch 0.4.1",
        "moving average alone",
        "moving average beside",
        "nested",
        "flat with an epoch",
        "profiled by thop",
        "Lightning",
        "student and teacher",
        "one of two networks",
    ],
)
def test_forms(tmp_path: Path, trained: SaliencyNetwork, wrap: Any) -> None:
    for zipped in (True, False):
        torch.save(wrap(trained.state_dict()), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        refuse_misfit(tmp_path / "w.pth", "u2net_tiny")
        assert loads_as(tmp_path / "w.pth", trained)


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_weights_that_are_no_floats(tmp_path: Path, trained: SaliencyNetwork, kind: torch.dtype) -> None:
    state = {key: value.to(kind) if value.is_floating_point() else value for key, value in trained.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: .* is .*, where the network has float32; give the weights"):
        loads_as(tmp_path / "w.pth", trained)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda path, state: torch.save(state, path, pickle_protocol=4),
            "PyTorch loads only by running its code",
        ),
        (lambda path, state: path.write_bytes(pickle.dumps(state)), "PyTorch loads only by running its code"),
        (lambda path, state: np.savez(path.open("wb"), **state), "holds NumPy arrays; save them as tensors: "),
        (lambda path, state: _zipped(path, "inner.pth"), "is a zip archive, .*; unpack it and give the file inside"),
        (lambda path, state: _zipped(path, "e/archive_format"), "is a program of torch.export .*torch.export.load"),
    ],
    ids=["newer pickle", "pickle alone", "NumPy", "zip", "torch.export"],
)
def test_whole_files_of_other_forms(tmp_path: Path, trained: SaliencyNetwork, write: Any, message: str) -> None:
    write(tmp_path / "w.pth", trained.state_dict())
    with pytest.raises(UserError, match=message):
        loads_as(tmp_path / "w.pth", trained)


def _zipped(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"content")


def test_the_old_file_format(tmp_path: Path, trained: SaliencyNetwork) -> None:
    torch.save(trained.state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert loads_as(tmp_path / "w.pth", trained)


def test_published_weights_load(research_file: ResearchFile) -> None:
    network = build("u2netp")
    load_checkpoint(research_file("weights/u2netp-bnfolded-from-fp16.pth"), network)
    assert network.get_parameter("outconv.weight").std() > 0


def test_another_network_is_named(tmp_path: Path, trained: SaliencyNetwork) -> None:
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        UserError, match=r"w.pth does not fit u2netp: .*of another shape.*it is a checkpoint of u2net_tiny"
    ):
        load_checkpoint(tmp_path / "w.pth", build("u2netp"))


def test_differing_keys_are_named_and_nothing_is_loaded(tmp_path: Path, trained: SaliencyNetwork) -> None:
    state = trained.state_dict()
    del state["outconv.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["side1.bias"] = torch.zeros(2)
    torch.save(state, tmp_path / "w.pth")
    network = build("u2net_tiny")
    before = network.get_parameter("outconv.weight").clone()
    with pytest.raises(UserError) as error:
        load_checkpoint(tmp_path / "w.pth", network)
    assert str(error.value).endswith(
        "w.pth does not fit u2net_tiny: it lacks outconv.bias; it has extra.weight; "
        "of another shape is side1.bias ((2,), not (1,)); it fits none of our networks"
    )
    assert torch.equal(network.get_parameter("outconv.weight"), before)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch trapped",)


def test_code_in_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Trap()}, "w.pth")
    with pytest.raises(UserError, match=r"w.pth holds Python objects, which loading would execute"):
        read_weights("w.pth")
    with pytest.raises(UserError, match=r"w.pth holds Python objects, which loading would execute"):
        refuse_misfit("w.pth", "u2net_tiny")
    assert not Path("trapped").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x01\xfe\x02 no checkpoint", "is broken or no PyTorch checkpoint"),
        (b"PK\x03\x04" + bytes(100), "is broken or no PyTorch checkpoint"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}q", "is broken or no PyTorch checkpoint"),
        (b"", r"is no PyTorch checkpoint: it is empty \(0 bytes\)"),
        (b"<!DOCTYPE html><html>", r"is no PyTorch checkpoint: it is a web page \(HTML\); download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", ".* it is a pointer of Git LFS.*; fetch"),
        (b"Access to this model is restricted", "is no PyTorch checkpoint: it is text"),
        (b"\x1f\x8b\x08\0", "is no PyTorch checkpoint: it is a gzip archive; unpack it"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=f"w.pth {message}"):
        read_weights(tmp_path / "w.pth")
    if content[:1] != b"\x01":  # which only PyTorch can judge
        with pytest.raises(UserError, match=f"w.pth {message}"):
            refuse_misfit(tmp_path / "w.pth", "u2net_tiny")


def test_a_truncated_file(tmp_path: Path, trained: SaliencyNetwork) -> None:
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"w.pth is broken or no PyTorch checkpoint"):
        read_weights(tmp_path / "w.pth")


def test_what_is_no_state_dict(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"holds a list, not a state dict"):
        read_weights(tmp_path / "list.pth")
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "wrapped.pth")
    with pytest.raises(UserError, match=r"holds epoch, optimizer, none of which is a state dict"):
        read_weights(tmp_path / "wrapped.pth")
    with pytest.raises(UserError, match=r"absent.pth does not exist"):
        read_weights(tmp_path / "absent.pth")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def onto_a_full_disk(path: str | Path) -> Iterator[Path]:
        yield Path("/dev/full")

    monkeypatch.setattr(artifacts, "atomic_write", onto_a_full_disk)
    with pytest.raises(OSError, match=r"w.pth") as error:
        write_checkpoint({"weight": torch.zeros(300_000)}, tmp_path / "w.pth")
    assert error.value.errno == errno.ENOSPC


def test_safetensors(tmp_path: Path, trained: SaliencyNetwork) -> None:
    save_file({key: tensor.contiguous() for key, tensor in trained.state_dict().items()}, tmp_path / "w.safetensors")
    assert loads_as(tmp_path / "w.safetensors", trained)
    (tmp_path / "w.safetensors").rename(tmp_path / "w.pth")
    assert loads_as(tmp_path / "w.pth", trained)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.pth").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cut.safetensors is broken or no safetensors file"):
        read_weights(tmp_path / "cut.safetensors")


def test_torchscript_is_refused_with_a_remedy_that_works(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w.pt is a TorchScript file.*torch.jit.load"):
        read_weights(tmp_path / "w.pt")
    torch.save(torch.jit.load(tmp_path / "w.pt", map_location="cpu").state_dict(), tmp_path / "w.pth")
    assert set(read_weights(tmp_path / "w.pth")) == {"weight", "bias"}


def test_a_whole_network_is_refused_with_a_remedy_that_works(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w.pt holds Python objects.*weights_only=False"):
        read_weights(tmp_path / "w.pt")
    torch.save(torch.load(tmp_path / "w.pt", weights_only=False).state_dict(), tmp_path / "w.pth")
    assert set(read_weights(tmp_path / "w.pth")) == {"weight", "bias"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda tensor: tensor.to_sparse(), "no plain tensor"),
        (lambda tensor: torch.empty(tensor.shape, device="meta"), "no plain tensor"),
        (lambda tensor: tensor * float("nan"), "NaN or infinite"),
    ],
    ids=["sparse", "meta", "NaN"],
)
def test_tensors_that_hold_no_weights(tmp_path: Path, trained: SaliencyNetwork, spoil: Any, message: str) -> None:
    state = trained.state_dict()
    torch.save(state | {"outconv.weight": spoil(state["outconv.weight"])}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"w.pth: outconv.weight .*{message}"):
        load_checkpoint(tmp_path / "w.pth", build("u2net_tiny"))
    if "NaN" not in message:
        with pytest.raises(UserError, match=rf"w.pth: outconv.weight .*{message}"):
            refuse_misfit(tmp_path / "w.pth", "u2net_tiny")


def test_names_are_escaped(tmp_path: Path, trained: SaliencyNetwork) -> None:
    torch.save(trained.state_dict() | {"a\x1b[31m\nb": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"it has a\\x1b\[31m b;") as error:
        load_checkpoint(tmp_path / "w.pth", build("u2net_tiny"))
    assert str(error.value).isprintable()
    with pytest.raises(UserError, match=r"does not fit u2net_tiny: it has a\\x1b\[31m b;"):
        refuse_misfit(tmp_path / "w.pth", "u2net_tiny")


@pytest.mark.parametrize("content", [{0: torch.zeros(1)}, {None: torch.zeros(1)}, {}], ids=["number", "none", "empty"])
def test_keys_that_are_no_names(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match="none of which is a state dict"):
        read_weights(tmp_path / "w.pth")


def test_the_signatures_are_those_of_the_networks() -> None:
    shapes = computed()
    told = "a network changed; run python training/signatures.py"
    assert json.loads(FILE.read_text()) == hashed(shapes), told
    assert json.loads(gzip.decompress(SHAPES.read_bytes())) == deployed(shapes), told


def test_an_archive_that_was_packed_again(tmp_path: Path, trained: SaliencyNetwork) -> None:
    torch.save(trained.state_dict(), tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as old:
        with zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
        with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
            for name in old.namelist():
                bomb.writestr(name, old.read(name))
            bomb.infolist()[0].file_size = 1 << 31
    assert loads_as(tmp_path / "packed.pth", trained)
    with pytest.raises(UserError, match=r"bomb.pth is broken"):
        read_weights(tmp_path / "bomb.pth")


def test_the_head_of_a_backbone_is_left_out(
    tmp_path: Path, trained: SaliencyNetwork, capsys: pytest.CaptureFixture[str]
) -> None:
    head = {"backbone.fc.weight": torch.zeros(1000, 8), "backbone.fc.bias": torch.zeros(1000)}
    torch.save(trained.state_dict() | head, tmp_path / "head.pth")
    assert loads_as(tmp_path / "head.pth", trained)
    assert "left out 2 tensors that are not of the network: backbone.fc.weight" in " ".join(
        capsys.readouterr().err.split()
    )
    torch.save(trained.state_dict() | {"backbone.layer1.weight": torch.zeros(8)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other.pth does not fit .* it has backbone.layer1.weight"):
        load_checkpoint(tmp_path / "other.pth", trained)
