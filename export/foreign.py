"""A foreign file opened and understood: its way of running, the output that is its map, the flat graph made of it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from sodeploy import terminal
from sodeploy.errors import UserError
from sodeploy.export import adapters, upgrade
from sodeploy.export.control_flow import flatten
from sodeploy.export.normal_form import free_dims, normal_form, weights_are_no_inputs
from sodeploy.export.original import Original, Refused, batch_that_works, remedy_for_size
from sodeploy.export.output_form import OutputForm, adapt_output, is_hard, output_form
from sodeploy.export.output_range import origin_of
from sodeploy.export.parity import Shape, inputs
from sodeploy.export.simplify import IR_VERSION
from sodeploy.runtime import onnx_floats
from sodeploy.runtime.contract import LARGEST_INPUT
from sodeploy.runtime.onnx_file import all_nodes, one_line, read_model


@dataclass
class Foreign:
    """A foreign file, opened: its graph, its sessions, and the remarks about it.

    Attributes:
        original: the file as it is in plain onnxruntime.
        widened: the same weights in float32, for a file of another float type; else `original`.
        given_ir: the version of ONNX's format in the file.
        remarks: facts that a person may want to know, a line each.
    """

    path: Path
    model: onnx.ModelProto
    form: adapters.InputForm
    original: Original
    widened: Original
    given_ir: int
    remarks: list[str] = field(default_factory=list)

    @property
    def dims(self) -> list[int | str]:
        """The declared N, C, H, W: numbers, and names of what is free."""
        dims = self.model.graph.input[0].type.tensor_type.shape.dim
        return self.form.dims([dim.dim_value or dim.dim_param or "*" for dim in dims])


def open_foreign(path: str | Path) -> Foreign:
    """Read a file, bring it into one spelling, and open it in plain onnxruntime.

    Raises:
        UserError: it is no float ONNX model of one image that onnxruntime runs.
    """
    path = Path(path)
    given = read_model(path)
    if upgrade.opset_of(given) > (newest := onnx.defs.onnx_opset_version()):
        raise UserError(
            f"{path} has opset {upgrade.opset_of(given)}, onnx {onnx.__version__} knows up to {newest}; export it lower"
        )
    kinds = {node.op_type for node in all_nodes(given)}
    if any("QuantizeLinear" in kind or kind.startswith("QLinear") or kind.endswith("Integer") for kind in kinds):
        raise UserError(f"{path} is quantized; adopt the float model and quantize that with quant/build_engine.py")
    weights_are_no_inputs(given)
    in_memory = free_dims(given) or given.ir_version > IR_VERSION
    form = adapters.input_form(given, path)
    model, remarks = normal_form(given, path)
    floats = onnx_floats.other_floats(model)
    # A file in training mode does not compute what it will when it is deployed.
    in_memory |= any("training mode" in remark for remark in remarks)
    wide = copy.deepcopy(model)
    onnx_floats.to_float32(wide)
    try:
        original = Original(model if in_memory else path, form, path)
        widened = Original(wide, form, path) if floats else original
    except Refused as refused:
        if not floats or floats == ["float16"]:
            raise UserError(str(refused)) from None
        try:
            original = widened = Original(wide, form, path)
        except Refused:
            raise UserError(str(refused)) from None
        remarks.append(f"onnxruntime does not run {floats[0]} everywhere; the same weights in float32 were compared")
    if not form.is_plain:
        remarks.append(f"its input is {form}; the adopted graph takes (N, 3, H, W) float32")
    return Foreign(path, model, form, original, widened, given.ir_version, remarks)


@dataclass(frozen=True)
class Choices:
    """The answers of the user to the questions that a file leaves open.

    Attributes:
        size: the native (height, width) in pixels; a graph of dynamic size is fixed to it unless `dynamic_size`.
        usual_size: taken where neither the file nor `size` says one.
        batch: fixes a dynamic batch; by default it stays as it is.
        dynamic_size: the graph keeps its dynamic size.
        output_tensor: the name of the output that is the saliency map; may be left out where there is only one.
        first_output: of several outputs the first is the map.
        logit: that output is a logit, not a probability.
        channel: the channel of that output that is the map; by default the second of two.
    """

    size: tuple[int, int] | None = None
    usual_size: tuple[int, int] | None = None
    batch: int | None = None
    dynamic_size: bool = False
    output_tensor: str | None = None
    first_output: bool = False
    logit: bool = False
    channel: int | None = None


@dataclass(frozen=True)
class Understood:
    """The form of a file's map at one size.

    Attributes:
        batch: the only batch that the graph takes; None if it takes any.
        output: the name of the map.
        kind: the element type of that output in ONNX's numbering.
    """

    size: tuple[int, int]
    batch: int | None
    output: str
    form: OutputForm
    kind: int


def understand(foreign: Foreign, choices: Choices, prepare: Callable[[np.ndarray], np.ndarray]) -> Understood:
    """Run the file and find out which output is the map, in which form, and for which sizes and batches.

    Args:
        prepare: turns a normalized image into the network's input.

    Raises:
        UserError: the file does not take the size or the batch, or has no such output.
    """
    path = foreign.path
    size = _chosen_size(foreign, choices)
    if 12 * (choices.batch or 1) * size[0] * size[1] > LARGEST_INPUT:
        raise UserError(f"{path}: an input of {size[0]}x{size[1]} takes more than 4 GiB; give a smaller --size")
    output = chosen_output(foreign, choices)
    batch = _chosen_batch(foreign, choices, size, output)
    found, shape = _run_once(foreign, batch, size, output, prepare)
    where = f"{path}: output {output}"
    form = output_form(found, shape, choices.logit, choices.channel, where, origin_of(foreign.model, output))
    if str(form):
        foreign.remarks.append(f"output {output}: {form}")
    if is_hard(form.from_file(found)) and np.ptp(found.astype(np.float64)) > 0:
        terminal.warn(
            f"{where} has two values only, so it is a hard label without shades, of which thresholds and most metrics "
            "say little; better export the network without that last step (ArgMax, a comparison or a rounding)"
        )
    return Understood(size, batch, output, form, onnx.helper.np_dtype_to_tensor_dtype(found.dtype))


def _chosen_size(foreign: Foreign, choices: Choices) -> tuple[int, int]:
    """The size that the user wants, else the file's own, else the usual one of networks like it."""
    path, sides = foreign.path, foreign.dims[2:]
    fixed = [side for side in sides if isinstance(side, int)]
    if choices.size is None and choices.usual_size is None and len(fixed) < 2:
        takes = f"{sides[0]}x{sides[1]}, a side of any size" if fixed else "any size"
        raise UserError(f"{path} takes {takes}; say which is its native one: --size H W")
    usual = choices.size or choices.usual_size or (0, 0)
    height, width = (side if isinstance(side, int) else other for side, other in zip(sides, usual, strict=True))
    size = choices.size or (height, width)
    if choices.dynamic_size and fixed:
        raise UserError(f"{path} takes {'x'.join(map(str, sides))} only; leave --dynamic-size out")
    for name, wanted, taken in (("size", size, sides), ("batch", (choices.batch,), foreign.dims[:1])):
        if any(isinstance(own, int) and one not in (None, own) for one, own in zip(wanted, taken, strict=True)):
            given, only = "x".join(map(str, wanted)), "x".join(map(str, taken))
            raise UserError(f"{path} takes a {name} of {only} only, not {given}; leave --{name} out")
    if choices.size is None and choices.usual_size not in (None, size):
        foreign.remarks.append(f"it takes {size[0]}x{size[1]} only, where {usual[0]}x{usual[1]} is usual")
    return size


