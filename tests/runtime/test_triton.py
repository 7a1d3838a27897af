"""Triton: the repository, the Python model of a mask model, and the client against an imitation of the server."""

import errno
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

pytest.importorskip("tritonclient.grpc", reason="pip install 'sodeploy[triton]'")

from imitated_triton import Repository, mask_model, mask_request, serving
from tritonclient.grpc import model_config_pb2 as schema

from sodeploy.__main__ import group
from sodeploy.artifacts import read_json, write_manifest
from sodeploy.command_line import errors_in_one_line
from sodeploy.errors import UserError
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.infer import infer
from sodeploy.runtime.triton_server.client import TritonServer, TritonSession, parse_address
from sodeploy.runtime.triton_server.model_config import parse_config, type_name
from sodeploy.runtime.triton_server.served import Serving, parse_models
from sodeploy.runtime.triton_server.triton_repository import write_repository
from sodeploy.verify import verify

SaveModel = Callable[..., Path]
MakeContract = Callable[..., Contract]
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_grpc_proxy", "127.0.0.1")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), RNG.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8))
    return folder


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def config_of(repository: Path, name: str) -> Any:
    return parse_config((repository / name / "config.pbtxt").read_text(), name)


def status_of(*words: str) -> object:
    """The exit status of a command line."""
    with pytest.raises(SystemExit) as end, errors_in_one_line():
        group()([*words], prog_name="sodeploy")
    return end.value.code


