"""Ours beside other quantizers of ONNX, in one run on one machine: accuracy, seconds, memory, latency.

    python benchmarks/rivals.py out/u2netp.onnx out/csnet_x1.onnx --calib DATA --eval OTHER [--calib-images 100]

The others are onnxruntime's quantize_static (Entropy and MinMax), NVIDIA's Model Optimizer (entropy), and Intel's NNCF
with fast and with accurate bias correction, and with its accuracy control by S. The last two tools get environments of
their own from rivals-requirements.txt and nncf-requirements.txt. Each works in a process of its own (quantize_as.py)
and sees exactly the inputs that our runtime makes of the calibration images. Every graph is measured in onnxruntime
and, where that is installed, in OpenVINO. Writes rivals.json and rivals.md. Nothing else may run meanwhile if times are
to mean something.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import onnx
import typer
from by_network import add
from cpu_engines import taking
from environments import python_of
from process_cost import CommandFailed, Cost, measure
from quantize_as import masks_of

from sodeploy import command_line, terminal
from sodeploy.artifacts import sha256, write_text
from sodeploy.calib_data import open_dataset
from sodeploy.errors import UserError
from sodeploy.quant.budget.gate import require_disjoint
from sodeploy.quant.calibration.methods import DEFAULT, Method, threshold
from sodeploy.quant.calibration.statistics import load_statistics
from sodeploy.quant.graph import Network, load_network
from sodeploy.runtime.bench import bench
from sodeploy.runtime.contract import PRECISION_KEY, annotate, embed
from sodeploy.runtime.cpu import saturates_int8
from sodeploy.runtime.measure.record import BenchRecord, Row
from sodeploy.runtime.measure.report import Table, decimal, interval, show, to_markdown
from sodeploy.runtime.processing import preprocess
from sodeploy.runtime.session import installed_engines

HERE = Path(__file__).resolve().parent
# The tools with environments of their own -> the requirements of these.
REQUIREMENTS = {"modelopt": HERE / "rivals-requirements.txt", "nncf": HERE / "nncf-requirements.txt"}
BY_MASKS = "nncf-controlled"  # it measures S while it quantizes, so it needs masks
RIVALS = ("onnxruntime-entropy", "onnxruntime-minmax", "modelopt-entropy", "nncf-fast", "nncf-accurate", BY_MASKS)
OUR_OTHER_METHODS: tuple[Method, ...] = ("mse",)  # beside the default
FOR_SATURATING_CPUS = ("onnxruntime-minmax-reduced",)
_SATURATED = "; this CPU has no VNNI and saturates int8 sums, which costs the others' graphs accuracy too"
METRICS = {"s": "S", "mae": "MAE", "mean_f": "mean F"}


@dataclass
class Quantized:
    """A tool's graph of one network and what it cost, or why none is measured."""

    tool: str
    graph: str | None = None
    cost: Cost | None = None
    failure: str = ""