def _chosen_batch(foreign: Foreign, choices: Choices, size: tuple[int, int], output: str) -> int | None:
    """The batch that the file or the user fixes, or the only one that the graph takes; None if it takes any."""
    declared = foreign.dims[0]
    if isinstance(declared, int) or choices.batch is not None:
        return declared if isinstance(declared, int) else choices.batch
    try:
        batch = batch_that_works(foreign.original, size, output)
    except UserError:
        batch = 1  # a run says why not
    if batch is not None:
        foreign.remarks.append(
            f"its batch is declared free, but the graph takes {batch} only; the batch is fixed to {batch}"
        )
    return batch


def _run_once(
    foreign: Foreign,
    batch: int | None,
    size: tuple[int, int],
    output: str,
    prepare: Callable[[np.ndarray], np.ndarray],
) -> tuple[np.ndarray, Shape]:
    """The output for a drawn scene, and the shape of that input."""
    path, shape = foreign.path, (batch or 1, 3, *size)
    image = prepare(inputs([shape])[0])
    try:
        found = foreign.original.run(image, output)
    except Refused as refused:
        helps = remedy_for_size(foreign.original, foreign.dims, shape[0], size, output)
        raise UserError(
            f"{path} does not take a batch of {shape[0]} at {size[0]}x{size[1]}; {helps} (onnxruntime: {refused})"
        ) from None
    if not np.isfinite(found.astype(np.float64)).all():
        found = foreign.widened.run(image, output)
    if not np.isfinite(found.astype(np.float64)).all():
        raise UserError(f"{path} gives NaN or infinite values itself for an input {image.shape}: bad weights?")
    return found, shape