class TestRepository:
    def test_the_command(self, save_model: SaveModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["--model", f"net={save_model()}", "--no-mask", "--output", str(tmp_path / "out")]
        assert status_of("triton", *words) == 0
        assert capsys.readouterr().out == f"net in {tmp_path / 'out'}\n"
        assert status_of("triton", *words) == 1
        assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'out'} is not empty; ")

    def test_a_free_batch_is_batched_by_the_server(self, save_model: SaveModel, tmp_path: Path) -> None:
        model = save_model(batch=None)
        serving = Serving(instances=2, most_batch=6, preferred=(4, 2), delay_us=500, mask_instances=3)
        assert write_repository({"tiny": [model]}, tmp_path / "out", serving) == ["tiny", "tiny_mask"]
        config = config_of(tmp_path / "out", "tiny")
        assert (config.name, config.backend, config.max_batch_size) == ("tiny", "onnxruntime", 6)
        assert list(config.input[0].dims) == [3, 16, 24]
        assert list(config.output[0].dims) == [1, 16, 24]
        assert list(config.dynamic_batching.preferred_batch_size) == [2, 4]
        assert config.dynamic_batching.max_queue_delay_microseconds == 500
        assert [(one.count, one.kind) for one in config.instance_group] == [(2, schema.ModelInstanceGroup.KIND_CPU)]
        assert [one.batch_size for one in config.model_warmup] == [1, 6]
        assert config_of(tmp_path / "out", "tiny_mask").instance_group[0].count == 3
        assert (tmp_path / "out" / "tiny" / "1" / "model.onnx").read_bytes() == model.read_bytes()

    def test_a_fixed_batch_is_not(self, save_model: SaveModel, tmp_path: Path) -> None:
        write_repository({"tiny": [save_model(batch=2, dynamic_size=True)]}, tmp_path / "out", Serving("openvino"))
        config = config_of(tmp_path / "out", "tiny")
        assert (config.backend, config.default_model_filename) == ("openvino", "model.onnx")
        assert (config.max_batch_size, config.HasField("dynamic_batching")) == (0, False)
        assert list(config.input[0].dims) == [2, 3, -1, -1]
        assert list(config.model_warmup[0].inputs["image"].dims) == [2, 3, 16, 24]

    def test_engines_of_two_gpus_share_a_name(self, make_contract: MakeContract, tmp_path: Path) -> None:
        contract = make_contract(batch=None)
        first = engine(tmp_path / "ada.engine", contract)
        second = engine(tmp_path / "new.engine", contract, targets=["sm120"], profile=profile(1, 3, 5))
        write_repository({"net": [first, second]}, tmp_path / "out", Serving(instances=2))
        config = config_of(tmp_path / "out", "net")
        assert config.backend == "tensorrt"
        assert dict(config.cc_model_filenames) == {"8.9": "model_sm89.plan", "12.0": "model_sm120.plan"}
        assert not config.default_model_filename
        assert (config.max_batch_size, list(config.dynamic_batching.preferred_batch_size)) == (5, [3])
        assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
        assert config.parameters["sodeploy.precision"].string_value == "int8"
        assert (tmp_path / "out" / "net" / "1" / "model_sm120.plan").read_bytes() == second.read_bytes()

    def test_an_engine_for_any_newer_gpu_is_the_default(self, make_contract: MakeContract, tmp_path: Path) -> None:
        one = engine(tmp_path / "any.engine", make_contract(batch=None), any_newer_gpu=True)
        write_repository({"net": [one]}, tmp_path / "out")
        assert config_of(tmp_path / "out", "net").default_model_filename == "model.plan"
        assert config_of(tmp_path / "out", "net").cc_model_filenames["8.9"] == "model_sm89.plan"

    def test_an_engines_types_are_those_of_its_manifest(self, make_contract: MakeContract, tmp_path: Path) -> None:
        one = engine(tmp_path / "half.engine", make_contract(batch=None), input_dtype="float16")
        write_repository({"net": [one]}, tmp_path / "out")
        config = config_of(tmp_path / "out", "net")
        assert (type_name(config.input[0]), type_name(config.output[0])) == ("TYPE_FP16", "TYPE_FP32")
        assert config.model_warmup[0].inputs["image"].data_type == schema.DataType.Value("TYPE_FP16")
        assert config_of(tmp_path / "out", "net_mask").parameters["sodeploy.input_type"].string_value == "TYPE_FP16"

    def test_weights_of_another_file_are_put_into_the_model(self, save_model: SaveModel, tmp_path: Path) -> None:
        model = onnx.load(save_model())
        source = tmp_path / "apart.onnx"
        onnx.save(model, source, save_as_external_data=True, location="apart.data", size_threshold=0)
        write_repository({"apart": [source]}, tmp_path / "out")
        images = RNG.random((1, 3, 16, 24), np.float32)
        made = Repository(tmp_path / "out").run("apart", images)
        np.testing.assert_allclose(made[:, 0], np.einsum("nchw,c->nhw", images, [0.3, 0.4, 0.3]), atol=1e-6)

    def test_every_file_has_a_manifest(self, save_model: SaveModel, tmp_path: Path) -> None:
        write_repository({"tiny": [save_model()]}, tmp_path / "out")
        files = {path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.suffix != ".json"}
        assert {path.name for path in files} == {"config.pbtxt", "model.onnx", "model.py"}
        for file in files:
            assert read_json(f"{file}.json", "")["artifact"] == file.name
        assert {found.verdict for found in verify(sorted(files))} <= {"ok", "unknown"}
        (tmp_path / "out" / "tiny" / "config.pbtxt").write_text("changed")
        assert "differs" in {found.verdict for found in verify(sorted(files))}

    def test_it_is_whole_or_absent(
        self, save_model: SaveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(source: Path, target: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))

        model, before = save_model(), {*tmp_path.iterdir()}
        monkeypatch.setattr(shutil, "copyfile", full)
        with pytest.raises(OSError, match="No space"):
            write_repository({"tiny": [model]}, tmp_path / "out")
        assert {*tmp_path.iterdir()} - before <= {model}

    def test_a_folder_with_content_stays_as_it_is(self, save_model: SaveModel, tmp_path: Path) -> None:
        model = save_model()
        with pytest.raises(UserError, match="is not empty"):
            write_repository({"tiny": [model]}, tmp_path)
        (tmp_path / "empty").mkdir()
        write_repository({"tiny": [model]}, tmp_path / "empty")

    @pytest.mark.parametrize(
        ("models", "told"),
        [
            (["a b=x.onnx"], "cannot be a name"),
            (["a=x.onnx", "a_mask=y.onnx"], "is the mask model of a"),
            (["a=lacks.onnx"], "lacks.onnx does not exist"),
            (["a=lacks.engine"], "lacks.engine does not exist"),
            (["a=x.txt"], "no model that Triton runs"),
            (["a=x.onnx", "a=y.onnx"], "only engines for different GPUs share a name"),
            (["a=x.onnx", "a=y.engine"], "x.onnx is no engine"),
        ],
    )
    def test_unfit_models_are_one_line(self, tmp_path: Path, models: list[str], told: str) -> None:
        with pytest.raises(UserError, match=told) as caught:
            write_repository(parse_models(models), tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("facts", "told"),
        [
            ({}, "are both for sm89"),
            ({"targets": ["sm86"], "precision": "fp16"}, "differ in contract, precision or types"),
            ({"targets": ["sm86"], "output_dtype": "float16"}, "differ in contract, precision or types"),
            ({"output_dtype": None}, "has no types of input and output; build it again"),
            ({"targets": ["next"]}, "no compute capability"),
            ({"builder": "tensorrt_rtx"}, "no back end"),
            ({"targets": ["sm86"], "profile": {"max": 3}}, "has no batch"),
        ],
    )
    def test_unfit_engines_are_one_line(
        self,
        make_contract: MakeContract,
        tmp_path: Path,
        facts: dict[str, Any],
        told: str,
    ) -> None:
        contract = make_contract(batch=None)
        first = engine(tmp_path / "first.engine", contract)
        second = engine(tmp_path / "other.engine", contract, **facts)
        with pytest.raises(UserError, match=told):
            write_repository({"net": [first, second]}, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_unfit_options_are_one_line(self, save_model: SaveModel, tmp_path: Path) -> None:
        model = save_model(batch=None)
        with pytest.raises(UserError, match="--preferred-batch 9 is more than the largest batch, 8"):
            write_repository({"tiny": [model]}, tmp_path / "out", Serving(preferred=(9,)))
        with pytest.raises(UserError, match="openvino runs on a CPU"):
            write_repository({"tiny": [model]}, tmp_path / "out", Serving("openvino", "cuda"))

    def test_an_unknown_field_is_refused(self, save_model: SaveModel, tmp_path: Path) -> None:
        write_repository({"tiny": [save_model()]}, tmp_path / "out")
        text = (tmp_path / "out" / "tiny" / "config.pbtxt").read_text()
        with pytest.raises(UserError, match="max_batchsize"):
            parse_config(text + "max_batchsize: 3\n", "config.pbtxt")


def profile(*batches: int) -> dict[str, list[int]]:
    return {name: [count, 3, 16, 24] for name, count in zip(("min", "opt", "max"), batches, strict=True)}


def engine(path: Path, contract: Contract, **facts: Any) -> Path:
    """A file with the manifest of an engine for an L4, unless `facts` say something else; nothing can run it."""
    path.write_text(f"the engine {path.stem}")
    record = {
        "precision": "int8",
        "builder": "tensorrt",
        "input_dtype": "float32",
        "output_dtype": "float32",
        "builder_version": "10.16.1",
        "targets": ["sm89"],
        "gpu": "NVIDIA L4",
        "any_newer_gpu": False,
        "any_newer_version": False,
        "rebuild": "sodeploy engine tiny.onnx",
    }
    write_manifest(path, {}, contract=contract.model_dump(mode="json"), **(record | facts))
    return path


class TestMaskModel:
    @pytest.mark.parametrize("fields", [{"batch": None, "dtype": np.float16}, {"batch": 2}, {"output": "logit"}])
    def test_its_bytes_are_those_of_the_cpu_path(
        self,
        save_model: SaveModel,
        photos: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        fields: dict[str, Any],
    ) -> None:
        model = save_model(**fields)
        write_repository({"tiny": [model]}, tmp_path / "out")
        infer(model, photos, tmp_path / "local")
        served = mask_model(tmp_path / "out", "tiny_mask", monkeypatch)
        names = sorted(path.name for path in photos.iterdir())
        answers = served.execute([mask_request([(photos / name).read_bytes()], "png", "map") for name in names])
        assert {
            name: answer.tensors["png"].as_numpy()[0] for name, answer in zip(names, answers, strict=True)
        } == pictures(tmp_path / "local")
        pixels = answers[0].tensors["map"].as_numpy()
        np.testing.assert_array_equal(pixels, cv2.imread(str(tmp_path / "local" / names[0]), cv2.IMREAD_UNCHANGED))

    def test_one_bad_image_leaves_the_others_alone(
        self, save_model: SaveModel, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_repository({"tiny": [save_model()]}, tmp_path / "out")
        served = mask_model(tmp_path / "out", "tiny_mask", monkeypatch)
        good = (photos / "0.png").read_bytes()
        answers = served.execute([mask_request(one, "png") for one in ([b"no picture"], [good], [good, good], [b""])])
        assert [answer.has_error() for answer in answers] == [True, False, True, True]
        assert "the image" in answers[0].error().message()
        assert "one encoded image, not 2" in answers[2].error().message()
        assert list(answers[1].tensors) == ["png"]

    def test_a_failure_of_the_network_is_told(
        self, save_model: SaveModel, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_repository({"tiny": [save_model()]}, tmp_path / "out")
        config = tmp_path / "out" / "tiny" / "config.pbtxt"
        config.write_text(config.read_text().replace("dims: 16", "dims: 17"))
        served = mask_model(tmp_path / "out", "tiny_mask", monkeypatch)
        (answer,) = served.execute([mask_request([(photos / "0.png").read_bytes()], "png")])
        assert "tiny: unexpected shape" in answer.error().message()


@pytest.fixture
def served(save_model: SaveModel, tmp_path: Path) -> Iterator[tuple[str, Any]]:
    """A server with the models `tiny`, of a free batch, and `pair`, of two images."""
    models = {"tiny": [save_model(batch=None)], "pair": [save_model("pair.onnx", batch=2)]}
    write_repository(models, tmp_path / "repository", Serving(most_batch=3))
    with serving(tmp_path / "repository") as (address, servicer):
        yield address, servicer


class TestClient:
    @pytest.mark.parametrize("name", ["tiny", "pair"])
    def test_its_masks_are_the_local_ones(
        self, served: tuple[str, Any], photos: Path, tmp_path: Path, name: str
    ) -> None:
        infer(tmp_path / f"{name}.onnx", photos, tmp_path / "local")
        arguments = [str(photos), "--triton", served[0], "--model", name, "--output", str(tmp_path / "remote")]
        assert status_of("infer", *arguments) == 0
        assert len(pictures(tmp_path / "remote")) == 3
        assert pictures(tmp_path / "remote") == pictures(tmp_path / "local")
        assert served[1].batches == [2 if name == "pair" else 1] * 3

    def test_a_large_batch_goes_in_parts(self, served: tuple[str, Any], tmp_path: Path) -> None:
        images = RNG.random((7, 3, 16, 24), np.float32)
        with TritonSession(TritonServer(served[0]), "tiny") as session:
            assert (session.contract.network, session.precision) == ("tiny", "fp32")
            made = session.infer(images)
        assert served[1].batches == [3, 3, 1]
        repository = Repository(tmp_path / "repository")
        parts = [repository.run("tiny", images[start : start + 3]) for start in (0, 3, 6)]
        np.testing.assert_array_equal(made, np.concatenate(parts))
        with pytest.raises(ValueError, match="closed"):
            session.infer(images)

    def test_half_floats(self, save_model: SaveModel, photos: Path, tmp_path: Path) -> None:
        model = save_model("half.onnx", dtype=np.float16)
        write_repository({"half": [model]}, tmp_path / "repository")
        infer(model, photos, tmp_path / "local")
        with serving(tmp_path / "repository") as (address, _):
            infer("half", photos, tmp_path / "remote", server=TritonServer(address))
        assert pictures(tmp_path / "remote") == pictures(tmp_path / "local")

    def test_no_server(self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["--triton", "127.0.0.1:1", "--model", "tiny", "--output", str(tmp_path / "remote")]
        assert status_of("infer", str(photos), *arguments) == 1
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1
        assert told[0].startswith("error: no Triton server answers at 127.0.0.1:1 (")
        assert not (tmp_path / "remote").exists()

    @pytest.mark.parametrize(
        ("name", "told"),
        [("other", "other on .* is not there .*unknown model"), ("tiny_mask", "for example --model tiny$")],
    )
    def test_no_such_network(self, served: tuple[str, Any], photos: Path, name: str, told: str) -> None:
        with pytest.raises(UserError, match=told):
            infer(name, photos, photos.parent / "remote", server=TritonServer(served[0]))

    def test_a_model_of_others(self, served: tuple[str, Any], photos: Path) -> None:
        served[1].repository.configs["tiny"].parameters.clear()
        with pytest.raises(UserError, match=r"tiny on .* has no sodeploy contract"):
            infer("tiny", photos, photos.parent / "remote", server=TritonServer(served[0]))

    def test_the_wrong_shape(self, served: tuple[str, Any], photos: Path, tmp_path: Path) -> None:
        served[1].repository.configs["tiny"].input[0].dims[1] = 17
        outcome = infer("tiny", photos, tmp_path / "remote", server=TritonServer(served[0]))
        assert outcome.written == 0
        assert all("tiny on" in why and "unexpected shape" in why for why in outcome.failed.values())
        assert len(outcome.failed) == 3

    def test_the_wrong_output(self, served: tuple[str, Any]) -> None:
        served[1].drop = True
        with (
            TritonSession(TritonServer(served[0]), "tiny") as session,
            pytest.raises(UserError, match=r"output saliency is \(1, 1, 15, 24\)"),
        ):
            session.infer(RNG.random((1, 3, 16, 24), np.float32))

    def test_the_deadline(self, served: tuple[str, Any]) -> None:
        served[1].slow_s = 0.5
        with (
            TritonSession(TritonServer(served[0], deadline=0.2), "tiny") as session,
            pytest.raises(UserError, match=r"did not answer within 0.2 s; .*--deadline"),
        ):
            session.infer(RNG.random((1, 3, 16, 24), np.float32))

    def test_a_missing_client_is_one_line(
        self, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in ("tritonclient.grpc", "tritonclient"):
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [])
        assert status_of("infer", str(photos), "--triton", "localhost", "--model", "tiny") == 1
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert "needs tritonclient: pip install 'sodeploy[" in told
        assert "triton]'" in told

    def test_the_server_decides_how_a_network_runs(self, photos: Path) -> None:
        with pytest.raises(UserError, match="leave --device"):
            infer("tiny", photos, photos.parent / "remote", device="cuda", server=TritonServer("localhost"))


@pytest.mark.parametrize(
    ("text", "address"),
    [("gpu1", "gpu1:8001"), ("gpu1:9000", "gpu1:9000"), ("[::1]", "[::1]:8001"), ("10.0.0.1:1", "10.0.0.1:1")],
)
def test_addresses(text: str, address: str) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "http://gpu1:8001", "gpu1:0", "gpu1:65536", "gpu1:", "a b"])
def test_no_addresses(text: str) -> None:
    with pytest.raises(UserError, match="write it as HOST or HOST:PORT"):
        parse_address(text)
