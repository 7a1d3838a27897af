"""Finds the fewest layers to leave in higher precision so that the loss of a network keeps within a budget.

1. All layers run in the lower precision. If the loss is within the budget, the search ends.
2. Each layer alone is lowered, and the error of the map is measured. This ranks the layers.
3. The worst layers are raised, twice as many each time, until the loss is within the budget; bisection then finds the
   smallest number.
4. Each raised layer is lowered once more, the least harmful first, and stays lowered if the budget still holds.

The layers that remain cannot be lowered; the plan gives the measured loss as the reason.

The search runs first for fp16 against fp32, because fp16 is the precision around int8 layers and of layers that int8
harms; then for int8 against fp16.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sodeploy import terminal
from sodeploy.calib_data import Dataset
from sodeploy.errors import UserError
from sodeploy.quant.budget.gate import Gate
from sodeploy.quant.calibration.histogram import LOWER_EDGES
from sodeploy.quant.calibration.methods import DEFAULT, Method
from sodeploy.quant.calibration.statistics import Statistics
from sodeploy.quant.emit.tensorrt import emit_simulation
from sodeploy.quant.graph import PASSING, Network
from sodeploy.quant.planning.decide import make_plan
from sodeploy.quant.planning.evidence import Evidence
from sodeploy.quant.planning.fp16_range import beyond_fp16
from sodeploy.quant.planning.plan import Layer, Plan, Precision
from sodeploy.quant.planning.ranges import summed
from sodeploy.quant.planning.targets import decide_targets
from sodeploy.runtime.measure.budget import Budget, Verdict
from sodeploy.runtime.measure.metrics import METRICS
from sodeploy.runtime.measure.report import Table, decimal, show

_OUTLIER = 10.0  # times the usual magnitude: the range spends three of eight bits on a few values

_TRIED = "tried in higher precision"  # the reason in plans that are only measured

Raised = Mapping[str, str]  # layer in the higher precision -> reason


@dataclass(frozen=True)
class Candidate:
    """A plan, its name in tables, and its measured loss."""

    name: str
    plan: Plan
    verdict: Verdict


@dataclass(frozen=True)
class _Step:
    """One step down in precision.

    Attributes:
        layers: the layers to lower, in the graph's order.
        plan: makes the plan in which some layers are raised.
        alone: makes the plan in which only the given layer is lowered.
        remark: a further explanation for a layer that stays raised, or "".
    """

    lower: Precision
    higher: Precision
    layers: Sequence[str]
    plan: Callable[[Raised], Plan]
    alone: Callable[[str], Plan]
    remark: Callable[[str], str]


def find_plan(
    network: Network,
    images: Dataset,
    budget: Budget,
    file: str | Path,
    evidence: Evidence | None = None,
    method: Method = DEFAULT,
) -> Candidate:
    """`search` with its results kept in `file` (see `Gate`), and a table of the candidates on stdout."""
    started = time.monotonic()
    with Gate(network, images, budget, file) as gate:
        candidates = search(network, gate, evidence, method)
        show([summary(gate, candidates, time.monotonic() - started)])
    return candidates[-1]


def search(network: Network, gate: Gate, evidence: Evidence | None = None, method: Method = DEFAULT) -> list[Candidate]:
    """The plan with the fewest layers in fp32 and, given evidence, the fewest in fp16.

    Args:
        evidence: measured of this network, for int8; None for a plan of fp16 alone.

    Returns:
        The candidates to compare; the last one is the result.

    Raises:
        UserError: nothing below fp32 keeps within the budget; metric, loss and budget are named.
    """
    step = _fp16_step(network, beyond_fp16(network, evidence.statistics if evidence is not None else None))
    found = _descend(network, gate, step)
    body = found[-1].plan
    if body.nodes("fp32") >= {node.name for node in network.nodes if network.is_weighted(node)}:
        raise UserError(
            f"{network.path} cannot keep the budget on {gate.images.name} below fp32: with every layer in fp16 it "
            f"loses {found[0].verdict.explain(gate.budget)}, and so does every layer alone; raise --max-drop"
        )
    if evidence is None:
        return found
    found += _descend(network, gate, _int8_step(network, evidence, method, body))
    if not found[-1].plan.nodes("int8"):
        terminal.warn(f"no layer of {network.path.name} can run in int8 under this budget; the plan is fp16")
    return found


def summary(gate: Gate, candidates: Sequence[Candidate], seconds: float) -> Table:
    """A table of the layers and losses of each candidate, and the cost of the search."""
    baseline = gate.baseline_summary()
    rows = [["fp32", "", "", *(decimal(baseline[metric]) for metric in gate.budget)]]
    for candidate in candidates:
        layers = (str(len(candidate.plan.nodes(precision))) for precision in ("int8", "fp32"))
        rows.append([candidate.name, *layers, *(_interval(candidate.verdict, metric) for metric in gate.budget)])
    allowed = (decimal(-METRICS[metric].worse_by(-loss), signed=True) for metric, loss in gate.budget.items())
    rows.append(["budget", "", "", *allowed])
    return Table(
        f"Difference to fp32 on {gate.images}, with 95 % interval (paired bootstrap over images)",
        ["candidate", "int8 layers", "fp32 nodes", *(METRICS[metric].label for metric in gate.budget)],
        rows,
        caption=f"{len(gate.measured)} candidates measured and {len(gate.remembered)} remembered, in {seconds:.0f} s",
    )


def fewest(
    ranked: Sequence[str], judge: Callable[[Sequence[str]], Verdict], fits: Callable[[Verdict], bool]
) -> dict[str, Verdict]:
    """The fewest of `ranked` to raise.

    Args:
        ranked: the most harmful first. With none raised the loss does not fit the budget, with all raised it does.
        judge: measures the loss with the given names raised.

    Returns:
        Each name to raise, in the order of `ranked`, with the loss if it alone were lowered again.
    """
    low, high = 0, 1  # the loss fits with the first `high` raised, and not with the first `low`
    while high < len(ranked) and not fits(judge(ranked[:high])):
        low, high = high, 2 * high
    high = min(high, len(ranked))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(judge(ranked[:middle])) else (middle, high)
    needed = list(ranked[:high])
    costs = {}
    for name in reversed(ranked[:high]):
        without = [other for other in needed if other != name]
        costs[name] = judge(without)
        if fits(costs[name]):
            needed = without
    return {name: costs[name] for name in needed}


def _descend(network: Network, gate: Gate, step: _Step) -> list[Candidate]:
    """Lower all layers; if the loss is too large, all but the fewest."""

    def judge(raised: Sequence[str]) -> Verdict:
        plan = step.plan(dict.fromkeys(raised, _TRIED))
        return gate.judge(emit_simulation(network, plan), _name(step, len(raised)))

    def fits(verdict: Verdict) -> bool:
        return verdict.fits(gate.budget)

    lowered = Candidate(_name(step, 0), step.plan({}), judge([]))
    if fits(lowered.verdict):
        return [lowered]
    terminal.warn(
        f"with every layer in {step.lower} {network.path.name} loses {lowered.verdict.explain(gate.budget)}; "
        f"looking for the layers to leave in {step.higher}"
    )
    if images := lowered.verdict.images_to_fit(gate.budget, len(gate.images)):
        terminal.warn(
            f"on average that is within the budget, but {len(gate.images)} images leave it uncertain; with "
            f"about {images} the budget may hold as it is"
        )
    errors = {
        layer: gate.map_error(emit_simulation(network, step.alone(layer)))
        for layer in terminal.progress(step.layers, f"each layer alone in {step.lower}")
    }
    costs = fewest(sorted(step.layers, key=lambda layer: -errors[layer]), judge, fits)
    reasons = {
        layer: f"{step.lower} here costs {cost.explain(gate.budget)}{step.remark(layer)}"
        for layer, cost in costs.items()
    }
    found = Candidate(_name(step, len(costs)), step.plan(reasons), judge(list(costs)))
    assert fits(found.verdict), f"{found.name}: the plan is not the one that was measured"
    return [lowered, found]


def _name(step: _Step, raised: int) -> str:
    return f"{step.lower}, {raised} layer{'s' if raised > 1 else ''} left in {step.higher}" if raised else step.lower


def _fp16_step(network: Network, fixed: Mapping[str, Layer]) -> _Step:
    """From fp32 to fp16; the layers of `fixed` always stay in fp32."""
    units = _units(network)
    operators = {node.name: node.op_type for node in network.nodes}

    def plan(raised: Raised) -> Plan:
        layers = {
            node: Layer(op=operators[node], precision="fp32", reason=reason)
            for unit, reason in raised.items()
            for node in units[unit]
        }
        return Plan.without_int8(network, {**fixed, **layers})

    def alone(layer: str) -> Plan:
        return plan(dict.fromkeys((unit for unit in units if unit != layer), _TRIED))

    return _Step("fp16", "fp32", list(units), plan, alone, remark=lambda layer: "")


def _units(network: Network) -> dict[str, list[str]]:
    """Node -> itself and the nodes that pass its values on. They are raised together, to keep a value's precision."""
    units: dict[str, list[str]] = defaultdict(list)
    unit_of: dict[str, str] = {}  # by tensor
    for node in network.nodes:
        if network.float_tensors.isdisjoint(node.output):
            continue
        passes = node.op_type in (*PASSING, "Relu") and node.input[0] in unit_of
        unit = unit_of[node.input[0]] if passes else node.name
        units[unit].append(node.name)
        unit_of |= dict.fromkeys(node.output, unit)
    return dict(units)