def compare(
    models: list[Path],
    calib: str,
    calib_images: int,
    evaluation: str,
    eval_images: int | None,
    folder: Path,
    environments: Path,
    rivals: Sequence[str] = RIVALS,
) -> list[dict[str, Any]]:
    """Quantize every model with every tool and measure the graphs.

    Args:
        calib: images, as `calib_data.open_dataset` takes them; every tool gets the first `calib_images` of them.
        evaluation: images with masks, of which the first `eval_images` are measured.
        folder: for all graphs.
        environments: folder of the environments of tools that have their own; each is made unless it is there.
        rivals: some of `RIVALS`.

    Returns:
        One record per model:
        `model`, `sha256`, `calibration_images`; `saturates` (`sodeploy.runtime.cpu.saturates_int8`);
        `tools`, the fields of `Quantized`;
        `bench`, the record of `sodeploy.runtime.bench` of the model and of all graphs in the order of `tools`, in each
        engine, with one thread;
        `calibration` of ours alone on all of `calib`: `images`, `seconds`, `peak_mib`, `tensors`, `kl_seconds` (of the
        search for the ranges of all tensors).

    Raises:
        UserError: a model or the data is unfit. A rival that fails is no error but a row that says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = {tool.partition("-")[0] for tool in rivals} & REQUIREMENTS.keys()
    pythons = {
        tool: python_of(environments / tool, REQUIREMENTS[tool], folder / f"{tool}.install.log") for tool in sorted(own)
    }
    engines = [engine for engine in installed_engines() if engine != "openvino-bf16"]
    networks = []
    for path in models:
        network = load_network(path)
        tools = [
            *ours(network, calib, calib_images, folder, DEFAULT),
            *(ours(network, calib, calib_images, folder / method, method)[-1] for method in OUR_OTHER_METHODS),
        ]
        inputs = folder / f"{path.stem}.inputs.npy"
        images = itertools.islice(open_dataset(calib, masks=False), calib_images)
        np.save(inputs, np.stack([preprocess(sample.image(), network.contract) for sample in images]))
        for tool in (*rivals, *(FOR_SATURATING_CPUS if saturates_int8() else ())):
            if tool == BY_MASKS and (lacking := _save_masks(network, calib, calib_images, masks_of(inputs))):
                tools.append(Quantized(tool, failure=lacking))
                continue
            python = pythons.get(tool.partition("-")[0], sys.executable)
            tools.append(rival(network, tool, python, inputs, folder))
        inputs.unlink()
        masks_of(inputs).unlink(missing_ok=True)
        graphs = [str(path), *(tool.graph for tool in tools if tool.graph)]
        taken = taking(path, engines)
        measured = bench(graphs, evaluation, eval_images, threads=1, engines=taken, keys=list(METRICS))
        networks.append(
            {
                "model": str(path),
                "sha256": sha256(path),
                "calibration_images": calib_images,
                "saturates": saturates_int8(),
                "tools": [asdict(tool) for tool in tools],
                "bench": measured.model_dump(mode="json"),
                "calibration": calibration_alone(network, calib, folder),
            }
        )
    return networks


def _save_masks(network: Network, calib: str, count: int, file: Path) -> str:
    """Write the masks of the calibration images at the network's size, `(N, h, w) uint8`; why not, or ""."""
    size = (network.contract.width, network.contract.height)
    try:
        samples = itertools.islice(open_dataset(calib), count)
        masks = [cv2.resize(sample.mask(), size, interpolation=cv2.INTER_NEAREST) for sample in samples]
    except UserError as reason:
        return f"it needs masks of the calibration images ({reason})"
    np.save(file, np.stack(masks))
    return ""


def ours(network: Network, calib: str, calib_images: int, folder: Path, method: Method) -> list[Quantized]:
    """The graphs that quant/build_engine.py makes: one per CPU engine, last the simulation of the one for TensorRT."""
    folder.mkdir(exist_ok=True)
    base = folder / network.path.stem
    Path(f"{base}.statistics.npz").unlink(missing_ok=True)  # else nothing is left to calibrate
    script = HERE.parent / "quant" / "build_engine.py"
    command: list[str | Path] = [sys.executable, script, network.path, "--int8", "--no-engines", "--calib", calib]
    command += ["--images", str(calib_images), "--method", method, "--output-dir", folder]
    cost = _measured(f"sodeploy by {method} on {network.path}", command, Path(f"{base}.sodeploy.log"))
    made = {"onnxruntime": "int8.cpu", "OpenVINO": "int8.openvino", "TensorRT (simulated)": "int8.sim"}
    return [
        Quantized(f"sodeploy by {method}, for {name}", f"{base}.{graph}.onnx", cost) for name, graph in made.items()
    ]


