"""The plan: every decision of quantization, once, in a JSON file that a person can read, diff and edit.

Emitters turn (float32 network, plan) into the graph that each engine wants. They decide nothing.
"""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from sodeploy.artifacts import one_line, require_file, sha256, write_text
from sodeploy.errors import UserError
from sodeploy.quant.arrays import read_arrays
from sodeploy.quant.calibration.methods import Method
from sodeploy.quant.graph import Network, attribute
from sodeploy.quant.int8 import FEW_STEPS, SMALLEST_SCALE, STEPS, UINT8_STEPS
from sodeploy.stages import command

Precision = Literal["int8", "fp16", "fp32"]

_ANEW = "make the plan anew: images whose .statistics.npz is at hand are not counted again"


def _is_file_name(name: str) -> str:
    if name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise ValueError(f"{name!r} is no name of a file beside the plan")
    return name


FileName = Annotated[str, AfterValidator(_is_file_name)]


def _holds_zero(interval: tuple[float, float]) -> tuple[float, float]:
    if not interval[0] <= 0 <= interval[1]:
        raise ValueError(f"the interval {interval[0]:g} to {interval[1]:g} does not hold zero")
    return interval


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Range(_Strict):
    """One scale, and the tensors that share it because values pass between them unchanged."""

    tensors: list[str] = Field(min_length=1)
    amax: float = Field(ge=0, description="larger magnitudes are clipped; 0: the tensors hold only zeros")
    shift: float | None = Field(
        default=None, description="subtracted before quantizing; values further than amax from it are clipped"
    )
    maximum: float | None = Field(default=None, ge=0, description="largest magnitude in calibration, where known")
    signed: bool
    clipped: float | None = Field(
        default=None, ge=0, le=1, description="share of the values that are clipped, where known"
    )
    method: Method | None = Field(
        default=None, description="the method that chose amax, where the plan's method would clip most of the signal"
    )
    decibels: float | None = Field(
        default=None, description="signal to noise of the values in int8, predicted from calibration, where known"
    )
    uint8: Annotated[tuple[float, float], AfterValidator(_holds_zero)] | None = Field(
        default=None,
        description="[low, high] in the graphs for CPUs, whose 255 steps may all lie on one side of zero; values "
        "beyond are clipped; null: the interval that amax and shift say",
    )

    @property
    def reach(self) -> float:
        """The largest magnitude that is not clipped."""
        return self.amax + abs(self.shift or 0.0)

    @property
    def uint8_parameters(self) -> tuple[np.float32, np.uint8]:
        """Scale and zero point in the graphs for CPUs. Zero is a step."""
        if self.uint8 is not None:
            low, high = self.uint8
        elif not self.signed and self.shift is None:
            low, high = 0.0, self.amax
        else:
            low, high = (self.shift or 0.0) - self.amax * 128 / STEPS, (self.shift or 0.0) + self.amax
        scale = np.float32(max((high - low) / UINT8_STEPS, SMALLEST_SCALE))
        return scale, np.uint8(np.clip(np.rint(-low / scale), 0, UINT8_STEPS))


class Layer(_Strict):
    """The precision of one node of the ONNX graph, and the reason.

    An int8 Conv or Gemm has a scale per output channel of its weight. `bias_correction` and `input_correction` are
    added to its bias, so that rounding the weight and quantizing the input do not shift the mean output. The graphs for
    CPUs, which quantize the input to uint8, add `input_correction_uint8` instead. `input_means` holds the mean of each
    input channel, for graphs that must round the weight again. An int8 Add has none of these.
    """

    op: str
    precision: Precision
    reason: str
    bf16: bool | None = Field(
        default=None, description="true: fp32 only for fp16's range, so that the bf16 graph has the node in bf16"
    )
    weight_scales: list[float] | None = None
    bias_correction: list[float] | None = None
    input_correction: list[float] | None = None
    input_correction_uint8: list[float] | None = None
    input_means: list[float] | None = None
    _rounded: dict[int, bytes] = PrivateAttr(default_factory=dict)  # weight steps -> values

    def rounded(self, weight_steps: int = STEPS) -> np.ndarray | None:
        """The jointly rounded weight, flat int8, of `weight_steps` on each side of zero; None: nearest steps."""
        values = self._rounded.get(weight_steps)
        return None if values is None else np.frombuffer(values, np.int8)

    def take_rounded(self, node: str, rounded: Mapping[str, np.ndarray]) -> None:
        """Keep what `rounded` holds for the layer: for every number of weight steps, by the key `rounded_key`."""
        for count in (STEPS, FEW_STEPS):
            if (key := rounded_key(node, count)) in rounded:
                self._rounded[count] = rounded[key].astype(np.int8).tobytes()


def rounded_key(node: str, weight_steps: int = STEPS) -> str:
    """The name of a node's rounded weight in the file beside the plan."""
    return node if weight_steps == STEPS else f"{node} in {weight_steps} steps"


class Calibration(_Strict):
    """The method of calibration and its images."""

    method: Method | Literal["calib.cache"]
    images: dict[str, str] = Field(
        description="sha256 of an image's content -> its name in the data set; none for a calib.cache"
    )


