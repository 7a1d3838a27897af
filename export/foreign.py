"""A foreign file opened and understood: how it is run, which output is its map, and the flat graph made of it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from sodeploy.errors import UserError
from sodeploy.export import adapters, upgrade
from sodeploy.export.control_flow import flatten
from sodeploy.export.normal_form import normal_form, weights_are_no_inputs
from sodeploy.export.original import Original, Refused, batch_that_works, sizes_near
from sodeploy.export.parity import inputs
from sodeploy.runtime.contract import LARGEST_INPUT
from sodeploy.runtime.onnx_file import all_nodes, one_line, read_model


@dataclass
class Foreign:
    """A foreign file, opened: its graph, how it is run, and what was found out about it.

    Attributes:
        original: the file as it is in plain onnxruntime.
        widened: the same weights in float32, for a file of another float type; else `original`.
        given_ir: the version of ONNX's format in the file.
        remarks: what a person may want to know, a line each.
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
    form = adapters.input_form(given, path)
    model, remarks = normal_form(given, path)
    floats = upgrade.other_floats(model)
    trained = any("training mode" in remark for remark in remarks)
    wide = copy.deepcopy(model)
    upgrade.to_float32(wide)
    try:
        # A file in training mode does not compute what it will when it is deployed.
        original = Original(model if trained else path, form)
        widened = Original(wide, form) if floats else original
    except Refused as refused:
        if not floats or floats == ["float16"]:
            raise UserError(str(refused)) from None
        try:
            original = widened = Original(wide, form)
        except Refused:
            raise UserError(str(refused)) from None
        remarks.append(
            f"onnxruntime does not run its {floats[0]} ({refused}); the same weights in float32 were compared"
        )
    if not form.is_plain:
        remarks.append(f"its input is {form}; the adopted graph takes (N, 3, H, W) float32")
    return Foreign(path, model, form, original, widened, given.ir_version, remarks)


@dataclass(frozen=True)
class Understood:
    """What a file takes and gives at one size.

    Attributes:
        batch: the only batch that the graph takes; None if it takes any.
        output: the name of the map.
        kind: the element type of that output in ONNX's numbering.
    """

    size: tuple[int, int]
    batch: int | None
    output: str
    form: adapters.OutputForm
    kind: int


def understand(
    foreign: Foreign,
    size: tuple[int, int] | None,
    prepare: Callable[[np.ndarray], np.ndarray],
    *,
    batch: int | None = None,
    dynamic_size: bool = False,
    output_tensor: str | None = None,
    first_output: bool = False,
    logit: bool = False,
    channel: int | None = None,
) -> Understood:
    """Run the file and find out which output is the map, in which form, and for which sizes and batches.

    Args:
        prepare: turns a normalized image into what the network takes.
        first_output: of several outputs the first is the map.

    Raises:
        UserError: the file does not take the size or the batch, or has no such output.
    """
    path, (_, _, height, width) = foreign.path, foreign.dims
    fixed = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    size = size or fixed
    if size is None:
        raise UserError(f"{path} takes any size; say which is its native one: --size H W")
    if dynamic_size and fixed:
        raise UserError(f"{path} takes {height}x{width} only; leave --dynamic-size out")
    _require_declared(foreign, batch, size)
    if 12 * (batch or 1) * size[0] * size[1] > LARGEST_INPUT:
        raise UserError(f"{path}: an input of {size[0]}x{size[1]} takes more than 4 GiB; give a smaller --size")
    outputs = chosen_output(foreign, output_tensor, first_output)
    declared = foreign.dims[0]
    batch = declared if isinstance(declared, int) else batch
    original = foreign.original
    if batch is None:
        try:
            batch = batch_that_works(original, size, outputs)
        except UserError:
            batch = 1  # the run below says why not
        if batch is not None:
            foreign.remarks.append(
                f"its batch is declared free, but the graph takes {batch} only; the batch is fixed to {batch}"
            )
    shape = (batch or 1, 3, *size)
    image = prepare(inputs([shape])[0])
    try:
        found = original.run(image, outputs)
    except Refused as refused:
        step, near = sizes_near(original, shape[0], size, outputs)
        helps = (
            f"its sides must be multiples of {step}: --size " + " or --size ".join(f"{h} {w}" for h, w in near)
            if near
            else "give another --size or --batch"
        )
        raise UserError(
            f"{path} does not take a batch of {shape[0]} at {size[0]}x{size[1]}; {helps} (onnxruntime: {refused})"
        ) from None
    where = f"{path}: output {outputs}"
    maker = next((node.op_type for node in foreign.model.graph.node if outputs in node.output), "")
    if logit and maker in ("Sigmoid", "HardSigmoid"):
        raise UserError(f"{where} is the result of a {maker}, so a probability already; leave --logit out")
    if not np.isfinite(found.astype(np.float64)).all():
        found = foreign.widened.run(image, outputs)
    if not np.isfinite(found.astype(np.float64)).all():
        raise UserError(f"{path} gives NaN or infinite values itself for an input {image.shape}: bad weights?")
    form = adapters.output_form(found, image.shape, logit, channel, where)
    if form.divide_by or form.channel is not None or form.layout != "nchw" or not form.is_float:
        foreign.remarks.append(f"output {outputs}: {form}")
    kind = onnx.helper.np_dtype_to_tensor_dtype(found.dtype)
    return Understood(size, batch, outputs, form, kind)


def chosen_output(foreign: Foreign, name: str | None, first: bool) -> str:
    """The output that is the map: the one named, the only one, or with `first` the first of several."""
    outputs = {value.name: value for value in foreign.model.graph.output}
    listed = ", ".join(f"{key} ({shape_text(value)})" for key, value in outputs.items())
    if name is None and len(outputs) > 1 and not first:
        raise UserError(f"{foreign.path} has several outputs; name the map with --output-tensor: {listed}")
    chosen = name if name is not None else next(iter(outputs), "")
    if chosen not in outputs:
        raise UserError(f"{foreign.path} has no output {chosen}; it has: {listed or 'none'}")
    if name is None and len(outputs) > 1:
        foreign.remarks.append(f"of its outputs the first, {chosen}, is the map; all: {listed}")
    return str(chosen)


def shape_text(value: onnx.ValueInfoProto) -> str:
    """The declared shape of a tensor: 1x3x320x320, with names or * for what is free."""
    return "x".join(str(dim.dim_value or dim.dim_param or "*") for dim in value.type.tensor_type.shape.dim)


def _require_declared(foreign: Foreign, batch: int | None, size: tuple[int, int]) -> None:
    wanted = (batch, 3, *size)
    for dim, value in zip(foreign.dims, wanted, strict=True):
        if value is not None and isinstance(dim, int) and dim != value:
            takes = "x".join(map(str, foreign.dims))
            text = "x".join("*" if value is None else str(value) for value in wanted)
            raise UserError(f"{foreign.path} takes {takes} only, not {text}; give what it takes")


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
    for dim in graph.output[0].type.tensor_type.shape.dim:
        dim.Clear()  # inferred anew
    foreign.remarks.extend(flatten(model, foreign.path))
    model = upgrade.set_opset(model, foreign.path)
    upgrade.to_float32(model)
    kind = onnx.TensorProto.FLOAT if understood.form.is_float else understood.kind
    model.graph.output[0].type.tensor_type.elem_type = kind
    adapters.adapt_output(model, understood.form, understood.output)
    try:
        upgrade.drop_idle_casts(model)
    except Exception as error:  # onnx's errors have no base class in common
        raise UserError(f"{foreign.path}: its shapes contradict one another ({one_line(error)})") from None
    return model
