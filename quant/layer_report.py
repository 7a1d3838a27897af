"""The error that each int8 layer of a plan adds: a row per ONNX node, the costliest first.

    python quant/layer_report.py out/u2netp.onnx out/u2netp.plan.json --data DATA [--limit 6] [--json report.json]

For every layer: how well its input survives the plan's range and its weight the scales (signal to quantization noise),
how much of the input is clipped, and how far the map moves when this layer alone is quantized. All of it is the
simulation's arithmetic (quant/emit/tensorrt.py), on a few images. Most layers' effect on the map is an estimate
(quant/layer_errors.py); --exact measures all.
"""

import copy
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer
from onnx import TensorProto, helper, numpy_helper

from sodeploy import command_line, terminal
from sodeploy.artifacts import write_text
from sodeploy.calib_data import Sample, open_photographs
from sodeploy.calib_data.options import LimitOption, RootOption
from sodeploy.errors import UserError
from sodeploy.quant.calibration.inspect_graph import as_input, images_at_a_time, opened, side_by_side
from sodeploy.quant.emit.fp16 import emit_fp16_simulation
from sodeploy.quant.emit.rewriter import quantized_weight
from sodeploy.quant.emit.tensorrt import emit_simulation, quantized_input
from sodeploy.quant.graph import Network, load_network
from sodeploy.quant.int8 import dequantize_weight
from sodeploy.quant.layer_errors import COSTLIEST, estimated_errors, exact_errors
from sodeploy.quant.planning.input_error import append_error
from sodeploy.quant.planning.plan import Layer, Plan, Range, load_plan
from sodeploy.runtime.measure.report import Table, show
from sodeploy.runtime.onnx_memory import free_shared_memory
from sodeploy.runtime.processing import to_saliency
from sodeploy.stages import command

ENOUGH_IMAGES = 6  # of CSNet x1, and 5 of U2-Netp, by benchmarks/layer_order.py


@dataclass(frozen=True)
class LayerCost:
    """One int8 layer. Ratios are of signal to quantization noise in dB, None where there is no noise.

    Attributes:
        node: name in the ONNX graph.
        tensor: the activation that the layer reads in int8; of an addition, its residual input.
        amax: where that is clipped.
        shift: what is subtracted from it first, or None.
        clipped: share of its values that are clipped, on these images.
        weight_sqnr: of the whole weight; None also for an addition, which has none.
        map_error: root mean square difference of the map, in [0, 1], to the float32 map, when only this layer is
            quantized.
        share: of the squares of `map_error`, in the sum over all layers.
        by_image: `map_error` in each image.
        exact: False where `map_error` is an estimate.
    """

    node: str
    op: str
    tensor: str
    amax: float
    shift: float | None
    clipped: float
    input_sqnr: float | None
    weight_sqnr: float | None
    map_error: float
    share: float
    by_image: Sequence[float]
    exact: bool


@dataclass(frozen=True)
class LayerReport:
    """The rows, the costliest first.

    Attributes:
        map_error: root mean square difference of the map to the map of the plan without int8, with all int8 layers
            together.
        images: names.
    """

    rows: Sequence[LayerCost]
    map_error: float
    images: Sequence[str]


@dataclass
class _Stored:
    """Sums over images of one quantized tensor."""

    signal: float = 0.0
    noise: float = 0.0
    clipped: float = 0.0


def layer_report(network: Network, plan: Plan, images: Sequence[Sample], exact: bool = False) -> LayerReport:
    """Measure every int8 layer of `plan` on `images`.

    Args:
        exact: estimate no layer's effect on the map.

    Raises:
        UserError: the plan has no int8 layer, there is no image, or the map is NaN or infinite without int8 already.
    """
    nodes = {node.name: node for node in network.nodes}
    int8 = [name for name in nodes if name in plan.nodes("int8")]
    if not int8:
        raise UserError(f"the plan of {network.path} has no int8 layer to report on")
    if not images:
        raise UserError("there is no image to measure on; give --data a folder or a list with images")
    reads = {name: nodes[name].input[quantized_input(network, nodes[name])] for name in int8}
    ranges = {tensor: plan.range_of()[tensor] for tensor in reads.values()}
    stored = _measure(network, ranges, images)
    errors = (exact_errors if exact else estimated_errors)(network, plan, int8, images)
    means = {name: error.mean() for name, error in errors.items()}
    total = sum(means.values())
    rows = [
        LayerCost(
            node=name,
            op=nodes[name].op_type,
            tensor=reads[name],
            amax=ranges[reads[name]].amax,
            shift=ranges[reads[name]].shift,
            clipped=stored[reads[name]].clipped / len(images),
            input_sqnr=_decibels(stored[reads[name]].signal, stored[reads[name]].noise),
            weight_sqnr=_weight_sqnr(network, nodes[name], plan.layers[name]),
            map_error=math.sqrt(means[name]),
            share=means[name] / total if total else 0.0,
            by_image=[math.sqrt(square) for square in errors[name].squares],
            exact=errors[name].exact,
        )
        for name in int8
    ]
    rows.sort(key=lambda row: -row.map_error)
    report = LayerReport(rows, _whole_error(network, plan, images), [sample.name for sample in images])
    free_shared_memory()
    return report


