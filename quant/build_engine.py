"""From a float32 ONNX network to everything it can be deployed as: a plan, a graph per engine, and the engines.

    python quant/build_engine.py out/u2netp.onnx --int8 --calib DATA --output-dir out/
    python quant/build_engine.py out/u2netp.onnx --fp16 --output-dir out/

writes

    out/u2netp.fp16.onnx        for TensorRT, TensorRT-RTX and onnxruntime on a GPU
    out/u2netp.fp16.sim.onnx    what these compute, as roundings in fp32: the accuracy of fp16 without a GPU

and, with --int8,

    out/u2netp.equalized.onnx   where channels of one tensor differ much: the same function with equal ones, which the
                                following are of (quant/equalize.py)
    out/u2netp.statistics.npz   what calibration saw; another --method reads it instead of running the network again
    out/u2netp.rounding.npz     which weights are rounded up and which down (quant/planning/rounding.py)
    out/u2netp.plan.json        every decision; quant/plan.py shows, compares and edits it (--plan takes an edited one)
    out/u2netp.int8.trt.onnx    for TensorRT and TensorRT-RTX
    out/u2netp.int8.cpu.onnx    for onnxruntime on a CPU
    out/u2netp.int8.sim.onnx    what the engine will compute, as fake quantization: its accuracy without a GPU

and an engine per precision where a builder is installed.

    python quant/build_engine.py out/u2netp.onnx --int8 --calib DATA --eval OTHER --max-drop s=0.002,mae=0.001

leaves as few layers in fp16, and nodes in fp32, as keep the losses on OTHER within the budget (quant/budget/search.py),
and
writes besides

    out/u2netp.search.json, .npz    what was measured; the same command goes on from there after an interrupt
"""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer

from sodeploy import terminal
from sodeploy.artifacts import atomic_write, read_manifest, sha256, write_manifest
from sodeploy.calib_data import Dataset, open_dataset
from sodeploy.errors import UserError
from sodeploy.quant import engine
from sodeploy.quant.budget.gate import require_disjoint
from sodeploy.quant.budget.search import find_plan
from sodeploy.quant.calib_cache import plan_from_cache
from sodeploy.quant.calibration.methods import DEFAULT, METHODS, Method
from sodeploy.quant.calibration.observer import gather
from sodeploy.quant.calibration.statistics import Statistics, load_statistics
from sodeploy.quant.emit.checks import check_cpu, check_tensorrt, unequal_scales
from sodeploy.quant.emit.cpu import emit_cpu, integer_layers
from sodeploy.quant.emit.fp16 import emit_fp16, emit_fp16_simulation
from sodeploy.quant.emit.tensorrt import emit_simulation, emit_tensorrt
from sodeploy.quant.engines.shapes import Profile, parse_profile
from sodeploy.quant.equalize import needs_equalization, write_equalized
from sodeploy.quant.graph import Network, load_network
from sodeploy.quant.planning.decide import all_ranges, make_plan
from sodeploy.quant.planning.drift import drift
from sodeploy.quant.planning.evidence import Evidence
from sodeploy.quant.planning.input_error import input_errors
from sodeploy.quant.planning.plan import Plan, Rounding, load_plan, read_plan, save_plan
from sodeploy.quant.planning.rounding import adaptive_steps, write_steps
from sodeploy.runtime.gpu.driver import driver_problem
from sodeploy.runtime.measure.budget import Budget, parse_budget