def chosen_output(foreign: Foreign, choices: Choices) -> str:
    """The output that is the map: the one named, the only one, or with `first_output` the first of several."""
    name, outputs = choices.output_tensor, {value.name: value for value in foreign.model.graph.output}
    listed = ", ".join(f"{key} ({shape_text(value)})" for key, value in outputs.items())
    if name is None and len(outputs) > 1 and not choices.first_output:
        raise UserError(f"{foreign.path} has several outputs; name the map with --output-tensor: {listed}")
    chosen = name if name is not None else next(iter(outputs), "")
    if chosen not in outputs:
        raise UserError(f"{foreign.path} has no output {chosen}; it has: {listed or 'none'}")
    if name is None and len(outputs) > 1:
        foreign.remarks.append(f"of its outputs the first, {chosen}, is the map; all: {listed}")
    return str(chosen)


def shape_text(value: onnx.ValueInfoProto) -> str:
    """The declared shape of a tensor: 1x3x320x320, with names or * for what is free."""
    if not value.type.tensor_type.HasField("shape"):
        return "of no declared shape"
    return "x".join(str(dim.dim_value or dim.dim_param or "*") for dim in value.type.tensor_type.shape.dim)


def flat_graph(foreign: Foreign, understood: Understood, dynamic_size: bool) -> onnx.ModelProto:
    """The file's graph in float32 and a current opset, flat, its input and output as the contract wants them."""
    model = copy.deepcopy(foreign.model)
    graph = model.graph
    for value in [value for value in graph.output if value.name != understood.output]:
        graph.output.remove(value)
    adapters.adapt_input(model, foreign.form)
    dims = graph.input[0].type.tensor_type.shape.dim
    wanted = (understood.batch, 3, *((None, None) if dynamic_size else understood.size))
    for index, (dim, value) in enumerate(zip(dims, wanted, strict=True)):
        dim.Clear()
        if value is not None:
            dim.dim_value = value
        else:
            dim.dim_param = "nchw"[index]
    del graph.value_info[:]
    # The dimensions are inferred anew.
    rank = len(understood.form.layout)
    graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(understood.output, understood.kind, [None] * rank))
    foreign.remarks.extend(flatten(model, foreign.path))
    onnx_floats.to_float32(model)  # before the opset: older ones have no bf16 for most operators
    model = upgrade.set_opset(model, foreign.path)
    kind = onnx.TensorProto.FLOAT if understood.form.is_float else understood.kind
    model.graph.output[0].type.tensor_type.elem_type = kind
    adapt_output(model, understood.form, understood.output)
    try:
        upgrade.drop_idle_casts(model)
    except Exception as error:  # onnx's errors have no base class in common
        raise UserError(f"{foreign.path}: its shapes contradict one another ({one_line(error)})") from None
    return model
