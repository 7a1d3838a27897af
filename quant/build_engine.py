"""From a float32 ONNX network to every form it is deployed in: a plan, a graph per engine, and the engines.

    python quant/build_engine.py out/u2netp.onnx --int8 --calib DATA --output-dir out/
    python quant/build_engine.py out/u2netp.onnx --fp16 --output-dir out/

writes the graphs of quant/emit/targets.py:

    out/u2netp.fp16.onnx        for TensorRT, TensorRT-RTX and onnxruntime on a GPU
    out/u2netp.fp16.sim.onnx    the roundings of that graph, in fp32: fp16's accuracy without a GPU

and, with --int8,

    out/u2netp.equalized.onnx   only for networks with depthwise convolutions: the same function, its channels brought
                                to one magnitude (quant/equalize.py); the following files are made of it
    out/u2netp.statistics.npz   the counts of calibration; another --method reads them and runs no network
    out/u2netp.rounding.npz     the jointly rounded weights (quant/planning/rounding.py)
    out/u2netp.plan.json        every decision; quant/plan.py shows, compares and edits it, --plan follows it
    out/u2netp.int8.trt.onnx    for TensorRT and TensorRT-RTX
    out/u2netp.int8.cpu.onnx    for onnxruntime on a CPU
    out/u2netp.int8.openvino.onnx   for OpenVINO on a CPU
    out/u2netp.int8.sim.onnx    the engine's int8 as fake quantization: its accuracy without a GPU

and, with --bf16, for a network whose values go beyond fp16,

    out/u2netp.bf16.onnx        for TensorRT and TensorRT-RTX
    out/u2netp.bf16.sim.onnx    the roundings of that graph, in fp32

and an engine per precision where a builder is installed. Every file but the search's has a manifest beside it.

    python quant/build_engine.py out/u2netp.onnx --int8 --calib DATA --eval OTHER --max-drop s=0.002,mae=0.001

leaves as few layers in fp16, and nodes in fp32, as keep the losses on OTHER within the budget (quant/budget/search.py).
It also writes

    out/u2netp.search.json, .npz    the measurements; after an interrupt the same command continues from there
"""

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from sodeploy import command_line, terminal
from sodeploy.artifacts import manifest_path
from sodeploy.calib_data import Dataset, Sample, open_dataset, open_photographs
from sodeploy.calib_data.layouts import image_files
from sodeploy.calib_data.options import LimitOption, RootOption
from sodeploy.errors import UserError
from sodeploy.folder_lock import locked
from sodeploy.memory import free_large_blocks_at_once
from sodeploy.quant import engine
from sodeploy.quant.budget.gate import require_disjoint
from sodeploy.quant.build_plan import SCENES, Within, plan_of, write_plan
from sodeploy.quant.calibration.inspect_graph import some
from sodeploy.quant.calibration.methods import DEFAULT, METHODS, Method
from sodeploy.quant.emit.float_types import FP16_ALONE, FloatName
from sodeploy.quant.emit.rewriter import GraphPrecision
from sodeploy.quant.emit.targets import TARGETS, targets_of
from sodeploy.quant.engines.shapes import Profile, checked_profile, parse_profile
from sodeploy.quant.graph import Network, load_network
from sodeploy.quant.planning.plan import Plan
from sodeploy.quant.planning.targets import CpuKind
from sodeploy.quant.proof import IMAGES, Disproved, Prover, prove_engine
from sodeploy.quant.sources import Cache, Counted, Edited, Images, Source, beside, network_for
from sodeploy.quant.write_graphs import Written, write_graphs
from sodeploy.runtime.gpu.driver import driver_problem
from sodeploy.runtime.measure.budget import Budget, parse_budget
from sodeploy.runtime.session import installed_engines
from sodeploy.stages import command

_DATA_SET = 4  # images in a folder that holds hardly anything else


