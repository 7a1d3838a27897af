"""Show a plan, compare two, or edit one.

python quant/plan.py show out/u2netp.plan.json [--only fp16] [--ranges]
python quant/plan.py diff out/u2netp.plan.json edited.json
python quant/plan.py edit out/u2netp.plan.json --set '/stage1/*=fp16' --reason "outliers" --output edited.json
"""

import difflib
import fnmatch
import shlex
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer

from sodeploy import command_line, stages, terminal
from sodeploy.errors import UserError, first_few
from sodeploy.quant.calibration.statistics import Statistics, load_statistics
from sodeploy.quant.graph import Network, feature_heads, is_residual, load_network
from sodeploy.quant.planning.decide import int8_layer
from sodeploy.quant.planning.evidence import Evidence
from sodeploy.quant.planning.plan import (
    Layer,
    Plan,
    Precision,
    Range,
    TargetLayer,
    TargetPlan,
    load_plan,
    read_plan,
    read_steps,
    save_plan,
)
from sodeploy.quant.planning.ranges import shared_range, sharing_a_range
from sodeploy.quant.planning.targets import decide_targets, for_cpu, kind_of_cpu
from sodeploy.runtime.measure.report import Table, show

app = command_line.application("Show a plan, compare two, or edit one.")

_SET = "NODES=int8, NODES=fp16 or NODES=fp32; NODES is a name, or a glob of layers such as '/stage1/*'; repeatable"
_SHOWN = 6  # reasons for each precision in the summary


def summary(plan: Plan) -> Table:
    """How many layers have each precision, and why: of the plan, then of the graph of each target."""
    reasons = Counter((layer.precision, layer.reason) for layer in plan.layers.values())
    rows = _counted("all graphs", reasons)
    for name, target in plan.targets.items():
        rows += _counted(f"{name} only", Counter((_in_target(one), one.reason) for one in target.layers.values()))
    return Table(_title(plan), ["graph", "precision", "layers", "reason"], rows, 4)


def _counted(graph: str, reasons: Mapping[Any, int]) -> list[list[str]]:
    """A row for each precision and reason, the most frequent first; reasons past `_SHOWN` share a row."""
    rows = []
    for precision in dict.fromkeys(sorted(precision for precision, _ in reasons)):
        own = sorted(((count, reason) for (p, reason), count in reasons.items() if p == precision), reverse=True)
        rows += [[graph, precision, str(count), reason] for count, reason in own[:_SHOWN]]
        if rest := own[_SHOWN:]:
            layers = sum(count for count, _ in rest)
            rows.append([graph, precision, str(layers), f"{len(rest)} other reasons; --only {precision} lists them"])
    return rows


def layer_table(plan: Plan, only: Collection[str] = ()) -> Table:
    """Every layer with its reason, in the order of the graph; of the precisions in `only` where it is not empty."""
    rows = [
        [name, layer.op, layer.precision, layer.reason]
        for name, layer in plan.layers.items()
        if not only or layer.precision in only
    ]
    return Table(_title(plan), ["layer", "op", "precision", "reason"], rows, 4)


def range_table(plan: Plan) -> Table:
    """Every range, in the order of the graph."""
    ranges = [
        [
            first_few(shared.tensors),
            "yes" if shared.signed else "no",
            f"{shared.amax:.5g}",
            _known(shared.shift, "{:.5g}"),
            _known(shared.maximum, "{:.5g}"),
            _known(shared.clipped, "{:.3%}"),
            _known(shared.decibels, "{:.1f}"),
            "" if shared.uint8 is None else "{:.5g} to {:.5g}".format(*shared.uint8),
            shared.method or "",
        ]
        for shared in plan.ranges
    ]
    header = ["tensors", "signed", "amax", "shift", "maximum", "clipped", "dB", "uint8 on CPUs", "own method"]
    return Table("ranges", header, ranges, 2)


