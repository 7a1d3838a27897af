"""What a model expects of its input and means by its output, carried by the model itself.

The contract is JSON in the ONNX metadata (key `sodeploy.contract`) and in the manifest beside an engine. Calibration,
bench, inference, serving and the CUDA kernels all read it from the model; no flag or constant repeats it. The other
keys that our graphs carry are listed here too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from sodeploy.errors import UserError
from sodeploy.stages import command

if TYPE_CHECKING:
    import onnx

METADATA_KEY = "sodeploy.contract"
PRECISION_KEY = "sodeploy.precision"  # fp32 | fp16 | int8; absent: fp32
DIALECT_KEY = "sodeploy.dialect"  # of a quantised graph: tensorrt | cpu | simulation
CALIBRATION_KEY = "sodeploy.calibration"  # JSON: what the ranges of a quantised graph were measured on


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
    mean: tuple[float, float, float]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    output: Literal["probability", "logit"] = "probability"
    stretch: bool = Field(default=False, description="min-max over the map at the end")

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
        where = ".".join(map(str, first["loc"])) or "text"
        problem = f"{source}: contract field {where}: {first['msg']}"
        raise UserError(f"{problem}; write it again: {command('adopt')}") from None


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