class Rounding(_Strict):
    """The file beside the plan with the jointly rounded int8 weights (planning/rounding.py)."""

    file: FileName
    sha256: str


# Graphs with decisions of their own (sodeploy.quant.planning.targets).
TargetName = Literal["cpu", "openvino"]


class TargetLayer(_Strict):
    """The precision or the form of one node in one graph only, and the reason."""

    precision: Precision
    form: Literal["shifted planes", "two int8 parts"] | None = Field(
        default=None, description="None: as in the float32 network"
    )
    reason: str


class TargetPlan(_Strict):
    """Decisions that hold in one graph only; everything else is as the plan says."""

    weight_steps: int = Field(ge=1, le=STEPS, description="steps of an int8 weight on each side of zero")
    quantizes_outputs: bool = Field(
        default=True, description="also the results of int8 layers that no int8 layer reads"
    )
    unquantized: list[str] = Field(
        default=[], description="operators, such as Resize, whose inputs are not quantized for them"
    )
    layers: dict[str, TargetLayer]


class Plan(_Strict):
    """All decisions for one network.

    Nodes without an entry in `layers` run in fp16 in an engine and in fp32 on a CPU.
    """

    format: Literal[1] = 1
    network: str
    onnx: FileName = Field(description="file name of the float32 network")
    onnx_sha256: str
    calibration: Calibration | None = Field(default=None, description="None: no layer is int8")
    rounding: Rounding | None = Field(default=None, description="None: every weight takes its nearest step")
    ranges: list[Range]
    layers: dict[str, Layer]
    targets: dict[TargetName, TargetPlan] = Field(default={}, description="decisions for one graph alone")

    @classmethod
    def without_int8(cls, network: Network, layers: Mapping[str, Layer] | None = None) -> "Plan":
        """A plan of fp16 alone, except for some layers in fp32."""
        return cls(
            network=network.contract.network,
            onnx=network.path.name,
            onnx_sha256=network.digest,
            calibration=None,
            ranges=[],
            layers=dict(layers or {}),
        )

    def range_of(self) -> dict[str, Range]:
        """tensor -> its range."""
        return {tensor: shared for shared in self.ranges for tensor in shared.tensors}

    def needs_fp32(self) -> set[str]:
        """Names of the nodes in fp32 that bf16 would change too."""
        return {name for name in self.nodes("fp32") if not self.layers[name].bf16}

    def nodes(self, precision: Precision) -> set[str]:
        """Names of the nodes that run in `precision`."""
        return {name for name, layer in self.layers.items() if layer.precision == precision}

    def target(self, name: TargetName) -> TargetPlan:
        """The decisions for one graph.

        Raises:
            UserError: an older version made the plan, or an edit removed them.
        """
        if name not in self.targets:
            raise UserError(f"the plan of {self.onnx} has no decisions for the {name} graph; {_ANEW}")
        return self.targets[name]


def short(value: float) -> float:
    """The value with nine significant digits, enough to restore any float32."""
    return float(f"{value:.9g}")


def save_plan(plan: Plan, path: str | Path) -> None:
    """Write the plan with a line per range and per layer, so that text tools compare two plans well."""
    fields = plan.model_dump(mode="json", exclude_none=True)
    ranges, layers, targets = fields.pop("ranges"), fields.pop("layers"), fields.pop("targets")
    head = json.dumps(fields, indent=1)[:-2]
    text = f"""{head},
 "ranges": [{_lines(_one_line(entry) for entry in ranges)}],
 "layers": {{{_lines(f"{json.dumps(name)}: {_one_line(entry)}" for name, entry in layers.items())}}},
 "targets": {{{_lines(f"{json.dumps(name)}: {_target_lines(entry)}" for name, entry in targets.items())}}}
}}
"""
    write_text(path, text)


def _target_lines(target: dict[str, Any]) -> str:
    """A target as JSON, with a line per layer."""
    layers = ",".join(f"\n   {json.dumps(name)}: {_one_line(entry)}" for name, entry in target["layers"].items())
    head = json.dumps({field: value for field, value in target.items() if field != "layers"})[:-1]
    return f'{head}, "layers": {{{layers}}}}}'


def read_plan(path: str | Path) -> Plan:
    """Read a plan of any network.

    Raises:
        UserError: the file is missing, or not a plan (the field is named).
    """
    path = require_file(path, f"make a plan: {command('build_engine')} --int8")
    try:
        return Plan.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = " / ".join(map(str, first["loc"])) or "the file"
        said = one_line(first["msg"].removeprefix("Value error, "))
        raise UserError(f"{path}: {one_line(where)}: {said}; undo the edit or make the plan anew") from None


