"""Examine an ONNX file, and propose the `adopt` command for it.

    python export/doctor.py theirs.onnx --data ECSSD

How an image must be normalized does not stand in a file. The common ways are tried on a few images with masks; the one
whose maps agree best with the masks is proposed.
"""

import copy
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from onnx import TensorProto, helper, numpy_helper

from sodeploy import command_line, terminal
from sodeploy.calib_data import Dataset, open_dataset
from sodeploy.calib_data.mask_sets import check_masks
from sodeploy.calib_data.options import LimitOption, RootOption
from sodeploy.errors import UserError, first_few
from sodeploy.export import upgrade
from sodeploy.export.foreign import Foreign, Understood, flat_graph, open_foreign, shape_text
from sodeploy.export.number_options import HELP, NumbersCommand, parse_size
from sodeploy.export.original import COMMON_SIZES, Refused
from sodeploy.export.output_form import OutputForm, output_form
from sodeploy.export.output_range import Origin, origin_of
from sodeploy.export.simplify import simplify
from sodeploy.runtime import onnx_floats
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.engine_operators import unknown_to_engines
from sodeploy.runtime.onnx_session import start_session
from sodeploy.runtime.processing import postprocess, preprocess
from sodeploy.stages import command

_SYNTHETIC = "synthetic:eval:4"
_LARGEST_HALF, _LEAST_HALF = 65504.0, 2.0**-14  # fp16: the largest number, and the least of full precision
_CLOSE = 0.02  # two normalizations whose correlations differ by less cannot be told apart

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
# The common ways to normalize an image, and where they come from.
NORMALIZATIONS: dict[str, dict[str, Any]] = {
    "ImageNet": _IMAGENET,
    "ImageNet, divided by the image's maximum (U²-Net)": {**_IMAGENET, "divide_by": "max"},
    "ImageNet, BGR": {**_IMAGENET, "colour": "BGR"},
    "minus 0.5 (IS-Net, RMBG)": {"mean": (0.5, 0.5, 0.5), "std": (1.0, 1.0, 1.0)},
    "-1 to 1": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "0 to 1": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    "0 to 255": {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)},
}


@dataclass
class Candidate:
    """One output read after one normalization. `agreement` is the mean correlation of its maps with the masks."""

    output: str
    logit: bool
    form: OutputForm
    normalization: str
    kind: int
    agreement: float


@dataclass
class Diagnosis:
    """The findings about a file: the lines to print, and the adopt command."""

    lines: list[str] = field(default_factory=list)
    command: str = ""

    def say(self, label: str, text: object) -> None:
        self.lines.append(f"{label + ':':<15}{text}")


def diagnose(path: str | Path, data: Dataset, size: tuple[int, int] | None = None) -> Diagnosis:
    """Examine a file.

    Args:
        data: a few images with masks.
        size: (height, width) to run it at, for a file that takes any; by default the first common size that works.

    Raises:
        UserError: the file is broken, no network of one image, or runs at no common size.
    """
    found = Diagnosis()
    foreign = open_foreign(path)
    model = foreign.model
    producer = " ".join(text for text in (model.producer_name, model.producer_version) if text) or "unknown"
    found.say("file", f"{path}: opset {upgrade.opset_of(model)}, IR {foreign.given_ir}, made by {producer}")
    floats = onnx_floats.other_floats(model)
    weights = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    found.say("weights", f"{weights / 1e6:.2f} million numbers, {', '.join(floats) or 'float32'}")
    value = model.graph.input[0]
    kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    found.say("input", f"{value.name} {shape_text(value)} {kind}" + (f" ({foreign.form})" if str(foreign.form) else ""))
    for output in model.graph.output:
        found.say("output", f"{output.name} {shape_text(output)}")

    batch, size = _working_size(foreign, size)
    candidates = _candidates(foreign, data, batch, size)
    if not candidates:
        raise UserError(
            f"{path}: no output is one map of the size {size[0]}x{size[1]} per image; its outputs are "
            + ", ".join(f"{output.name} {shape_text(output)}" for output in model.graph.output)
        )
    best = max(candidates, key=lambda candidate: candidate.agreement)
    about = [*(["a logit"] if best.logit else ["a probability"]), *([str(best.form)] if str(best.form) else [])]
    found.say("map", f"{best.output}: {'; '.join(about)}")
    _say_normalizations(found, foreign, candidates, best)

    understood = Understood(size, batch, best.output, best.form, best.kind)
    graph = simplify(flat_graph(foreign, understood, dynamic_size=False), str(path))
    for remark in foreign.remarks:
        found.say("note", remark)
    for line in unknown_to_engines(graph) or ["TensorRT and TensorRT-RTX know every operator of the adopted graph"]:
        found.say("engines", line)
    _say_ranges(found, graph, foreign, best, data, size)
    found.command = _adopt_command(foreign, best, size)
    return found