def build(
    model: str | Path,
    output_dir: str | Path,
    calibration: Dataset | None = None,
    method: Method = DEFAULT,
    plan_file: str | Path | None = None,
    engines: bool = True,
    profile: Profile | None = None,
    calib_cache: str | Path | None = None,
    evaluation: Dataset | None = None,
    budget: Budget | None = None,
    statistics_file: str | Path | None = None,
    equalize: bool = True,
    adaptive_rounding: bool = True,
) -> list[Path]:
    """Write the fp16 graph and, given a calibration set or a plan, the int8 graphs; then the engines.

    Args:
        model: float32 ONNX with a contract.
        calibration: images to read ranges from; None for fp16 alone, or when a plan is given.
        plan_file: an edited plan, to be used as it stands.
        engines: build them with whatever builder is here.
        profile: the shapes an engine takes, where the network's are dynamic.
        calib_cache: of TensorRT <= 10, to take the ranges from instead of calibrating.
        evaluation: images and masks to measure losses on, none of them in `calibration`; with a budget only.
        budget: the most that may be lost, by metric; the plan is searched for.
        statistics_file: what calibration saw already (quant/calibrate.py), of `model` as it is; the images of
            `calibration` are then only what the effects of rounding are measured on.
        equalize: first bring the channels of a network with depthwise convolutions to one magnitude.
        adaptive_rounding: round weights by what they do on calibration images, not each to its nearest step.

    Returns:
        The files written, in the order in which they were made.

    Raises:
        UserError: whatever of these is not as it should be; files already finished stay.
    """
    network = load_network(model)
    base = Path(output_dir) / Path(model).stem
    if evaluation is not None and calibration is not None:
        require_disjoint(calibration, evaluation)
    if plan_file is not None:
        network = _planned(network, Path(plan_file))
    elif equalize and calibration is not None and statistics_file is None and needs_equalization(network):
        network = _equalized(network, base, calibration)
    statistics, counted = _statistics(network, base, calibration, statistics_file, evaluation)
    evidence = Evidence(statistics) if statistics is not None else None
    if statistics is not None and calibration is not None:
        _require_counted(calibration, statistics)
        errors = input_errors(network, all_ranges(network, statistics, method), calibration)
        if adaptive_rounding:
            evidence = Evidence(statistics, *_round(network, base, calibration), errors)
        else:
            evidence = Evidence(statistics, input_errors=errors)
    plan: Plan | None
    if evaluation is not None and budget is not None:
        plan, made = _plan_within(budget, evaluation, network, base, evidence, counted, method)
    else:
        plan, made = _plan(network, base, evidence, counted, method, plan_file, calib_cache)
    if plan is not None and statistics is not None and (moved := drift(plan, statistics)) is not None:
        terminal.note(str(moved))
    inputs = {"model": network.path, **({"plan": made[-1]} if plan else {})}
    graphs = {".fp16": emit_fp16(network, plan), ".fp16.sim": emit_fp16_simulation(network, plan)}
    if plan is not None and plan.calibration is not None:
        graphs[".int8.trt"] = emit_tensorrt(network, plan)
        graphs[".int8.cpu"] = emit_cpu(network, plan)
        graphs[".int8.sim"] = emit_simulation(network, plan)
        _check(base, graphs, network, plan)
    for suffix, graph in graphs.items():
        path = _beside(base, f"{suffix}.onnx")
        onnx.checker.check_model(graph)
        with atomic_write(path) as temporary:
            onnx.save(graph, temporary)
        write_manifest(path, inputs, contract=network.contract.model_dump(mode="json"))
        terminal.note(f"wrote {path}")
        made.append(path)
    return made + (_engines(base, graphs, profile) if engines else [])


def _planned(network: Network, plan_file: Path) -> Network:
    """The network that a plan is for: this one, or the equalized one that was made from it and lies beside the plan."""
    plan = read_plan(plan_file)
    beside = plan_file.with_name(plan.onnx)
    if plan.onnx_sha256 == network.digest or not beside.is_file() or sha256(beside) != plan.onnx_sha256:
        return network
    made_from = read_manifest(beside)["inputs"].get("model", {}).get("sha256")
    return load_network(beside) if made_from == sha256(network.path) else network


def _equalized(network: Network, base: Path, calibration: Dataset) -> Network:
    path = _beside(base, ".equalized.onnx")
    write_equalized(network, calibration, path)
    terminal.note(f"wrote {path}: {network.path.name} with the channels of a tensor brought to one magnitude")
    return load_network(path)


def _round(network: Network, base: Path, images: Dataset) -> tuple[dict[str, np.ndarray], Rounding]:
    """Round weights adaptively, and leave them where plans find them."""
    path = _beside(base, ".rounding.npz")
    steps = adaptive_steps(network, images)
    write_steps(network, steps, path)
    terminal.note(f"wrote {path}: {len(steps)} layers")
    return steps, Rounding(file=path.name, sha256=sha256(path))


def _require_counted(images: Dataset, statistics: Statistics) -> None:
    """Refuse images to calibrate on that were not counted, so that nothing would keep them from being evaluated on."""
    if strange := [sample.name for sample in images if sample.digest() not in statistics.images]:
        raise UserError(
            f"--calib has {len(strange)} images that --statistics has not, e.g. {strange[0]}; leave them out"
        )