def table(report: LayerReport) -> Table:
    """The report for a terminal, or as Markdown."""
    rows = [
        [
            row.node,
            row.op,
            row.tensor,
            f"{row.amax:.4g}",
            "" if row.shift is None else f"{row.shift:.4g}",
            f"{row.clipped:.3%}",
            _shown(row.input_sqnr),
            "" if row.op == "Add" else _shown(row.weight_sqnr),
            f"{'' if row.exact else '~ '}{row.map_error:.5f}",
            f"{row.share:.1%}",
        ]
        for row in report.rows
    ]
    return Table(
        f"{len(rows)} int8 layers, on {len(report.images)} images",
        ["layer", "op", "input", "amax", "shift", "clipped", "input dB", "weight dB", "map error", "share"],
        rows,
        text_columns=3,
        caption=f"All layers together move the map by {report.map_error:.5f} (root mean square, of maps in [0, 1])."
        + ("" if all(row.exact for row in report.rows) else "\n~ an estimate"),
    )


def to_json(report: LayerReport) -> str:
    """The report as a JSON document, ending in a newline."""
    return json.dumps(asdict(report), indent=1) + "\n"


def suggestion(report: LayerReport, model: Path, plan: Path) -> str:
    """The command that sets the costliest layers to fp16: those that make half of the squared errors, 5 at most."""
    chosen: list[LayerCost] = []
    for row in report.rows[:COSTLIEST]:
        if sum(one.share for one in chosen) < 0.5:
            chosen.append(row)
    settings = [part for row in chosen for part in ("--set", f"{row.node}=fp16")]
    share = sum(row.share for row in chosen)
    output = plan.with_name(plan.name.removesuffix(".json").removesuffix(".plan") + ".edited.plan.json")
    options = ["--reason", f"makes {share:.0%} of the int8 error", "--model", str(model), "--output", str(output)]
    return f"{command('plan')} edit {shlex.join([str(plan), *settings, *options])}"


def _measure(network: Network, ranges: Mapping[str, Range], images: Sequence[Sample]) -> dict[str, _Stored]:
    """The error that quantizing each tensor adds, summed inside the network so that no tensor has to leave it."""
    model = copy.deepcopy(network.model)
    graph = model.graph

    def node(op: str, inputs: list[str], output: str, **attributes: int) -> str:
        graph.node.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(name: str, value: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    outputs = []
    for tensor, shared in ranges.items():
        own = f"{tensor}/report"
        error, shifted = append_error(graph, tensor, shared)
        beyond = node(
            "Greater",
            [node("Abs", [shifted], f"{own}/abs"), constant(f"{own}/amax", np.float32(shared.amax))],
            f"{own}/beyond",
        )
        number = node("Cast", [beyond], f"{own}/number", to=TensorProto.FLOAT)
        outputs += [
            node("ReduceSumSquare", [tensor], f"{own}/signal", keepdims=0),
            node("ReduceSumSquare", [error], f"{own}/noise", keepdims=0),
            node("ReduceMean", [number], f"{own}/clipped", keepdims=0),
        ]
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in outputs)
    run = opened(model, shared_memory=True)
    stored = {tensor: _Stored() for tensor in ranges}
    at_a_time = images_at_a_time(network.model)
    for found in side_by_side(lambda sample: run(as_input(sample, network.contract)), images, at_a_time):
        values = np.reshape([float(value) for value in found], (-1, 3))
        for sums, (signal, noise, clipped) in zip(stored.values(), values, strict=True):
            sums.signal += signal
            sums.noise += noise
            sums.clipped += clipped
    return stored


def _weight_sqnr(network: Network, node: onnx.NodeProto, layer: Layer) -> float | None:
    if not network.is_weighted(node):
        return None
    weight = network.weight(node)
    error = dequantize_weight(*quantized_weight(network, node, layer)) - weight
    return _decibels(float(np.square(weight, dtype=np.float64).sum()), float(np.square(error, dtype=np.float64).sum()))


def _whole_error(network: Network, plan: Plan, images: Sequence[Sample]) -> float:
    """Over all pixels; where a map is NaN or infinite each pixel counts as wrong by 1."""
    emitted = (emit(network, plan) for emit in (emit_simulation, emit_fp16_simulation))
    quantized, body = (opened(model, shared_memory=True) for model in emitted)

    def square(sample: Sample) -> float:
        image = as_input(sample, network.contract)
        reference = to_saliency(body(image)[0][0, 0], network.contract)
        try:
            return float(np.square(to_saliency(quantized(image)[0][0, 0], network.contract) - reference).mean())
        except UserError:
            return 1.0

    return math.sqrt(np.mean(list(side_by_side(square, images))))


def _decibels(signal: float, noise: float) -> float | None:
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


def _shown(decibels: float | None) -> str:
    return "exact" if decibels is None else f"{decibels:.1f}"


def main(
    model: Annotated[Path, typer.Argument(help="the float32 ONNX that the plan is for")],
    plan: Annotated[Path, typer.Argument(help="its plan")],
    data: Annotated[
        list[str], typer.Option(help="images to measure on: folder, list or synthetic:eval[:N]; repeatable")
    ],
    root: RootOption = None,
    limit: LimitOption = ENOUGH_IMAGES,
    exact: Annotated[bool, typer.Option("--exact", help="estimate no layer's effect on the map: slower")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the figures to this file")] = None,
) -> None:
    """Print what each int8 layer of a plan costs, the costliest first."""
    network = load_network(model)
    images = open_photographs(data, root, limit)
    report = layer_report(network, load_plan(plan, network), images.samples, exact)
    if json_file is not None:
        write_text(json_file, to_json(report))
    show([table(report)])
    if len(report.images) < ENOUGH_IMAGES:
        terminal.warn(f"other images may name another costliest layer: measure on {ENOUGH_IMAGES} images or more")
    terminal.note(f"to leave the costliest in fp16: {suggestion(report, model, plan)}")


if __name__ == "__main__":
    command_line.run(main)