def _working_size(foreign: Foreign, size: tuple[int, int] | None) -> tuple[int, tuple[int, int]]:
    """A batch and a size at which the file runs."""
    declared, _, height, width = foreign.dims
    batch = declared if isinstance(declared, int) else 1
    outputs = foreign.original.outputs
    sizes = [size] if size else [(side, side) for side in COMMON_SIZES]
    if isinstance(height, int) or isinstance(width, int):
        sides = (height if isinstance(height, int) else int(width), width if isinstance(width, int) else int(height))
        sizes = [sides]
    for tried in sizes:
        if foreign.original.takes((batch, 3, *tried), outputs[0]):
            return batch, tried
    listed = ", ".join(f"{height}x{width}" for height, width in sizes)
    raise UserError(f"{foreign.path} runs at none of {listed}; give the size that it takes: --size H W")


def _contract(normalization: str, size: tuple[int, int], logit: bool = False) -> Contract:
    fields = NORMALIZATIONS[normalization]
    return Contract(network="?", height=size[0], width=size[1], output="logit" if logit else "probability", **fields)


def _candidates(foreign: Foreign, data: Dataset, batch: int, size: tuple[int, int]) -> list[Candidate]:
    """Every output that is a map, after every normalization."""
    names = ["0 to 255"] if foreign.form.integer is not None else list(NORMALIZATIONS)
    samples = [(sample.image(), sample.mask()) for sample in data]
    origins = {output: origin_of(foreign.model, output) for output in foreign.original.outputs}
    candidates = []
    for name in terminal.progress(names, "trying normalizations"):
        agreements: dict[str, list[float]] = {}
        forms: dict[str, tuple[OutputForm, bool, int]] = {}
        for image, mask in samples:
            given = np.repeat(preprocess(image, _contract(name, size))[None], batch, axis=0)
            try:
                results = foreign.original.run_all(given, foreign.original.outputs)
            except Refused as refused:
                raise UserError(f"{foreign.path}: {refused}") from None
            for output, raw in zip(foreign.original.outputs, results, strict=True):
                if output not in forms and (form := _form(raw, given.shape, origins[output])) is not None:
                    forms[output] = (*form, helper.np_dtype_to_tensor_dtype(raw.dtype))
                if output in forms:
                    form_of, logit, _ = forms[output]
                    maps = postprocess(form_of.from_file(raw)[0, 0], _contract(name, size, logit), mask.shape[:2])
                    agreements.setdefault(output, []).append(_correlation(maps, mask))
        candidates += [
            Candidate(output, logit, form_of, name, kind, float(np.mean(agreements[output])))
            for output, (form_of, logit, kind) in forms.items()
        ]
    return candidates


def _form(raw: np.ndarray, shape: tuple[int, ...], origin: Origin | None) -> tuple[OutputForm, bool] | None:
    for logit in (False, True):
        try:
            return output_form(raw, shape, logit, None, "the output", origin), logit
        except UserError:
            continue
    return None


def _correlation(map_: np.ndarray, mask: np.ndarray) -> float:
    first, second = (values.astype(np.float64) - values.astype(np.float64).mean() for values in (map_, mask))
    spread = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum() / spread) if spread > 0 and np.isfinite(spread) else 0.0


def _say_normalizations(found: Diagnosis, foreign: Foreign, candidates: list[Candidate], best: Candidate) -> None:
    if foreign.form.integer is not None:
        found.say("normalization", "inside the graph, which takes pixels from 0 to 255")
        return
    tried = sorted((one for one in candidates if one.output == best.output), key=lambda one: -one.agreement)
    for one in tried:
        mark = " <- proposed" if one is best else ""
        found.say("normalization", f"{one.normalization}: maps and masks correlate by {one.agreement:.3f}{mark}")
    if best.agreement < 0.3:
        terminal.warn(
            f"{foreign.path}: no normalization gives maps like the masks ({best.agreement:.2f} at best); are these "
            "trained weights, and images of their kind? Ask its maker for mean and std"
        )
    elif len(tried) > 1 and best.agreement - tried[1].agreement < _CLOSE:
        terminal.warn(
            f"{foreign.path}: {best.normalization} and {tried[1].normalization} fit almost equally well; ask its maker "
            "or give more images: --data"
        )