def _plan(
    network: Network,
    base: Path,
    evidence: Evidence | None,
    counted: Path,
    method: Method,
    plan_file: str | Path | None,
    calib_cache: str | Path | None,
) -> tuple[Plan | None, list[Path]]:
    """The plan to follow, if int8 is wanted, and the files it rests on, its own last."""
    if plan_file is not None:
        return load_plan(plan_file, network), [Path(plan_file)]
    path = _beside(base, ".plan.json")
    if calib_cache is not None:
        plan = plan_from_cache(network, calib_cache)
        save_plan(plan, path)
        terminal.note(f"wrote {path}: {_counted(plan)}, ranges from {calib_cache}")
        return plan, [Path(calib_cache), path]
    if evidence is None:
        return None, []
    plan = make_plan(network, evidence, method)
    save_plan(plan, path)
    terminal.note(f"wrote {path}: {_counted(plan)}, ranges by {method} from {len(evidence.statistics.images)} images")
    return plan, [counted, path]


def _plan_within(
    budget: Budget,
    evaluation: Dataset,
    network: Network,
    base: Path,
    evidence: Evidence | None,
    counted: Path,
    method: Method,
) -> tuple[Plan, list[Path]]:
    """The plan that loses no more than `budget`, of int8 if there are images to calibrate on, and its files."""
    inputs = {"model": network.path}
    if evidence is not None:
        inputs["statistics"] = counted
    record = _beside(base, ".search.json")
    found = find_plan(network, evaluation, budget, record, evidence, method)
    path = _beside(base, ".plan.json")
    save_plan(found.plan, path)
    differences = {name: asdict(delta) for name, delta in found.verdict.deltas.items()}
    write_manifest(path, inputs, evaluation=str(evaluation), budget=budget, differences=differences)
    terminal.note(f"wrote {path}: {found.name}")
    return found.plan, [*list(inputs.values())[1:], record, path]


def _counted(plan: Plan) -> str:
    return f"{len(plan.nodes('int8'))} of {len(plan.layers)} layers int8"


def _statistics(
    network: Network, base: Path, calibration: Dataset | None, counted: str | Path | None, evaluation: Dataset | None
) -> tuple[Statistics | None, Path]:
    """What calibration saw, and the file that holds it; None if int8 is not wanted, or not from images.

    None of the images may be in `evaluation`.
    """
    if counted is not None:
        statistics = load_statistics(counted)
        if evaluation is not None:
            common = [sample for sample in evaluation if sample.digest() in statistics.images]
            require_disjoint(Dataset(str(counted), common), evaluation)
        return statistics, Path(counted)
    file = _beside(base, ".statistics.npz")
    if calibration is None:
        return None, file
    return gather(network, calibration, file), file


def _check(base: Path, graphs: dict[str, onnx.ModelProto], network: Network, plan: Plan) -> None:
    """Refuse an int8 graph that an engine would refuse; warn of one that it would run slowly."""
    source = _beside(base, ".int8.trt.onnx")
    check_tensorrt(graphs[".int8.trt"], source)
    for problem in unequal_scales(graphs[".int8.trt"]):
        terminal.warn(f"{source}: {problem}")
    integer = _beside(base, ".int8.cpu.onnx")
    if not integer_layers(network, plan):
        terminal.warn(f"{integer} computes in fp32: int8 does not pay on a CPU where each result goes through a PReLU")
    if left := check_cpu(graphs[".int8.cpu"]):
        terminal.warn(
            f"{integer}: onnxruntime will compute {len(left)} int8 layer(s) in float, slowly: "
            f"{', '.join(left)}; set them to fp16 in the plan"
        )


def _engines(base: Path, graphs: Iterable[str], profile: Profile | None) -> list[Path]:
    """Build an engine of each precision, or say plainly why there is none."""
    try:
        builder = engine.choose_builder()
    except UserError as reason:
        terminal.note(f"no engine was built: {reason}")
        return []
    made = []
    for suffix in graphs:
        if suffix in (".fp16", ".int8.trt"):
            precision = suffix.split(".")[1]
            path = _beside(base, f".{precision}.engine")
            report = engine.build(_beside(base, f"{suffix}.onnx"), path, builder, profile=profile)
            for warning in report.warnings:
                terminal.warn(warning)
            terminal.note(f"wrote {report}")
            made.append(path)
    return made