def _int8_step(network: Network, evidence: Evidence, method: Method, body: Plan) -> _Step:
    """From `body`, a plan of fp16 and fp32, to int8."""
    fp32 = {name: layer.reason for name, layer in body.layers.items()}

    def plan(raised: Raised) -> Plan:
        made = make_plan(network, evidence, method, {**fp32, **raised})
        layers = made.layers | body.layers
        return made.model_copy(update={"layers": layers, "targets": decide_targets(network, layers, made.ranges)})

    whole = plan({})
    layers = [name for name, layer in whole.layers.items() if layer.precision == "int8"]

    def alone(layer: str) -> Plan:
        others = {
            name: Layer(op=whole.layers[name].op, precision="fp16", reason="") for name in layers if name != layer
        }
        return whole.model_copy(update={"layers": whole.layers | others})

    return _Step("int8", "fp16", layers, plan, alone, lambda layer: _remark(network, evidence.statistics, whole, layer))


def _remark(network: Network, statistics: Statistics, plan: Plan, layer: str) -> str:
    """Why one scale fits a layer's input badly, if the statistics show a reason; else ""."""
    tensor = next(node.input[0] for node in network.nodes if node.name == layer)
    if tensor in statistics.channel_sums:
        means = np.abs(statistics.channel_means(tensor))
        largest, usual = int(means.argmax()), float(np.median(means))
        if means[largest] > _OUTLIER * usual > 0:
            return f"; channel {largest} of {tensor} is {means[largest] / usual:.0f} times as large as the median one"
    histogram = summed(statistics.histograms, plan.range_of()[tensor].tensors)
    counts = histogram.counts.copy()
    counts[0] = 0  # the exact zeros of a ReLU
    cumulative = np.cumsum(counts)
    usual = float(LOWER_EDGES[np.searchsorted(cumulative, 0.999 * cumulative[-1])])
    if cumulative[-1] and histogram.maximum > _OUTLIER * usual:
        return f"; {tensor} reaches {histogram.maximum / usual:.0f} times its 99.9th percentile"
    return ""


def _interval(verdict: Verdict, metric: str) -> str:
    if not verdict.deltas:
        return "NaN"
    delta = verdict.deltas[metric]
    value, low, high = (decimal(number, signed=True) for number in (delta.value, delta.low, delta.high))
    return f"{value} [{low}, {high}]"