def _title(plan: Plan) -> str:
    counts = Counter(layer.precision for layer in plan.layers.values())
    numbers = ", ".join(f"{counts[precision]} {precision}" for precision in get_args(Precision))
    source = "no images were needed"
    if plan.calibration is not None:
        images = len(plan.calibration.images)
        source = f"ranges by {plan.calibration.method}" + (f" from {images} images" if images else "")
        other = Counter(shared.method for shared in plan.ranges if shared.method is not None)
        source += "".join(f", {count} of them by {method} (--ranges shows them)" for method, count in other.items())
    return f"{plan.network} ({plan.onnx}): {numbers}; {source}"


def target_table(name: str, target: TargetPlan) -> Table:
    """The decisions that hold in one graph only."""
    rows = [[layer, _in_target(decision), decision.reason] for layer, decision in target.layers.items()]
    title = f"{name} graph only: weights have {target.weight_steps} steps on each side of zero"
    return Table(title, ["layer", "precision", "reason"], rows, 3)


def _in_target(decision: TargetLayer | None) -> str:
    if decision is None:
        return "as in every graph"
    return f"{decision.precision} as {decision.form}" if decision.form else decision.precision


def differences(old: Plan, new: Plan) -> Iterator[str]:
    """A line for every decision in which two plans differ, in the order of the graph."""
    if old.onnx_sha256 != new.onnx_sha256:
        yield f"network: {old.onnx} ({old.onnx_sha256[:12]}) -> {new.onnx} ({new.onnx_sha256[:12]})"
    if old.calibration != new.calibration:
        yield f"calibration: {_calibration(old)} -> {_calibration(new)}"
    for name in dict.fromkeys([*old.layers, *new.layers]):
        yield from (f"layer {name}: {change}" for change in _changes(old.layers.get(name), new.layers.get(name)))
    for target in dict.fromkeys([*old.targets, *new.targets]):
        yield from _target_differences(target, old.targets.get(target), new.targets.get(target))
    before, after = old.range_of(), new.range_of()
    moved: dict[str, list[str]] = defaultdict(list)
    for tensor in dict.fromkeys([*before, *after]):
        one, other = _range_text(before.get(tensor)), _range_text(after.get(tensor))
        if one != other:
            moved[f"{one} -> {other}"].append(tensor)
    for change, tensors in moved.items():
        yield f"range of {first_few(tensors)}: {change}"


def _target_differences(name: str, old: TargetPlan | None, new: TargetPlan | None) -> Iterator[str]:
    if old is None or new is None:
        yield f"{name} graph: {'no decisions' if old is None else 'decisions'} -> {'no ' * (new is None)}decisions"
        return
    if old.weight_steps != new.weight_steps:
        yield f"{name} graph: {old.weight_steps} -> {new.weight_steps} weight steps"
    for layer in dict.fromkeys([*old.layers, *new.layers]):
        before, after = (_in_target(target.layers.get(layer)) for target in (old, new))
        if before != after:
            yield f"{name} graph: layer {layer}: {before} -> {after}"


