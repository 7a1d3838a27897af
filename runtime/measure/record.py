"""The records that bench and evaluate write as JSON: their fields, types and versions.

`docs/bench-record.schema.json` is the JSON schema of `BenchRecord`; a test keeps it current. To write it anew:

    python runtime/measure/record.py > docs/bench-record.schema.json
"""

import json
import math
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sodeploy.artifacts import require_file
from sodeploy.errors import UserError
from sodeploy.runtime.measure.differences import Delta


class Record(BaseModel):
    """A part of a record: immutable, without unknown fields, without NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Difference(Record):
    """A difference to the baseline, or a ratio to it."""

    value: float
    ci95: tuple[float, float] | None = Field(description="95 % confidence interval; null: too few images for one")

    @classmethod
    def of(cls, delta: Delta) -> "Difference":
        """The difference, without an interval where it has none."""
        return cls(value=delta.value, ci95=(delta.low, delta.high) if math.isfinite(delta.low) else None)


class Percentiles(Record):
    """Percentiles over the images, in ms."""

    p50: float
    p90: float
    p99: float


class Published(Record):
    """The cost of the network before any conversion."""

    params_m: float | None = Field(description="millions of parameters; null: not known")
    flops_g: float | None = Field(description="2 x MACs for one image, in billions; null: not known")
    params_as: Literal["published", "graph"] = Field(
        description="published: all parameters of the published network, batch norms included; graph: counted in the "
        "float32 graph where one was measured, where folded batch norms are missing"
    )


class Row(Record):
    """One model on one data set."""

    name: str = Field(description="short name in tables and sentences; no two rows share one")
    model: str = Field(description="path of the model")
    network: str
    precision: str = Field(description="fp32, fp16, bf16 or int8")
    method: str | None = Field(description="calibration method of an int8 model; null: none is stated")
    target: str = Field(
        description='what the graph is made for: cpu (onnxruntime), openvino, trt, sim (a simulation), engine; "": any'
    )
    device: Literal["cpu", "cuda"]
    engine: str = Field(description="onnxruntime, openvino, openvino-bf16, tensorrt or tensorrt_rtx")
    published: Published
    params_m: float | None = Field(description="millions of parameters in the graph; null for an engine")
    macs_g: float | None = Field(description="billions of MACs in the graph for one image; null for an engine")
    input_shape: list[int | str] = Field(description='[N, 3, height, width]; N is "N" for any batch')
    size_mib: float
    metrics: dict[str, float] = Field(description="by the keys of the table of metrics: mae, mean_f, ...")
    delta: dict[str, Difference] = Field(description="model - baseline, by the same keys; 0 for the baseline itself")
    map_error: float | None = Field(
        default=None,
        description="mean absolute difference of the maps to the baseline's, of maps from 0 to 1, on the images whose "
        "times were measured; null: an old record",
    )
    latency_ms: dict[str, Percentiles] = Field(description="by stage: pre, infer, post, total; more on a GPU")
    time_ratio: Difference = Field(description="inference time / inference time of the baseline")
    stand_in: str = Field(description='why the times are not those of a deployed model; "": they are')
    images_per_s: float | None = Field(description="through the GPU pipeline; null on the CPU")
    device_memory_mib: float | None = Field(description="null on the CPU")
    calibrated_on: int | None = Field(description="how many of these images calibrated it; null: it does not say")
    images: int = Field(description="images that were scored")
    dataset: str


class Advice(Record):
    """The recommendation that follows from the rows."""

    budget: dict[str, float] | None = Field(description="largest allowed loss by metric; null: none was given")
    model: str | None = Field(description="path of the recommended model; null: none")
    engine: str | None = Field(description="the engine to run it in; null: no model is recommended")
    int8_pays: bool | None = Field(description="null: not measured, or within the noise")
    text: list[str] = Field(description="sentences")


class GpuStates(Record):
    """The state of the GPU, as nvidia-smi tells it, before and after; empty on a CPU."""

    before: dict[str, str]
    after: dict[str, str]


class BenchRecord(Record):
    """The record of one bench."""

    format: Literal[1] = 1
    rows: list[Row] = Field(description="one per model; the first is the baseline")
    dataset: str
    images: int = Field(description="images that were scored")
    timed: int | None = Field(
        default=None, description="images whose times were measured; null: all. Ray's workers scored the others"
    )
    left_out: list[str] = Field(description="images left out because a metric is undefined on their mask")
    threads: int
    batch: int
    hardware: str
    gpu: GpuStates
    versions: dict[str, str]
    recommendation: Advice


class EvaluationRow(Record):
    """One method on one data set."""

    method: str
    dataset: str
    images: int = Field(description="maps that were scored")
    resized: int = Field(description="maps that did not have the size of their mask")
    left_out: list[str] = Field(description="masks left out because a metric is undefined on them")
    metrics: dict[str, float]


class EvaluationRecord(Record):
    """The record of one evaluation."""

    format: Literal[1] = 1
    rows: list[EvaluationRow]
    versions: dict[str, str]


AnyRecord = TypeVar("AnyRecord", bound=Record)


def to_json(*records: Record) -> str:
    """A record as indented JSON, several as an array; ends in a newline."""
    if len(records) == 1:
        return records[0].model_dump_json(indent=2) + "\n"
    return json.dumps([record.model_dump(mode="json") for record in records], indent=2, ensure_ascii=False) + "\n"


def read_bench(path: str | Path) -> BenchRecord:
    """A record that bench wrote.

    Raises:
        UserError: the file is missing or no such record.
    """
    return _read(BenchRecord, path, "bench")


def read_evaluation(path: str | Path) -> EvaluationRecord:
    """A record that evaluate wrote.

    Raises:
        UserError: the file is missing or no such record.
    """
    return _read(EvaluationRecord, path, "evaluate")


def _read(kind: type[AnyRecord], path: str | Path, stage: str) -> AnyRecord:
    path = require_file(path, f"give a file that {stage} wrote with --json")
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "text"
        raise UserError(f"{path}: record field {where}: {first['msg']}; run {stage} again with --json") from None


def bench_schema() -> dict[str, Any]:
    """The JSON schema of `BenchRecord`."""
    return BenchRecord.model_json_schema(mode="serialization")


if __name__ == "__main__":
    print(json.dumps(bench_schema(), indent=2))
