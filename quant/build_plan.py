"""The plan that a build follows: edited, from a calib.cache, from counts of images, or searched within a budget."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sodeploy import terminal
from sodeploy.artifacts import write_manifest
from sodeploy.calib_data import Dataset, open_dataset
from sodeploy.calib_data.mask_sets import check_masks
from sodeploy.quant.budget.gate import require_uncounted
from sodeploy.quant.budget.search import find_plan
from sodeploy.quant.calib_cache import plan_from_cache
from sodeploy.quant.calibration.methods import Method
from sodeploy.quant.calibration.observer import calibrate
from sodeploy.quant.emit.targets import targets_of
from sodeploy.quant.graph import Network
from sodeploy.quant.planning.decide import make_plan
from sodeploy.quant.planning.drift import drift
from sodeploy.quant.planning.fp16_range import beyond_fp16
from sodeploy.quant.planning.plan import Plan, load_plan, save_plan
from sodeploy.quant.planning.targets import CpuKind, for_cpu
from sodeploy.quant.sources import Cache, Counted, Edited, Source, beside, evidence_of
from sodeploy.quant.write_graphs import discard_graphs
from sodeploy.runtime.measure.budget import Budget

SCENES = "synthetic:calib:4:320"  # in place of calibration images, for a build of fp16 alone


@dataclass(frozen=True)
class Within:
    """A limit to the loss of accuracy, and the images and masks to measure the loss on."""

    budget: Budget
    evaluation: Dataset

    @classmethod
    def of(cls, budget: Budget, evaluation: Dataset) -> "Within":
        """The limit, after a check of the masks.

        Raises:
            UserError: a mask cannot be read; or every mask is empty or full.
        """
        check_masks(evaluation, evaluation.name)
        return cls(budget, evaluation)


@dataclass(frozen=True)
class Planned:
    """A plan, its own file, and the files it was made from."""

    plan: Plan
    file: Path | None = None
    statistics: Path | None = None
    search: Path | None = None


def plan_of(
    source: Source | None,
    network: Network,
    base: Path,
    method: Method,
    within: Within | None,
    cpu: CpuKind,
    bf16: bool,
) -> Planned:
    """The plan to follow; one that is made here is written to `base` with the suffix `.plan.json`.

    Args:
        source: where the ranges come from; None for floats alone.
        base: the build's folder and the first part of its file names.
        within: search the plan within this limit. Not with `Cache` or `Edited`.
        cpu: the x86 CPUs that the graph for onnxruntime is made for. An edited plan states it itself.
        bf16: a bf16 graph is made too, so that a note need not offer it.

    Raises:
        UserError: a file of the source cannot be read or is of another network; or no plan keeps to the limit.
    """
    if isinstance(source, Edited):
        return Planned(load_plan(source.plan, network), source.plan)
    path = beside(base, ".plan.json")
    if isinstance(source, Cache):
        plan = for_cpu(plan_from_cache(network, source.file), cpu)
        write_plan(plan, path, {"model": network.path, "calib_cache": source.file}, f"ranges from {source.file}")
        return Planned(plan, path)
    if within is not None and isinstance(source, Counted):
        require_uncounted(source.statistics, within.evaluation)
    evidence, counted = evidence_of(source, network, base, method) if source is not None else (None, None)
    inputs = {"model": network.path} | ({"statistics": counted} if counted else {})
    if within is not None:
        record = beside(base, ".search.json")
        found = find_plan(network, within.evaluation, within.budget, record, evidence, method)
        plan = for_cpu(found.plan, cpu)
        facts = {
            "evaluation": str(within.evaluation),
            "budget": within.budget,
            "differences": {name: asdict(delta) for name, delta in found.verdict.deltas.items()},
        }
        write_plan(plan, path, inputs, found.name, **facts)
        planned = Planned(plan, path, counted, record)
    elif evidence is not None:
        plan = for_cpu(make_plan(network, evidence, method), cpu)
        write_plan(plan, path, inputs, f"ranges by {method} from {len(evidence.statistics.images)} images")
        planned = Planned(plan, path, counted)
    else:
        return _without_int8(network, beside(base, ".fp16.plan.json"), bf16)
    if evidence is not None and (moved := drift(planned.plan, evidence.statistics)) is not None:
        terminal.note(str(moved))
    return planned


def _without_int8(network: Network, path: Path, bf16: bool) -> Planned:
    """A plan of floats with the nodes in fp32 that fp16 would change; it is written only if there are any.

    There are no calibration images. Constants are known, and activations are counted on drawn scenes.
    """
    layers = beyond_fp16(network, calibrate(network, open_dataset(SCENES, masks=False)))
    plan = Plan.without_int8(network, layers)
    if not layers:
        return Planned(plan)
    save_plan(plan, path)
    write_manifest(path, {"model": network.path}, activations_from=SCENES)
    held = sum(layer.bf16 is True for layer in layers.values())
    remedy = "" if bf16 or not held else f"; --bf16 writes a graph that has {held} of them in bf16"
    terminal.note(f"wrote {path}: {len(layers)} nodes stay in fp32, {next(iter(layers.values())).reason}{remedy}")
    return Planned(plan, path)


def write_plan(plan: Plan, path: Path, inputs: dict[str, Path], origin: str, **facts: Any) -> None:
    """Write a plan NAME.plan.json with its manifest, and remove the graphs of an older plan of NAME.

    Args:
        inputs: the files that the plan was made from, by their role.
        origin: where the ranges come from, for the note.
        facts: further fields of the manifest.
    """
    base = path.with_name(path.name.removesuffix(".plan.json"))
    discard_graphs(base, targets_of(plan, ("fp16", "bf16")))  # first: a kill leaves no graph of another plan
    save_plan(plan, path)
    write_manifest(path, inputs, **({"method": plan.calibration.method} if plan.calibration else {}), **facts)
    terminal.note(f"wrote {path}: {len(plan.nodes('int8'))} of {len(plan.layers)} layers int8, {origin}")