def edit(
    network: Network,
    plan: Plan,
    changes: dict[str, Precision],
    reason: str,
    statistics: Statistics | None = None,
    steps: Mapping[str, np.ndarray] | None = None,
) -> Plan:
    """The plan with other precisions for some nodes, and with exactly the ranges that its int8 layers then need.

    Ranges that stay keep their (perhaps edited) amax.

    Args:
        changes: node -> precision.
        statistics: counts of this network, needed for the scales and ranges of a layer that becomes int8.
        steps: the plan's jointly rounded weights, for the bias of a layer that becomes int8.

    Raises:
        UserError: no such node, a node that has no int8 form, or statistics are missing or of another network.
    """
    if statistics is not None and statistics.network != network.digest:
        raise UserError(f"the statistics were gathered from another network than {network.path}; calibrate again")
    nodes = {node.name: node for node in network.nodes}
    layers = dict(plan.layers)
    for name, precision in changes.items():
        node = nodes.get(name)
        if node is None:
            raise UserError(f"{network.path} has no node {name!r}; {stages.command('plan')} show --layers lists them")
        if precision != "int8":
            layers[name] = Layer(op=node.op_type, precision=precision, reason=reason)
        elif name not in layers or layers[name].precision != "int8":
            if node.op_type in ("Conv", "Gemm") and network.is_weighted(node):
                if statistics is None:
                    raise UserError(f"{name} needs scales to become int8; give --statistics, the .npz of calibration")
                layers[name] = int8_layer(network, node, Evidence(statistics, steps or {}))
            elif is_residual(network, node):
                layers[name] = Layer(op="Add", precision="int8", reason=reason)
            else:
                raise UserError(f"{name} is a {node.op_type} that has no int8 form here; leave it in fp16")
            layers[name].reason = reason
    order = {name: index for index, name in enumerate(nodes)}
    layers = dict(sorted(layers.items(), key=lambda entry: order[entry[0]]))
    read_by_int8 = sharing_a_range(network, layers)
    ranges = [shared for group in read_by_int8 for shared in _ranges(network, group, plan, statistics)]
    heads = feature_heads(network)
    by_heads = {node.input[0] for node in network.nodes if node.name in heads}
    ranges += [shared for shared in plan.ranges if shared not in ranges and not by_heads.isdisjoint(shared.tensors)]
    targets = decide_targets(network, layers, ranges) if plan.calibration is not None else {}
    edited = plan.model_copy(update={"layers": layers, "ranges": ranges, "targets": targets})
    return for_cpu(edited, kind_of_cpu(plan)) if targets else edited


def _ranges(network: Network, group: list[str], plan: Plan, statistics: Statistics | None) -> list[Range]:
    """The ranges that the plan has for tensors of one scale, or a new one."""
    if kept := [shared for shared in plan.ranges if not set(group).isdisjoint(shared.tensors)]:
        return kept
    if statistics is None or plan.calibration is None or plan.calibration.method == "calib.cache":
        raise UserError(
            f"{first_few(group)} has no range in the plan; give --statistics, the .npz of calibration, and "
            "a plan that was made from it"
        )
    return [shared_range(network, group, statistics, plan.calibration.method)]


def _changes(old: Layer | None, new: Layer | None) -> Iterator[str]:
    if old is None or new is None or old.precision != new.precision:
        yield f"{_precision(old)} -> {_precision(new)}"
        return
    if old.reason != new.reason:
        yield f"reason: {old.reason} -> {new.reason}"
    for field in ("weight_scales", "bias_correction", "input_correction", "input_correction_uint8"):
        one, other = getattr(old, field) or [], getattr(new, field) or []
        changed = sum(a != b for a, b in zip(one, other, strict=False)) + abs(len(one) - len(other))
        if changed:
            yield f"{changed} of {max(len(one), len(other))} values of {field} differ"


def _precision(layer: Layer | None) -> str:
    return f"{layer.precision} ({layer.reason})" if layer else "no entry"


def _calibration(plan: Plan) -> str:
    calibration = plan.calibration
    return f"{calibration.method}, {len(calibration.images)} images" if calibration else "none"


def _range_text(shared: Range | None) -> str:
    if shared is None:
        return "none"
    shift = f" about {shared.shift:.6g}" if shared.shift is not None else ""
    uint8 = "" if shared.uint8 is None else "; uint8 {:.6g} to {:.6g}".format(*shared.uint8)
    return f"{shared.amax:.6g}{shift}{' signed' if shared.signed else ''}{uint8}"


