"""From files of models to the networks of a Triton repository: every file is read and checked before one is written."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sodeploy.artifacts import read_manifest
from sodeploy.errors import UserError
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.gpu.engine_record import EngineRecord, read_record
from sodeploy.runtime.session import OnnxRuntimeSession
from sodeploy.runtime.triton_server.model_config import Batching, FloatType, Network

OnnxBackend = Literal["onnxruntime", "openvino"]
DeviceKind = Literal["cpu", "cuda"]
MASK = "_mask"  # what the name of a mask model ends with
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Serving:
    """How Triton is to run networks.

    Attributes:
        backend: of ONNX files; engines run in TensorRT.
        device: of ONNX files; engines run on GPUs.
        instances: copies of a network on each GPU, or on the CPU.
        most_batch: images in one run, where the contract leaves the batch free; an engine has its own limit.
        preferred: sizes of batches at which Triton waits for no more; by default the largest batch.
        delay_us: longest wait for more requests, in microseconds.
        masks: write a mask model beside each network.
        mask_instances: processes of a mask model.
    """

    backend: OnnxBackend = "onnxruntime"
    device: DeviceKind = "cpu"
    instances: int = 1
    most_batch: int = 8
    preferred: tuple[int, ...] = ()
    delay_us: int = 2000
    masks: bool = True
    mask_instances: int = 1


@dataclass(frozen=True)
class Served:
    """A network and its files: name in the version folder -> file."""

    network: Network
    sources: dict[str, Path]


def parse_models(texts: Sequence[str]) -> dict[str, list[Path]]:
    """The files of each model, of texts such as "u2netp=out/u2netp.engine" or "out/u2netp.onnx", named by their stem.

    Raises:
        UserError: a name cannot be the name of a model in Triton, or is the name of another model's mask model.
    """
    models: dict[str, list[Path]] = {}
    for text in texts:
        left, equals, right = text.partition("=")
        named = bool(equals) and not Path(text).exists()
        name, path = (left, Path(right)) if named else (Path(text).stem, Path(text))
        if not _NAME.fullmatch(name):
            raise UserError(f"--model {text}: {name!r} cannot be a name; write NAME=FILE, with letters, digits, . _ -")
        models.setdefault(name, []).append(path)
    for name in models:
        if name.endswith(MASK) and name.removesuffix(MASK) in models:
            raise UserError(f"--model {name}: that is the mask model of {name.removesuffix(MASK)}; give another name")
    return models


def served(name: str, paths: Sequence[Path], serving: Serving) -> Served:
    """The network `name`, of one ONNX file, or of engines for different GPUs.

    Raises:
        UserError: a file is missing, broken or no model that Triton runs, or the files do not belong together.
    """
    if any(path.suffix == ".engine" for path in paths):
        return _of_engines(name, paths, serving)
    if len(paths) > 1:
        raise UserError(f"{name}: only engines for different GPUs share a name; give {paths[1]} another: NAME=FILE")
    if paths[0].suffix != ".onnx":
        raise UserError(f"{paths[0]} is no model that Triton runs here; give an .onnx or .engine file")
    return _of_onnx(name, paths[0], serving)


def _of_onnx(name: str, path: Path, serving: Serving) -> Served:
    if serving.backend == "openvino" and serving.device == "cuda":
        raise UserError("--backend openvino runs on a CPU; leave --device cuda out, or take onnxruntime")
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the path of a model")
    with OnnxRuntimeSession(path) as session:  # refuses what does not keep its contract
        types = _float_type(session.input_dtype), _float_type(session.output_dtype)
        contract, precision = session.contract, session.precision
    file = "model.onnx"
    batching = _batching(name, contract, serving, serving.most_batch, None)
    on_gpu = serving.device == "cuda"
    network = Network(
        name, serving.backend, contract, precision, {file: ""}, *types, batching, serving.instances, on_gpu
    )
    return Served(network, {file: path})


def _of_engines(name: str, paths: Sequence[Path], serving: Serving) -> Served:
    capabilities: dict[str, str] = {}
    sources: dict[str, Path] = {}
    first: EngineRecord | None = None
    most, best = serving.most_batch, None
    for path in paths:
        if path.suffix != ".engine":
            raise UserError(f"{name}: {path} is no engine; only engines for different GPUs share a name: NAME=FILE")
        record = read_record(path)
        if record.builder != "tensorrt":
            raise UserError(
                f"{path} is an engine of TensorRT-RTX, which Triton has no back end for; build one by "
                "--builder tensorrt on the GPU that serves, or give the ONNX file"
            )
        if record.input_dtype is None or record.output_dtype is None:
            raise UserError(f"{path}: its manifest has no types of input and output; build it again: {record.rebuild}")
        first = first or record
        if _interface(record) != _interface(first):
            raise UserError(
                f"{name}: {paths[0]} and {path} differ in contract, precision or types; give each a name of its own"
            )
        for target in ["", *record.targets] if record.any_newer_gpu else record.targets:
            file = "model.plan" if not target else f"model_{target}.plan"
            if file in sources:
                where = target or "any newer GPU"
                raise UserError(f"{name}: {sources[file]} and {path} are both for {where}; give one of them")
            capabilities[file], sources[file] = _capability(target, path), path
        limit, fastest = _profile(path, record.contract)
        if limit is not None:
            most, best = min(most, limit), fastest
    assert first is not None
    batching = _batching(name, first.contract, serving, most, best)
    network = Network(
        name,
        "tensorrt",
        first.contract,
        first.precision,
        capabilities,
        _float_type(np.dtype(first.input_dtype).type),
        _float_type(np.dtype(first.output_dtype).type),
        batching,
        serving.instances,
        True,
    )
    return Served(network, sources)


def _interface(record: EngineRecord) -> tuple[object, ...]:
    """The facts in which engines of one name agree."""
    return record.contract, record.precision, record.input_dtype, record.output_dtype


def _batching(name: str, contract: Contract, serving: Serving, most: int, best: int | None) -> Batching | None:
    """The batching of a network whose batch is free; None for another."""
    if contract.batch is not None:
        return None
    preferred = tuple(sorted(set(serving.preferred))) or (min(best or most, most),)
    if preferred[-1] > most:
        raise UserError(f"{name}: --preferred-batch {preferred[-1]} is more than the largest batch, {most}")
    return Batching(most, preferred, serving.delay_us)


def _profile(engine: Path, contract: Contract) -> tuple[int | None, int | None]:
    """The largest and the fastest batch of an engine, as its manifest has them; None where it does not tell."""
    profile: Any = read_manifest(engine).get("profile")
    if contract.batch is not None or not isinstance(profile, dict):
        return None, None
    try:
        return int(profile["max"][0]), int(profile["opt"][0])
    except (KeyError, IndexError, TypeError, ValueError):
        raise UserError(f"{engine}: the profile in its manifest has no batch; build the engine again") from None


def _capability(target: str, engine: Path) -> str:
    """ "8.9" of "sm89", as Triton writes it."""
    found = re.fullmatch(r"sm(\d+)(\d)", target)
    if target and not found:
        raise UserError(f"{engine}: its manifest names the GPU {target!r}, which is no compute capability such as sm89")
    return f"{found[1]}.{found[2]}" if found else ""


def _float_type(dtype: type[np.generic]) -> FloatType:
    return "TYPE_FP16" if dtype == np.float16 else "TYPE_FP32"