@dataclass(frozen=True)
class Built:
    """The files of a build.

    Attributes:
        network: the float32 network that everything was made of: the model, or its equalized form.
        plan: None for fp16 alone.
        statistics: the counts that the plan rests on, if it rests on counts.
        search: the record of a search within a budget.
        graphs: target name, such as "int8.cpu" -> ONNX file.
        engines: precision -> engine; empty where no builder is installed.
    """

    network: Path
    plan: Path | None = None
    statistics: Path | None = None
    search: Path | None = None
    graphs: dict[str, Path] = field(default_factory=dict)
    engines: dict[GraphPrecision, Path] = field(default_factory=dict)


def build(
    model: str | Path,
    output_dir: str | Path,
    source: Source | Dataset | str | Path | None = None,
    *,
    method: Method = DEFAULT,
    within: Within | None = None,
    engines: bool = True,
    shapes: Profile | None = None,
    cpu: CpuKind = "any",
    floats: Collection[FloatName] = FP16_ALONE,
) -> Built:
    """Write the float graphs and, given a source of ranges, the int8 graphs; then the engines.

    Args:
        model: float32 ONNX with a contract.
        source: where the ranges come from: `Images`, `Counted`, `Cache` or `Edited`; a data set, or what `open_dataset`
            takes, stands for its `Images`; None for floats alone.
        method: how ranges are read from counts.
        within: search the plan with the fewest layers above int8 that keeps the loss within a budget. Not with `Cache`
            or `Edited`.
        engines: build engines with an installed builder.
        shapes: input shapes that an engine takes, for a network with dynamic shapes.
        cpu: the x86 CPUs that the graph for onnxruntime is made for. `vnni` keeps all weight steps, but saturates on a
            CPU without VNNI. An edited plan states it itself.
        floats: precisions of the float graphs: fp16, bf16 or both.

    Raises:
        UserError: bad input, named in the message; files that were finished before stay.
    """
    if isinstance(source, str | Path | Dataset):
        source = Images(open_photographs(source))
    if within is not None and isinstance(source, Cache | Edited):
        raise UserError("--max-drop makes a plan of its own, from images: give --calib instead")
    if cpu != "any" and isinstance(source, Edited):
        raise UserError(f"--cpu {cpu}: {source.plan} states it itself; edit its targets / cpu / weight_steps")
    network = load_network(model)
    if engines and _can_build_engines():
        checked_profile(shapes, network.shape(network.input), network.contract, network.path)  # before anything is made
    _require_no_pictures(Path(output_dir))
    base = Path(output_dir) / Path(model).stem
    if within is not None and isinstance(source, Images):
        require_disjoint(source.dataset, within.evaluation)
    with locked(output_dir):
        file = network.path
        network = network_for(source, network, base)
        planned = plan_of(source, network, base, method, within, cpu, "bf16" in floats)
        prover = Prover(file, network, _proving_images(source))
        written = write_graphs(network, planned.plan, planned.file, base, prover, targets_of(planned.plan, floats))
        made = _build_engines(written, base, shapes, prover) if engines else {}
    _report_refused(written)
    return Built(
        network=network.path,
        plan=planned.file,
        statistics=planned.statistics,
        search=planned.search,
        graphs=written.files,
        engines=made,
    )


def _can_build_engines() -> bool:
    try:
        engine.choose_builder()
    except UserError:
        return False
    return True


def _require_no_pictures(folder: Path) -> None:
    """Refuse a folder of pictures: a build would mix a dozen files into a data set."""
    pictures = image_files(folder) if folder.is_dir() else []
    if len(pictures) >= _DATA_SET and 2 * len(pictures) > sum(entry.is_file() for entry in folder.iterdir()):
        raise UserError(
            f"{folder} holds {len(pictures)} images, such as {pictures[0].name}, and looks like a data set; choose "
            "another --output-dir"
        )