def rival(network: Network, tool: str, python: str | CommandFailed, inputs: Path, folder: Path) -> Quantized:
    """The graph that `tool` makes from a network, with the network's contract."""
    if isinstance(python, CommandFailed):
        return Quantized(tool, failure=f"cannot be installed: {python}")
    graph = folder / f"{network.path.stem}.{tool}.onnx"
    command: list[str | Path] = [python, HERE / "quantize_as.py", tool, network.path, inputs, graph]
    terminal.note(f"{tool} on {network.path} ...")
    graph.unlink(missing_ok=True)  # of an earlier run
    try:
        cost = measure(command, graph.with_suffix(".log"))
    except CommandFailed as failure:
        return Quantized(tool, failure=str(failure))
    if not graph.exists():
        return Quantized(tool, cost=cost, failure="an OpenVINO model, which bench does not open; its cost alone")
    model = onnx.load(graph)
    embed(model, network.contract)
    annotate(model, {PRECISION_KEY: "int8"})
    onnx.save(model, graph)
    return Quantized(tool, str(graph), cost)


def calibration_alone(network: Network, calib: str, folder: Path) -> dict[str, Any]:
    """The cost of our calibration with all images of `calib`, and of the search for ranges by KL."""
    file = folder / f"{network.path.stem}.all.statistics.npz"
    file.unlink(missing_ok=True)
    script = HERE.parent / "quant" / "calibrate.py"
    command: list[str | Path] = [sys.executable, script, network.path, "--calib", calib, "--output", file]
    cost = _measured(f"calibrating {network.path} on all images", command, file.with_suffix(".log"))
    statistics = load_statistics(file)
    start = time.perf_counter()
    for histogram in statistics.histograms.values():
        threshold(histogram, "kl")
    return {
        "images": len(statistics.images),
        **cost._asdict(),
        "tensors": len(statistics.histograms),
        "kl_seconds": time.perf_counter() - start,
    }


def _measured(what: str, command: list[str | Path], log: Path) -> Cost:
    terminal.note(f"{what} ...")
    try:
        return measure(command, log)
    except CommandFailed as failure:
        raise UserError(f"{what}: {failure}; the whole of it is in {log}") from None


def tables(record: Sequence[dict[str, Any]]) -> list[Table]:
    """One per network, and one on our calibration."""
    return [*map(_network_table, record), _own(record)]


def overview(record: Sequence[dict[str, Any]]) -> list[Table]:
    """One table of all networks: every graph in OpenVINO. Tools that failed or were not measured are in `tables`."""
    rows, sets = [], []
    for entry in record:
        measured = BenchRecord.model_validate(entry["bench"])
        network = Path(entry["model"]).stem
        sets.append(f"{network}: {entry['calibration_images']} and {measured.images}")
        for tool, row in _rows(entry):
            if row is not None and row.engine == "openvino":
                changes = [interval(row.delta[key]) for key in ("s", "mae")]
                seconds = "" if tool.cost is None else f"{tool.cost.seconds:.0f}"
                rows.append([network, tool.tool, *changes, f"{row.time_ratio.value:.2f}", seconds])
    made = Table(
        f"INT8 on {record[0]['bench']['hardware']}",
        ["network", "quantizer", "S", "MAE", "time", "quantizing (s)"],
        rows,
        2,
        caption="graphs in OpenVINO\nS, MAE: difference to fp32 with 95 % interval, * where it excludes zero\n"
        "time: of inference in one thread, as a multiple of fp32's in onnxruntime\n"
        f"images for calibration and for measuring: {'; '.join(sets)}",
    )
    return [made]


def _rows(entry: dict[str, Any]) -> Iterator[tuple[Quantized, Row | None]]:
    """Every tool with each of its measured rows, first the float32 network; a tool that failed has none."""
    measured = BenchRecord.model_validate(entry["bench"])
    for fields in [{"tool": "fp32", "graph": entry["model"]}, *entry["tools"]]:
        cost = fields.get("cost")
        tool = Quantized(**fields | {"cost": None if cost is None else Cost(*cost)})
        if tool.graph is None:
            yield tool, None
        for row in measured.rows:
            if row.model == tool.graph:
                yield tool, row