def load_plan(path: str | Path, network: Network) -> Plan:
    """Read a plan of `network`, with its rounded weights.

    Raises:
        UserError: as `read_plan`; or the plan is for another network, names a missing node, or cannot be followed.
    """
    plan = read_plan(path)
    if plan.onnx_sha256 != network.digest:
        raise UserError(
            f"{path} was made for {plan.onnx} (sha256 {plan.onnx_sha256[:12]}), not for {network.path} "
            f"(sha256 {network.digest[:12]}); make a plan for this file: {command('build_engine')} --int8"
        )
    _check_names(plan, path, network)
    _check_targets(plan, path, network)
    if plan.rounding is not None:
        file = Path(path).with_name(plan.rounding.file)
        steps = read_steps(file, plan.rounding)
        _check_steps(steps, file, network)
        attach(plan, steps, network)
    return plan


def _check_steps(steps: dict[str, np.ndarray], file: Path, network: Network) -> None:
    """Refuse rounded weights of another type or size than the weights that they stand for."""
    for node in network.nodes:
        if not network.is_weighted(node):
            continue
        size = prod(network.weight_shape(node))
        for key in (rounded_key(node.name, count) for count in (STEPS, FEW_STEPS)):
            if key in steps and (steps[key].dtype != np.int8 or steps[key].size != size):
                raise UserError(
                    f"{file}: {key} has {steps[key].size} values of {steps[key].dtype}, and its weight {size}, which "
                    "are int8 there; make the plan anew"
                )


def read_steps(path: Path, wanted: Rounding) -> dict[str, np.ndarray]:
    """`rounded_key` -> int8 steps, from a file that `sodeploy.quant.planning.rounding.round_to_file` wrote.

    Raises:
        UserError: the file is missing or has changed since the plan was made.
    """
    remedy = "it holds the plan's rounded weights: keep the file that was made with the plan, or make the plan anew"
    if sha256(require_file(path, remedy)) != wanted.sha256:
        raise UserError(f"{path} is not the file that the plan was made with; make the plan anew")
    return read_arrays(path, "rounded weights", remedy)


def attach(plan: Plan, steps: dict[str, np.ndarray], network: Network) -> None:
    """Give the plan's int8 layers their rounded weights."""
    for node in network.nodes:
        layer = plan.layers.get(node.name)
        if layer is not None and layer.precision == "int8":
            layer.take_rounded(node.name, steps)


def _check_names(plan: Plan, path: str | Path, network: Network) -> None:
    nodes = {node.name: node for node in network.nodes}
    ranges = plan.range_of()
    for name, layer in plan.layers.items():
        node = nodes.get(name)
        if node is None:
            raise UserError(f"{path}: layer {name} is no node of {network.path}; remove the entry")
        if layer.precision != "int8":
            continue
        if node.op_type not in ("Conv", "Gemm", "Add"):
            raise UserError(f"{path}: layer {name} is a {node.op_type}, which has no int8 form here; set it to fp16")
        read = node.input if node.op_type == "Add" else node.input[:1]
        if missing := [tensor for tensor in read if tensor not in ranges]:
            raise UserError(
                f"{path}: int8 layer {name} reads {missing[0]}, for which there is no range; set it to fp16"
            )
        if node.op_type == "Add" and any(ranges[tensor].shift is not None for tensor in read):
            raise UserError(f"{path}: the range of {read[0]}, which {name} adds up in int8, cannot have a shift")
        if node.op_type != "Add":
            channels = network.weight_shape(node)[0] if node.op_type == "Conv" else None
            scales = layer.weight_scales
            if not scales or (channels and len(scales) != channels) or min(scales) <= 0:
                raise UserError(f"{path}: int8 layer {name} needs {channels} positive weight_scales; undo the edit")
            means = network.weight_shape(node)[1] * attribute(node, "group", 1) if node.op_type == "Conv" else None
            lengths = {"bias_correction": len(scales), "input_correction": len(scales), "input_means": means}
            lengths["input_correction_uint8"] = len(scales)
            for field, length in lengths.items():
                values = getattr(layer, field)
                if values is not None and length is not None and len(values) != length:
                    raise UserError(f"{path}: layer {name}: {field} must have {length} values; undo the edit")


def _check_targets(plan: Plan, path: str | Path, network: Network) -> None:
    missing = [name for name in get_args(TargetName) if name not in plan.targets]
    if plan.calibration is not None and missing:
        raise UserError(f"{path} has no decisions for the {missing[0]} graph, as plans of older versions; {_ANEW}")
    nodes = {node.name: node for node in network.nodes}
    for target, decisions in plan.targets.items():
        for name, layer in decisions.layers.items():
            if name not in nodes:
                raise UserError(f"{path}: targets / {target}: {name} is no node of {network.path}; remove the entry")
            if (layer.precision == "int8") != (layer.form == "two int8 parts"):
                raise UserError(f"{path}: targets / {target}: {name} cannot be int8 in it alone; set it in layers")
            if layer.form is not None and nodes[name].op_type != "Conv":
                raise UserError(f"{path}: targets / {target}: {name} is no Conv and has no other form; undo the edit")


def _one_line(entry: dict[str, Any]) -> str:
    return json.dumps(entry)


def _lines(entries: Any) -> str:
    return "".join(f"{separator}\n  {entry}" for separator, entry in zip(_separators(), entries, strict=False)) + "\n "


def _separators() -> Any:
    yield ""
    while True:
        yield ","