def emit(network: Network | str | Path, plan: Plan, output_dir: str | Path) -> dict[str, Path]:
    """Write a plan, and the graphs of every engine by it.

    Args:
        network: the network of the plan, or its ONNX file.

    Returns:
        Target name, such as "int8.cpu" -> ONNX file.

    Raises:
        UserError: the plan is of another network, or no graph of a precision keeps what it promises.
    """
    network = network if isinstance(network, Network) else load_network(network)
    if plan.onnx_sha256 != network.digest:
        raise UserError(f"the plan was made for another network than {network.path}; make one for this file")
    _require_no_pictures(Path(output_dir))
    path = beside(Path(output_dir) / network.path.stem, ".plan.json")
    write_plan(plan, path, {"model": network.path}, "emitted as it is")
    return build(network.path, output_dir, Edited(path), engines=False).graphs


def _report_refused(written: Written) -> None:
    """Warn of every graph and engine that was not written.

    Raises:
        UserError: no graph of a precision is left.
    """
    remedy = "set the layers that lose most to fp16 (plan edit), or report this with the file"
    for line in written.refused:
        terminal.warn(f"not written: {line}; {remedy}")
    for precision in ("fp16", "bf16", "int8"):
        asked = [line for line in written.refused if f".{precision}" in line]
        if asked and not any(name.startswith(precision) for name in written.files):
            raise UserError(f"no {precision} graph was written: {asked[0]}; {remedy}")


def _proving_images(source: Source | None) -> list[Sample]:
    """A few images to run every graph on: of the calibration, or drawn ones where there is none."""
    images = source.dataset if isinstance(source, Images) else source.images if isinstance(source, Counted) else None
    return some(open_dataset(SCENES, masks=False) if images is None else images, IMAGES)


def _build_engines(written: Written, base: Path, shapes: Profile | None, prover: Prover) -> dict[Any, Path]:
    """Build an engine of each precision, or say why there is none.

    Where an engine can run, it is held against its graph. One that fails has no file afterwards.
    """
    try:
        builder = engine.choose_builder()
    except UserError as reason:
        terminal.note(f"no engine was built: {reason}")
        return {}
    made = {}
    for target in TARGETS:
        if not target.engine or target.name not in written.files:
            continue
        path = beside(base, f".{target.precision}.engine")
        report = engine.build(written.files[target.name], path, builder, profile=shapes)
        for warning in report.warnings:
            terminal.warn(warning)
        try:
            proof = prove_engine(path, prover, written.proofs[target.name]) if driver_problem() is None else None
        except Disproved as reason:
            written.refused.append(f"{path}: {reason}")
            path.unlink(missing_ok=True)
            manifest_path(path).unlink(missing_ok=True)
            continue
        made[target.precision] = path
        terminal.note(f"wrote {report}" + (f"; {proof}" if proof else ""))
    return made


def bench_command(
    model: Path, built: Built, data: Sequence[str] | None, max_drop: str | None, root: Path | None = None
) -> str:
    """The command that measures the build on this machine and recommends a graph or an engine.

    Args:
        data: images with masks; the word DATA in their place by default.
        max_drop: as the user wrote it; an example by default.
        root: folder of the data sets.
    """
    if driver_problem() is None:
        made, device = list(built.engines.values()), ["--device", "cuda"]
    else:
        here = [one for one in TARGETS if one.name in built.graphs and one.measured_in in installed_engines()]
        made = [built.graphs[one.name] for one in here]
        engines = list(dict.fromkeys(one.measured_in for one in here if one.measured_in))
        device = ["--engine", ",".join(engines)] if len(engines) > 1 else []
    where = [word for one in data or ["DATA"] for word in ("--data", one)] + (["--root", str(root)] if root else [])
    options = [*where, "--max-drop", max_drop or "s=0.002,mae=0.001", *device]
    return f"{command('bench')} {shlex.join(map(str, [model, *made, *options]))}"