def _say_ranges(
    found: Diagnosis, graph: onnx.ModelProto, foreign: Foreign, best: Candidate, data: Dataset, size: tuple[int, int]
) -> None:
    """Say which results and weights fp16 cannot hold: beyond its largest number, or below its normal range."""
    inferred = onnx.shape_inference.infer_shapes(graph)
    floats = [value for value in inferred.graph.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT]
    constants = {tensor.name for tensor in graph.graph.initializer}
    tensors = [value.name for value in floats if value.name not in constants]
    watched = copy.deepcopy(graph)
    del watched.graph.output[:]
    for name in tensors:
        watched.graph.node.append(helper.make_node("Abs", [name], [f"{name}/abs"]))
        watched.graph.node.append(helper.make_node("ReduceMax", [f"{name}/abs"], [f"{name}/most"], keepdims=0))
        watched.graph.output.append(helper.make_tensor_value_info(f"{name}/most", TensorProto.FLOAT, ()))
    session = start_session(watched, name=str(foreign.path))
    most = np.zeros(len(tensors))
    batch = graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    for sample in data:
        image = preprocess(sample.image(), _contract(best.normalization, size))[None]
        values = session.run(None, {session.get_inputs()[0].name: np.repeat(image, batch, axis=0)})
        most = np.maximum(most, np.array(values, np.float64))
    reached = dict(zip(tensors, map(float, most), strict=True))
    over = [(name, value) for name, value in reached.items() if not value <= _LARGEST_HALF]
    under = [(name, value) for name, value in reached.items() if 0 < value < _LEAST_HALF]
    tiny: list[tuple[str, float]] = []
    for tensor in graph.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values_of = np.abs(numpy_helper.to_array(tensor))
            if values_of.size and 0 < values_of.max() < _LEAST_HALF:
                tiny.append((tensor.name, float(values_of.max())))
            elif values_of.size and values_of.max() > _LARGEST_HALF:
                over.append((tensor.name, float(values_of.max())))
    groups = (
        ("overflow", over, "beyond 65504"),
        ("underflow", under, "results all below 6.1e-05"),
        ("underflow", tiny, "weights all below 6.1e-05"),
    )
    said = False
    for label, names, text in groups:
        if names:
            said = True
            listed = first_few([f"{name} ({value:.3g})" for name, value in names])
            found.say(label, f"{text}, which fp16 does not hold: {listed}; build with --fp16 may lose them")
    if not said:
        found.say("fp16", f"holds every weight, and every result on {len(data)} images")


def _adopt_command(foreign: Foreign, best: Candidate, size: tuple[int, int]) -> str:
    fields = NORMALIZATIONS[best.normalization]
    words = [str(foreign.path)]
    for option in ("mean", "std"):
        words += [f"--{option}", *(f"{value:.6g}" for value in fields[option])]
    words += ["--size", *map(str, size)]
    for option, key in (("--colour", "colour"), ("--divide-by", "divide_by")):
        words += [option, fields[key]] if key in fields else []
    if len(foreign.original.outputs) > 1:
        words += ["--output-tensor", best.output]
    words += ["--logit"] if best.logit else []
    words += ["--output", f"out/{foreign.path.stem}.onnx"]
    return f"{command('adopt')} {shlex.join(words)}"


app = command_line.application(help="Say what an ONNX file is, and how to adopt it.")


@app.command(cls=NumbersCommand)
def main(
    model: Annotated[Path, typer.Argument(help="the ONNX file")],
    data: Annotated[
        list[str] | None,
        typer.Option(help="images and masks to try normalizations on: folder, list or synthetic:eval:N; repeatable"),
    ] = None,
    root: RootOption = None,
    limit: LimitOption = 4,
    size: Annotated[str | None, typer.Option(help=HELP, metavar="H [W]")] = None,
) -> None:
    """Say what an ONNX file is, and how to adopt it."""
    if not data:
        terminal.warn(
            "without --data, normalizations are tried on drawn pictures; a network trained on photographs may rank "
            "them otherwise"
        )
    dataset = open_dataset(data or _SYNTHETIC, root=root if data else None)
    chosen = dataset.first(limit)
    check_masks(chosen, dataset.name)
    found = diagnose(model, chosen, parse_size(size) if size else None)
    for line in found.lines:
        terminal.results.print(line, markup=False, soft_wrap=True)
    terminal.results.print(f"{'next:':<15}{found.command}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    command_line.run(app)
