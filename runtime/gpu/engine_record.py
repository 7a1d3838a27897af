"""The record in an engine's manifest, and the check that the engine fits the TensorRT and the GPU at hand.

An engine is machine code for one TensorRT version and one kind of GPU; deserialising it elsewhere fails late and badly.
"""

import importlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sodeploy.artifacts import manifest_path, read_manifest, require_file, sha256
from sodeploy.errors import UserError
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.gpu.driver import current_gpu, driver_problem
from sodeploy.stages import command
from sodeploy.terminal import warn

Builder = Literal["tensorrt", "tensorrt_rtx"]
FloatName = Literal["float32", "float16"]
INSTALL = {"tensorrt": "pip install 'sodeploy[tensorrt]'", "tensorrt_rtx": "pip install 'sodeploy[rtx]'"}


class EngineRecord(BaseModel):
    """The part of an engine's manifest that decides whether, and as what, it runs.

    Attributes:
        targets: compute capabilities it has code for; of TensorRT the GPU's it was built on.
        gpu: name of the GPU it was timed on; None for TensorRT-RTX, which builds without one.
        any_newer_gpu: runs on every GPU from Ampere on (TensorRT's hardware compatibility).
        any_newer_version: runs on this and newer TensorRT versions of the same major, and TensorRT 10's on 11.
        rebuild: the command that builds it again.
        calibration: what its int8 ranges were measured on, as its graph said
        (`sodeploy.runtime.contract.CALIBRATION_KEY`).
        input_dtype, output_dtype: names of numpy; None in a record of an older sodeploy.
    """

    model_config = ConfigDict(frozen=True)

    sha256: str
    contract: Contract
    precision: str
    builder: Builder
    builder_version: str = Field(pattern=r"^\d{1,9}(\.\d{1,9})*$")
    targets: tuple[str, ...]
    gpu: str | None
    any_newer_gpu: bool
    any_newer_version: bool
    rebuild: str
    calibration: dict[str, Any] | None = None
    input_dtype: FloatName | None = None
    output_dtype: FloatName | None = None


def read_record(engine: str | Path) -> EngineRecord:
    """The record beside `engine`.

    Raises:
        UserError: engine or record is missing or broken, or they do not belong together.
    """
    engine = require_file(engine, f"build it: {command('build_engine')}")
    manifest: dict[str, Any] = read_manifest(engine)
    if not manifest:
        raise UserError(
            f"{engine} has no {manifest_path(engine).name} beside it, so nothing says what it was built for; "
            f"copy that file too, or build the engine again: {command('build_engine')}"
        )
    try:
        record = EngineRecord.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"{manifest_path(engine)}: {where}: {said}; build the engine again: {command('build_engine')}"
        ) from None
    if sha256(engine) != record.sha256:
        raise UserError(f"{engine} is truncated or was replaced; build it again: {record.rebuild}")
    return record


def check_engine(engine: str | Path) -> EngineRecord:
    """The record of `engine`, if it can run here: its TensorRT is installed in its version, its kind of GPU is present.

    Raises:
        UserError: it cannot; the message ends with the command that rebuilds it.
    """
    record = read_record(engine)
    installed = installed_version(record.builder)
    if installed is None:
        raise UserError(f"{engine} needs {record.builder} {record.builder_version}: {INSTALL[record.builder]}")
    if not _version_fits(record, installed):
        raise UserError(
            f"{engine} was built by {record.builder} {record.builder_version}, here is {installed}; "
            f"build it again: {record.rebuild}"
        )
    problem = driver_problem()
    if problem:
        raise UserError(f"{engine} runs on a GPU, but {problem}; run the ONNX file it was built from on the CPU")
    gpu = current_gpu()
    if gpu.capability not in record.targets and not (record.any_newer_gpu and _ampere_or_newer(gpu.capability)):
        raise UserError(
            f"{engine} was built for {', '.join(record.targets)}, here is {gpu.name} ({gpu.capability}); "
            f"build it again: {record.rebuild}"
        )
    if record.gpu not in (None, gpu.name) and not record.any_newer_gpu:
        warn(f"{engine} was tuned on {record.gpu}, here is {gpu.name}: it runs, but maybe not at full speed")
    return record


def installed_version(builder: Builder) -> str | None:
    """The version of `builder` here; None where it is not installed or does not load."""
    try:
        version: str = importlib.import_module(builder).__version__
    except (ImportError, OSError):  # OSError: the bindings are there, a library they need is not
        return None
    return version


def _version_fits(record: EngineRecord, installed: str) -> bool:
    if installed == record.builder_version:
        return True
    if not record.any_newer_version:
        return False
    built, here = (tuple(map(int, version.split("."))) for version in (record.builder_version, installed))
    return here >= built and (here[0] == built[0] or (built[0], here[0]) == (10, 11))


def _ampere_or_newer(capability: str) -> bool:
    return int(capability.removeprefix("sm")) >= 80
