"""The configuration file of an evaluation: methods x data sets x metrics, as InSPyReNet's `Eval` section has them."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from sodeploy.configuration import checked, read_yaml
from sodeploy.errors import UserError
from sodeploy.runtime.measure.metrics import parse_metrics

SECTION = "Eval"


def _keys_of(value: Any) -> Any:
    """The keys of metrics in a list or in a text with commas."""
    if isinstance(value, list):
        value = ",".join(map(str, value))
    if not isinstance(value, str):
        return value
    try:
        return parse_metrics(value)
    except UserError as error:
        raise ValueError(str(error).removeprefix("--metrics ")) from None


MetricKeys = Annotated[tuple[str, ...], BeforeValidator(_keys_of)]  # a list, or a text with commas


class EvaluationConfig(BaseModel):
    """The keys of the file, at its top or below `Eval`. Paths are relative to the working folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gt_root: Path | None = Field(default=None, description="folder of the data sets")
    pred_root: Path = Field(description="folder of the methods' folders; without `methods`, of one method's maps")
    methods: tuple[str, ...] | dict[str, Path] | None = Field(
        default=None, description="folders of maps in pred_root, or names with the path of each folder"
    )
    datasets: tuple[str, ...] = Field(min_length=1, description="data sets by name, in gt_root, or by path")
    metrics: MetricKeys | None = Field(
        default=None, description="metrics in the order of tables; the default ones by default"
    )
    result_path: Path | None = Field(default=None, description="folder for evaluation.json, .csv and .md")

    @model_validator(mode="after")
    def _has_methods(self) -> "EvaluationConfig":
        if self.methods is not None and not self.methods:
            raise ValueError("methods names no method; leave it out where pred_root holds the maps of one")
        return self

    def folders(self) -> dict[str, Path]:
        """The folder of maps of each method, by name."""
        if self.methods is None:
            return {self.pred_root.resolve().name: self.pred_root}
        if isinstance(self.methods, dict):
            return {name: self.pred_root / folder for name, folder in self.methods.items()}
        return {name: self.pred_root / name for name in self.methods}


def load_evaluation(path: str | Path) -> EvaluationConfig:
    """Read and check a configuration file. Sections beside `Eval`, as InSPyReNet's files have, are not read.

    Raises:
        UserError: the file is missing or is not YAML, a key is unknown, or a value is wrong.
    """
    content = read_yaml(path, "give a YAML file with pred_root and datasets")
    section = content.get(SECTION, content)
    if not isinstance(section, dict):
        raise UserError(f"{path}: {SECTION} has no keys and values; give it pred_root and datasets")
    return checked(EvaluationConfig, section, path, "evaluation")