def main(
    model: Annotated[Path, typer.Argument(help="float32 ONNX with a contract")],
    output_dir: Annotated[Path, typer.Option(help="folder for all files of the build")] = Path("out"),
    int8: Annotated[bool, typer.Option("--int8", help="int8 too; needs --calib, --plan or --calib-cache")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="fp16 alone; --int8 makes it too, to compare with")] = False,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="bf16: float32's range with 8 bits, where values go beyond fp16")
    ] = False,
    calib: Annotated[
        list[str] | None, typer.Option(help="images to calibrate on: folder, list or synthetic:calib[:N]; repeatable")
    ] = None,
    limit: LimitOption = None,
    method: Annotated[str, typer.Option(help=f"how ranges are chosen: {', '.join(METHODS)}")] = DEFAULT,
    plan: Annotated[Path | None, typer.Option(help="follow this (edited) plan instead of calibrating")] = None,
    calib_cache: Annotated[
        Path | None, typer.Option(help="take ranges from this calib.cache of TensorRT <= 10 instead of calibrating")
    ] = None,
    statistics: Annotated[
        Path | None, typer.Option(help="counts of the stage `calibrate`; --calib then names some of the same images")
    ] = None,
    evaluate: Annotated[
        list[str] | None,
        typer.Option("--eval", help="images and masks to measure losses on, for --max-drop; repeatable"),
    ] = None,
    root: RootOption = None,
    max_drop: Annotated[
        str | None, typer.Option(help="lose no more than this on --eval, at 95 % confidence: s=0.002,mae=0.001")
    ] = None,
    engines: Annotated[bool, typer.Option(help="build engines where a builder is installed")] = True,
    cpu: Annotated[
        CpuKind, typer.Option(help="x86 CPUs that .int8.cpu.onnx is for; vnni keeps 127 weight steps, any 64")
    ] = "any",
    shapes: Annotated[str | None, typer.Option(help="for dynamic shapes: min:opt:max, each NxCxHxW")] = None,
    equalize: Annotated[bool, typer.Option(help="bring channels to one magnitude where layers are depthwise")] = True,
    adaptive_rounding: Annotated[
        bool, typer.Option(help="round the weights of a layer jointly (GPTQ), not each to its nearest step")
    ] = True,
) -> None:
    """Calibrate, plan, write a graph per engine, and build the engines."""
    free_large_blocks_at_once()
    if method not in METHODS:
        raise UserError(f"--method {method} is not one of {', '.join(METHODS)}")
    budget = parse_budget(max_drop) if max_drop is not None else None
    given = {"--plan": plan, "--calib-cache": calib_cache, "--statistics": statistics, "--calib": calib}
    source: Source | None = None
    if int8:
        _require_one_source([name for name, value in given.items() if value], budget)
        dataset = open_photographs(calib, root, limit) if calib else None
        if plan is not None:
            source = Edited(plan)
        elif calib_cache is not None:
            source = Cache(calib_cache)
        elif statistics is not None:
            source = Counted(statistics, dataset, adaptive_rounding)
        elif dataset is not None:
            source = Images(dataset, equalize, adaptive_rounding)
    floats: list[FloatName] = ["fp16"] if fp16 or int8 else []
    built = build(
        model,
        output_dir,
        source,
        method=method,
        within=Within.of(budget, open_dataset(evaluate, root=root)) if budget is not None and evaluate else None,
        engines=engines,
        shapes=parse_profile(shapes) if shapes else None,
        cpu=cpu,
        floats=[*floats, "bf16"] if bf16 else floats,
    )
    if "int8.cpu" in built.graphs and cpu == "any" and plan is None:
        terminal.note(f"{built.graphs['int8.cpu']} is for any x86 CPU; --cpu vnni keeps finer weights where VNNI is")
    terminal.note(
        f"measure its accuracy and speed on this machine: {bench_command(model, built, evaluate, max_drop, root)}"
    )


def _require_one_source(given: list[str], budget: Budget | None) -> None:
    """Refuse options that name two sources of ranges, or one that a budget cannot work with."""
    if len(given) > 1 and given != ["--statistics", "--calib"]:  # which rounding reads
        raise UserError(f"{' and '.join(given)} each say where the ranges come from; give one of them")
    if budget is not None and given[0] in ("--plan", "--calib-cache"):
        raise UserError(f"--max-drop makes a plan of its own, from images: give --calib instead of {given[0]}")


if __name__ == "__main__":
    command_line.run(main)
