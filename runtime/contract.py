"""The contract of a model: how its input is prepared and its output is read. The model carries it itself.

The contract is JSON in the ONNX metadata (key `sodeploy.contract`) and in the manifest beside an engine. Calibration,
bench, inference, serving and the CUDA kernels all read it from the model; no flag or constant repeats it. The other
keys that our graphs carry are listed here too.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveFloat, ValidationError, model_validator

from sodeploy.errors import UserError
from sodeploy.stages import command

if TYPE_CHECKING:
    import onnx

METADATA_KEY = "sodeploy.contract"
PRECISION_KEY = "sodeploy.precision"  # fp32 | fp16 | bf16 | int8; absent: fp32
DIALECT_KEY = "sodeploy.dialect"  # of a quantized graph: tensorrt | cpu | openvino | simulation
CPU_KEY = "sodeploy.cpu"  # of a graph for onnxruntime on a CPU: any | vnni, the CPUs that compute it right
CALIBRATION_KEY = "sodeploy.calibration"  # JSON: calibration method and images of a quantized graph


LARGEST_INPUT = 4 << 30  # bytes of float32; an input beyond it is a mistake in the file


class Contract(BaseModel):
    """Everything between an image and a saliency map that is not the network itself.

    An image `(H, W, 3) uint8 RGB` becomes the input `(N, 3, height, width) float32` by: resize to (height, width) with
    `interpolation`, aspect ratio not kept; channels in `colour` order; division by `divide_by`; minus `mean`, divided
    by `std` (both per channel, in `colour` order). The output `(N, 1, height, width)` becomes the saliency map in
    [0, 1] by a sigmoid if it is a logit, then min-max stretching over the map if `stretch`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: str
    input_name: str = "image"
    output_name: str = "saliency"
    batch: int | None = Field(default=1, ge=1, description="None: any batch")
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    dynamic_size: bool = Field(default=False, description="other sizes work too; height and width are the native one")
    colour: Literal["RGB", "BGR"] = "RGB"
    interpolation: Literal["linear", "area"] = "linear"
    divide_by: Literal["255", "max"] = Field(default="255", description="max: the image's own maximum, as U²-Net does")
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    output: Literal["probability", "logit"] = "probability"
    stretch: bool = Field(default=False, description="min-max over the map at the end")

    @model_validator(mode="after")
    def _fits_into_memory(self) -> "Contract":
        size = 12 * (self.batch or 1) * self.height * self.width
        if size > LARGEST_INPUT:
            batch = "" if self.batch in (None, 1) else f"{self.batch} x "
            raise ValueError(
                f"an input of {batch}{self.height} x {self.width} takes {size / 2**30:.1f} GiB, more than "
                f"{LARGEST_INPUT >> 30} GiB"
            )
        return self

    def to_json(self) -> str:
        return self.model_dump_json()


def parse_contract(text: str, source: str | Path) -> Contract:
    """The contract in `text`.

    Raises:
        UserError: it is not one; `source` is named.
    """
    try:
        return Contract.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        problem = f"{source}: contract{' field ' if where else ''}{where}: {said}"
        raise UserError(f"{problem}; write it again: {command('adopt')}") from None


def require_shape(contract: Contract, dims: Sequence[object], source: str | Path) -> None:
    """Raise UserError unless the input that a graph declares is the one in its contract.

    Args:
        dims: the declared dimensions; whatever is no positive number is free.
    """
    wanted = (contract.batch, 3, *((None, None) if contract.dynamic_size else (contract.height, contract.width)))
    fields = ("batch", "channels", "height", "width")
    if len(dims) != len(wanted):
        raise UserError(
            f"{source}: input {contract.input_name} has {len(dims)} dimensions, not 4; see {command('adopt')} --help"
        )
    for name, declared, value in zip(fields, dims, wanted, strict=True):
        if isinstance(declared, int) and declared > 0 and declared != value:
            told = "free" if value is None else value
            raise UserError(
                f"{source}: contract field {name} is {told}, but input {contract.input_name} of the graph takes "
                f"{declared}; write the contract anew: {command('adopt')}"
            )


def calibration_of(metadata: Mapping[str, str], source: str | Path) -> dict[str, Any]:
    """The calibration that a quantized model names in its metadata; {} where it names none.

    Returns:
        `method`, text, and `digests_sha256`, a list of text, as far as they are there.

    Raises:
        UserError: the entry is not what the product writes.
    """
    try:
        found = json.loads(metadata.get(CALIBRATION_KEY) or "null")
    except ValueError as error:
        raise UserError(f"{source}: metadata {CALIBRATION_KEY} is not JSON ({error}); build it again") from None
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise UserError(f"{source}: metadata {CALIBRATION_KEY} is no JSON object; build it again")
    digests, method = found.get("digests_sha256", []), found.get("method", "")
    if not isinstance(digests, list) or not all(isinstance(digest, str) for digest in digests):
        raise UserError(f"{source}: metadata {CALIBRATION_KEY}: digests_sha256 is no list of text; build it again")
    if not isinstance(method, str):
        raise UserError(f"{source}: metadata {CALIBRATION_KEY}: method is no text; build it again")
    return found


def embed(model: "onnx.ModelProto", contract: Contract) -> None:
    """Put `contract` into the metadata of `model`, in the place of an older one."""
    annotate(model, {METADATA_KEY: contract.to_json()})


def annotate(model: "onnx.ModelProto", facts: Mapping[str, str]) -> None:
    """Put `facts` into the metadata of `model`, each in the place of an older one of its key; a key stands once."""
    entries = {entry.key: entry for entry in model.metadata_props}
    for key, value in facts.items():
        if key in entries:
            entries[key].value = value
        else:
            model.metadata_props.add(key=key, value=value)


def contract_of(metadata: dict[str, str], source: str | Path) -> Contract:
    """The contract in an ONNX model's metadata (`{p.key: p.value for p in model.metadata_props}`).

    Raises:
        UserError: there is none, or it is malformed.
    """
    if METADATA_KEY not in metadata:
        raise UserError(
            f"{source} has no sodeploy contract (how its input is normalized and what its output means); "
            f"add one: {command('adopt')} {source} --mean R G B --std R G B --size H W --output OUT.onnx"
        )
    return parse_contract(metadata[METADATA_KEY], source)