def _network_table(entry: dict[str, Any]) -> Table:
    measured = BenchRecord.model_validate(entry["bench"])
    rows = []
    for tool, row in _rows(entry):
        cost = ["", ""] if tool.cost is None else [f"{tool.cost.seconds:.1f}", f"{tool.cost.peak_mib:.0f}"]
        if row is None:
            rows.append([f"{tool.tool}: {tool.failure}", *[""] * (2 * len(METRICS) + 1), *cost, ""])
            continue
        scores = [(decimal(row.metrics[key]), interval(row.delta[key])) for key in METRICS]
        time = "" if row.stand_in else f"{row.time_ratio.value:.2f}"
        rows.append([tool.tool, row.engine, *itertools.chain(*scores), *cost, time])
    return Table(
        f"{Path(entry['model']).stem}, {entry['calibration_images']} calibration images, accuracy on "
        f"{measured.dataset} ({measured.images} images)",
        ["", "engine", *itertools.chain(*((label, "difference") for label in METRICS.values())), "s", "MiB", "time"],
        rows,
        2,
        caption="differences to fp32 with 95 % interval (paired bootstrap over images), * where it excludes zero\n"
        "s, MiB: what the quantizer's process took; sodeploy's makes and proves the graphs of all engines in it\n"
        f"time: of inference on {measured.hardware} in one thread, as a multiple of fp32's in onnxruntime, all graphs "
        f"in turn{_SATURATED if entry['saturates'] else ''}",
    )


def _own(record: Sequence[dict[str, Any]]) -> Table:
    rows = []
    for entry in record:
        cost = entry["calibration"]
        counts, seconds = [str(cost["images"]), str(cost["tensors"])], f"{cost['kl_seconds']:.2f}"
        rows.append([Path(entry["model"]).stem, *counts, f"{cost['seconds']:.1f}", f"{cost['peak_mib']:.0f}", seconds])
    return Table(
        "sodeploy's calibration alone",
        ["network", "images", "tensors", "s", "MiB", "KL search (s)"],
        rows,
        caption="KL search: the ranges of all tensors, from what calibration counted",
    )


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sodeploy" / "rivals"


def main(
    models: Annotated[list[Path], typer.Argument(help="float32 ONNX files with contracts", show_default=False)],
    calib: Annotated[str, typer.Option(help="images to calibrate on: folder, list, or synthetic:calib")],
    evaluate: Annotated[str, typer.Option("--eval", help="other images, with masks, to measure accuracy on")],
    calib_images: Annotated[int, typer.Option(min=1, help="every tool gets the first so many")] = 16,
    eval_images: Annotated[int | None, typer.Option(min=1, help="only the first so many; all by default")] = None,
    output_dir: Annotated[Path, typer.Option(help="folder for the graphs and the tables")] = Path("out/rivals"),
    json_file: Annotated[Path | None, typer.Option("--json", help="add the record to this file")] = None,
    tools: Annotated[str, typer.Option(help="the rivals, with a comma between; all by default")] = ",".join(RIVALS),
    environment: Annotated[
        Path, typer.Option(help="folder for the environments of the Model Optimizer and of NNCF")
    ] = _cache(),
) -> None:
    """Compare quantizers."""
    if len({model.stem for model in models}) < len(models):
        raise UserError("two of the models have one name, and so would their graphs; rename one")
    require_disjoint(open_dataset(calib, masks=False), open_dataset(evaluate))
    rivals = [tool.strip() for tool in tools.split(",") if tool.strip()]
    if unknown := [tool for tool in rivals if tool not in RIVALS]:
        raise UserError(f"--tools: there is no {unknown[0]}; choose among {', '.join(RIVALS)}")
    record = compare(models, calib, calib_images, evaluate, eval_images, output_dir, environment, rivals)
    write_text(output_dir / "rivals.json", json.dumps(record, indent=1) + "\n")
    if json_file is not None:
        add(record, json_file)
    write_text(output_dir / "rivals.md", "\n".join(map(to_markdown, tables(record))))
    show(tables(record))


if __name__ == "__main__":
    command_line.run(main)