def bench_command(model: Path, made: Sequence[Path], data: str | None, max_drop: str | None) -> str:
    """The command that measures what was made on this machine and recommends one of it.

    Args:
        data: images with masks; "DATA" stands for any if it is None.
        max_drop: as written; an example by default.
    """
    if driver_problem() is None:
        kinds, device = [".fp16.engine", ".int8.engine"], ["--device", "cuda"]
    else:
        kinds, device = [".int8.cpu.onnx", ".fp16.sim.onnx", ".int8.sim.onnx"], []
    models = [model, *(path for kind in kinds for path in made if path.name.endswith(kind))]
    options = ["--data", data or "DATA", "--max-drop", max_drop or "s=0.002,mae=0.001", *device]
    return shlex.join(["python", "runtime/bench.py", *map(str, models), *options])


def _beside(base: Path, suffix: str) -> Path:
    return base.with_name(base.name + suffix)


def main(
    model: Annotated[Path, typer.Argument(help="float32 ONNX with a contract, from export/to_onnx.py")],
    output_dir: Annotated[Path, typer.Option(help="folder for everything that is made")] = Path("out"),
    int8: Annotated[bool, typer.Option("--int8", help="int8 too; needs --calib, --plan or --calib-cache")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="fp16; always made along with int8, to compare with")] = False,
    calib: Annotated[
        str | None, typer.Option(help="images to calibrate on: folder, list, or synthetic:calib[:N]")
    ] = None,
    images: Annotated[int | None, typer.Option(help="use the first N of them", min=1)] = None,
    method: Annotated[str, typer.Option(help=f"how ranges are chosen: {', '.join(METHODS)}")] = DEFAULT,
    plan: Annotated[Path | None, typer.Option(help="follow this (edited) plan instead of calibrating")] = None,
    calib_cache: Annotated[
        Path | None, typer.Option(help="take ranges from this calib.cache of TensorRT <= 10 instead of calibrating")
    ] = None,
    statistics: Annotated[Path | None, typer.Option(help="what quant/calibrate.py counted, instead of --calib")] = None,
    evaluate: Annotated[
        str | None, typer.Option("--eval", help="images and masks to measure losses on, for --max-drop")
    ] = None,
    max_drop: Annotated[
        str | None, typer.Option(help="lose no more than this on --eval, at 95 %: s=0.002,mae=0.001")
    ] = None,
    engines: Annotated[bool, typer.Option(help="build engines where a builder is installed")] = True,
    profile: Annotated[str | None, typer.Option(help="for dynamic shapes: min:opt:max, each NxCxHxW")] = None,
    equalize: Annotated[bool, typer.Option(help="bring channels to one magnitude where layers are depthwise")] = True,
    adaptive_rounding: Annotated[
        bool, typer.Option(help="round weights by their effect on calibration images, not each to its nearest step")
    ] = True,
) -> None:
    """Calibrate, plan, write a graph per engine, and build the engines."""
    if not (int8 or fp16):
        raise UserError("say what to build: --int8 (with --calib DATA), --fp16, or both")
    if method not in METHODS:
        raise UserError(f"--method {method} is not one of {', '.join(METHODS)}")
    sources = {"--plan": plan, "--calib-cache": calib_cache, "--statistics": statistics, "--calib": calib}
    given = [name for name, value in sources.items() if value]
    if int8 and len(given) > 1 and given != ["--statistics", "--calib"]:  # which rounding looks at
        raise UserError(f"{' and '.join(given)} each say where the ranges come from; give one of them")
    if int8 and not given:
        raise UserError("--int8 needs images to read ranges from: --calib DATA, a folder or a list of images")
    budget = parse_budget(max_drop) if max_drop is not None else None
    if (evaluate is None) != (budget is None):
        raise UserError("--max-drop, what may be lost, and --eval, the images to measure it on, need one another")
    if budget is not None and int8 and calib is None and statistics is None:
        raise UserError(f"--max-drop looks for a plan of its own, from images: give --calib instead of {given[0]}")
    calibration = None
    if int8 and calib is not None:
        found = open_dataset(calib, masks=False)
        calibration = Dataset(found.name, list(found)[:images])
    made = build(
        model,
        output_dir,
        calibration,
        method,
        plan if int8 else None,
        engines,
        parse_profile(profile) if profile else None,
        calib_cache if int8 else None,
        open_dataset(evaluate) if evaluate is not None else None,
        budget,
        statistics if int8 else None,
        equalize,
        adaptive_rounding,
    )
    terminal.note(f"what it loses and whether it pays here: {bench_command(model, made, evaluate, max_drop)}")


if __name__ == "__main__":
    terminal.run(main)
