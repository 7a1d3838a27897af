"""The files in which a budget search keeps its results: a record in JSON, and beside it the scores of fp32."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from sodeploy.artifacts import one_line, parse_json, read_json
from sodeploy.errors import UserError
from sodeploy.quant.arrays import read_arrays
from sodeploy.runtime.measure import metrics

_REMEDY = "delete it and search again"


class FoundVerdict(BaseModel):
    """The loss of one candidate.

    Attributes:
        deltas: metric -> difference to fp32, and the two ends of its interval.
        seconds: the time that the measurement took.
    """

    model_config = ConfigDict(extra="forbid")

    candidate: str
    deltas: dict[str, tuple[FiniteFloat, FiniteFloat, FiniteFloat]]
    seconds: float


class Results(BaseModel):
    """The results of a search.

    Attributes:
        format: version of the file's format.
        network: sha256 of the network.
        images: digest of the evaluation images.
        verdicts: digest of a candidate's graph -> its loss.
        map_errors: digest of a candidate's graph -> mean absolute difference of its maps to fp32, in [0, 1].
    """

    model_config = ConfigDict(extra="forbid")

    format: int
    network: str
    images: str
    verdicts: dict[str, FoundVerdict] = {}
    map_errors: dict[str, FiniteFloat] = {}

    @property
    def key(self) -> dict[str, object]:
        """The facts that must agree before a result may be used again."""
        return {"format": self.format, "network": self.network, "images": self.images}


def read_results(file: str | Path) -> Results:
    """The results in the record of a search.

    Raises:
        UserError: the file is missing, or no such record; the field is named.
    """
    content = read_json(file, _REMEDY)
    try:
        return Results.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = one_line(".".join(map(str, first["loc"])))
        reason = f"{where}: {one_line(first['msg'])}"
        raise UserError(f"{file} is no record of a search ({reason}); {_REMEDY}") from None


def read_scores(file: str | Path, key: dict[str, object], images: int) -> metrics.Scores | None:
    """The scores of fp32; None where they belong to another network or to other images.

    Args:
        key: `Results.key` of the search.
        images: number of evaluation images.

    Raises:
        UserError: the file is missing, broken, or lacks a metric.
    """
    names = metrics.per_image_values()
    arrays = read_arrays(file, "scores", _REMEDY)
    if parse_json(str(arrays.get("key", "{}")), f"{file}: key", _REMEDY) != key:
        return None
    for name in names:
        if name not in arrays:
            raise UserError(f"{file} holds no scores (it lacks {name}); {_REMEDY}")
        shape, kind = arrays[name].shape, arrays[name].dtype.kind
        if kind != "f" or shape not in ((images,), (images, 256)):
            raise UserError(f"{file} holds no scores ({name} is {shape}, not numbers of {images} images); {_REMEDY}")
    return metrics.Scores({name: arrays[name] for name in names})