def _known(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


@app.command("show")
def show_command(
    plan: Annotated[Path, typer.Argument(help="a .plan.json")],
    only: Annotated[
        list[str] | None, typer.Option(help="list the layers of this precision: int8, fp16 or fp32; repeatable")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="list every layer")] = False,
    ranges: Annotated[bool, typer.Option("--ranges", help="list every range")] = False,
    targets: Annotated[bool, typer.Option("--targets", help="list the decisions for the graph of one target")] = False,
) -> None:
    """Print a summary of a plan; layers, ranges, decisions for one target on request."""
    content = read_plan(plan)
    if wrong := set(only or ()) - set(get_args(Precision)):
        raise UserError(f"--only {min(wrong)} is no precision; choose {', '.join(get_args(Precision))}")
    chosen = []
    if layers or only:
        chosen.append(layer_table(content, only or ()))
    if ranges:
        chosen.append(range_table(content))
    if targets:
        chosen += [target_table(name, target) for name, target in content.targets.items()]
    show(chosen or [summary(content)])


@app.command("diff")
def diff_command(
    old: Annotated[Path, typer.Argument(help="a .plan.json")], new: Annotated[Path, typer.Argument(help="another")]
) -> None:
    """Print a line for each decision in which two plans differ."""
    for line in differences(read_plan(old), read_plan(new)):
        terminal.results.print(line, soft_wrap=True, markup=False)


@app.command("edit")
def edit_command(
    plan: Annotated[Path, typer.Argument(help="a .plan.json")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the plan to write")],
    set_: Annotated[list[str], typer.Option("--set", metavar="NODES=PRECISION", help=_SET)],
    reason: Annotated[str, typer.Option(help="the reason, for readers of the plan")] = "set by hand",
    model: Annotated[
        Path | None, typer.Option(help="the plan's float32 ONNX, if it does not lie beside the plan")
    ] = None,
    statistics: Annotated[
        Path | None, typer.Option(help="the .statistics.npz of calibration, to make a layer int8")
    ] = None,
) -> None:
    """Write a plan with other precisions for some layers."""
    old = read_plan(plan)
    network = load_network(model or _beside(plan, old))
    counted = load_statistics(statistics) if statistics else None
    steps = read_steps(plan.with_name(old.rounding.file), old.rounding) if old.rounding else None
    new = edit(network, load_plan(plan, network), matched(network, old, set_), reason, counted, steps)
    save_plan(new, output)
    for line in differences(old, new):
        terminal.note(line)
    follow = shlex.join([str(network.path), "--int8", "--plan", str(output)])
    terminal.note(f"wrote {output}; to build by it: {stages.command('build_engine')} {follow}")


def matched(network: Network, plan: Plan, settings: Sequence[str]) -> dict[str, Precision]:
    """Node -> precision for settings such as "/stage1/*=fp16"; a later setting wins over an earlier one.

    A name means that node. A glob means the layers of the plan that it matches. A note says how many.

    Raises:
        UserError: not NODES=PRECISION, or nothing is called so; names that are near are listed.
    """
    nodes = [node.name for node in network.nodes]
    changes: dict[str, Precision] = {}
    for setting in settings:
        pattern, separator, precision = setting.rpartition("=")
        if not separator or precision not in get_args(Precision):
            raise UserError(f"--set {setting} is not NODES=int8, NODES=fp16 or NODES=fp32")
        found = [pattern] if pattern in nodes else fnmatch.filter(plan.layers, pattern)
        if not found:
            near = difflib.get_close_matches(pattern, nodes, n=3, cutoff=0.4)
            meant = f"near names: {', '.join(near)}" if near else f"{stages.command('plan')} show --layers lists them"
            raise UserError(f"--set {setting}: {network.path} has no node {pattern!r}; {meant}")
        if found != [pattern]:
            terminal.note(f"{pattern}: {len(found)} layers to {precision}")
        changes |= dict.fromkeys(found, precision)  # type: ignore[arg-type]
    return changes


def _beside(plan: Path, content: Plan) -> Path:
    path = plan.parent / content.onnx
    if not path.is_file():
        raise UserError(f"{path}, which {plan} was made for, does not exist; say where it lies with --model")
    return path


if __name__ == "__main__":
    command_line.run(app)
