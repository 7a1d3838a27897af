"""An experiment as its configuration file describes it, and the record of the steps that are done."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from sodeploy import artifacts
from sodeploy.calib_data import Dataset
from sodeploy.calib_data.dataset import FileSample
from sodeploy.configuration import checked, read_yaml
from sodeploy.runtime.measure.evaluation_config import MetricKeys

JOURNAL = "steps.json"


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _size(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


Sources = Annotated[tuple[str, ...], BeforeValidator(_several)]


class Section(BaseModel):
    """A part of the file: immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Train(Section):
    """The step `train`."""

    config: str = Field(description="a recipe: its name or its file")
    data: Sources | None = Field(default=None, description="training sets; the recipe names the default")
    set: dict[str, Any] = Field(default={}, description="keys of the recipe that are replaced, such as optimizer.lr")


class Export(Section):
    """The step `export`."""

    size: Annotated[tuple[int, int] | None, BeforeValidator(_size)] = Field(
        default=None, description="side, or height and width, of the input; the trained size by default"
    )
    opset: int | None = Field(default=None, description="version of the ONNX operators")


class Build(Section):
    """The step `build`."""

    int8: bool = True
    calib: Sources | None = Field(default=None, description="calibration images; needed for int8")
    limit: int | None = Field(default=None, ge=1, description="calibrate on the first N images only")
    method: str | None = Field(default=None, description="how ranges are chosen")
    eval: Sources | None = Field(default=None, description="images and masks to measure losses on, for max_drop")
    max_drop: str | None = Field(default=None, description="the largest loss, such as s=0.002,mae=0.001")
    engines: bool = Field(default=True, description="build engines where a builder is installed")
    cpu: Literal["any", "vnni"] = "any"

    @model_validator(mode="after")
    def _is_consistent(self) -> "Build":
        if self.int8 and not self.calib:
            raise ValueError("int8 needs calib: images to calibrate on; or set int8: false")
        if (self.max_drop is None) != (self.eval is None):
            raise ValueError("max_drop and eval need each other")
        return self


class Test(Section):
    """The step `test`."""

    data: Sources = Field(min_length=1, description="test sets")
    limit: int | None = Field(default=None, ge=1, description="use only the first N images of each set")
    models: Annotated[tuple[str, ...], BeforeValidator(_several)] = Field(
        default=("fp32", "fp16", "int8"),
        min_length=1,
        description="checkpoint, fp32, fp16, int8, or a graph of the build such as int8.sim",
    )


class Eval(Section):
    """The step `eval`."""

    metrics: MetricKeys | None = Field(default=None, description="metrics in the order of tables; nine by default")
    curves: bool = Field(default=True, description="draw precision-recall and F curves; needs the extra report")
    page: bool = Field(
        default=True, description="write report.html, for which the models run once more; needs the extra report"
    )


class Experiment(Section):
    """The keys of an experiment's file. Paths are relative to the working folder."""

    output: Path | None = Field(default=None, description="folder for everything that is made; out/NAME by default")
    root: Path | None = Field(default=None, description="folder of the data sets that are given by name")
    train: Train | None = None
    network: str | None = Field(default=None, description="the network of `checkpoint`")
    checkpoint: Path | None = Field(default=None, description="weights in the place of training")
    model: Path | None = Field(default=None, description="float32 ONNX with a contract in the place of an export")
    export: Export = Export()
    build: Build | None = None
    test: Test
    eval: Eval = Eval()

    @model_validator(mode="after")
    def _is_consistent(self) -> "Experiment":
        starts = [name for name in ("train", "checkpoint", "model") if getattr(self, name) is not None]
        if len(starts) != 1:
            given = " and ".join(starts) or "none of them is given"
            raise ValueError(f"give one of train, checkpoint and model to start from ({given})")
        if self.checkpoint is not None and self.network is None:
            raise ValueError("checkpoint needs network: the name of the network that it belongs to")
        if self.build is None and set(self.test.models) - {"fp32", "checkpoint"}:
            unbuilt = ", ".join(name for name in self.test.models if name not in ("fp32", "checkpoint"))
            raise ValueError(f"test.models has {unbuilt}, which build makes; add build, or set test.models: [fp32]")
        if self.model is not None and "checkpoint" in self.test.models:
            raise ValueError("test.models has checkpoint, and the experiment starts from an ONNX file")
        return self


def load_experiment(path: str | Path) -> Experiment:
    """Read and check the file of an experiment.

    Raises:
        UserError: the file is missing or is not YAML, a key is unknown, or a value is wrong.
    """
    return checked(Experiment, read_yaml(path, "give the YAML file of an experiment"), path, "experiment")


class Journal:
    """The steps of an experiment that are done: what each was made from, and what it made.

    A step is current while the key of its inputs is the same and all of its outputs are as it left them.
    """

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            UserError: the record in `folder` is broken.
        """
        self.path = folder / JOURNAL
        remedy = "remove it; all steps are then done again"
        self._steps: dict[str, Any] = artifacts.read_json(self.path, remedy) if self.path.exists() else {}

    def outputs(self, step: str) -> dict[str, Path] | None:
        """The outputs of a step that was done before, by role; None where it was not, or where one is missing."""
        made = self._steps.get(step, {}).get("outputs")
        if not isinstance(made, dict):
            return None
        paths = {role: Path(one["path"]) for role, one in made.items()}
        return paths if all(path.exists() for path in paths.values()) else None

    def is_current(self, step: str, inputs: Mapping[str, Any]) -> bool:
        """Whether a step need not be done: it was done from these inputs, and its outputs have not changed."""
        if self.outputs(step) is None or self._steps[step]["inputs"] != digest_of(inputs):
            return False
        return all(digest_of_path(Path(one["path"])) == one["digest"] for one in self._steps[step]["outputs"].values())

    def record(self, step: str, inputs: Mapping[str, Any], outputs: Mapping[str, Path]) -> None:
        """Note that a step is done."""
        made = {role: {"path": str(path), "digest": digest_of_path(path)} for role, path in outputs.items()}
        self._steps[step] = {"inputs": digest_of(inputs), "outputs": made}
        artifacts.write_text(self.path, json.dumps(self._steps, indent=2) + "\n")


def digest_of(inputs: Mapping[str, Any]) -> str:
    """Hex sha256 of JSON values."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def digest_of_path(path: Path) -> str:
    """Hex sha256 of a file; of a folder, of the names and contents of all files in it."""
    if path.is_file():
        return artifacts.sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    return digest_of({file.relative_to(path).as_posix(): artifacts.sha256(file) for file in files})


def listing(dataset: Dataset) -> str:
    """Hex sha256 of the names and sizes of a data set's files: it changes when files come, go or are replaced."""
    sizes = {
        sample.name: [path.stat().st_size for path in (sample.image_path, sample.mask_path) if path]
        for sample in dataset
        if isinstance(sample, FileSample)
    }
    return digest_of({"name": dataset.name, "samples": [sample.name for sample in dataset], "sizes": sizes})
