"""Every graph of some networks in every CPU engine: accuracy, time, and the cost of opening a session, in one run.

    python benchmarks/cpu_engines.py --model out/u2netp.onnx --model out/csnet_x1.onnx --data EVAL \\
        --json docs/records/cpu_engines.json

A model is a float32 ONNX file. Its int8 graphs for CPUs are the files NAME.*.onnx beside it, of a build or of another
quantizer. Every graph runs in every engine that it is made for, all graphs of a network in turn, image by image, with
each number of threads. Times are multiples of the time of the float32 file in onnxruntime. A session is opened in a
process of its own, twice: OpenVINO keeps the compiled model for the second time. Nothing else may run meanwhile. Each
network can have a run of its own: runs add to the same record.
"""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer
from by_network import add
from process_cost import CommandFailed, measure

from sodeploy import command_line, terminal
from sodeploy.artifacts import one_line
from sodeploy.errors import UserError
from sodeploy.runtime.bench import bench
from sodeploy.runtime.contract import DIALECT_KEY, PRECISION_KEY
from sodeploy.runtime.cpu import matrix_instructions
from sodeploy.runtime.measure.record import BenchRecord
from sodeploy.runtime.measure.report import Table, decimal, interval, show
from sodeploy.runtime.onnx_file import read_model
from sodeploy.runtime.session import EngineName, installed_engines, open_session, parse_engines

METRICS = {"s": "S", "mae": "MAE"}
ENGINES: tuple[EngineName, ...] = ("onnxruntime", "openvino", "openvino-bf16")


def graphs_of(model: Path) -> list[Path]:
    """The model and its int8 graphs for CPUs: not the graph for TensorRT nor its simulation."""
    found = [model]
    for path in sorted(model.parent.glob(f"{model.stem}.*.onnx")):
        metadata = {entry.key: entry.value for entry in read_model(path).metadata_props}
        on_cpus = metadata.get(DIALECT_KEY, "") in ("", "cpu", "openvino")
        if metadata.get(PRECISION_KEY) == "int8" and on_cpus:
            found.append(path)
    return found


def taking(model: Path, engines: Sequence[EngineName]) -> list[EngineName]:
    """The engines that take a model; a warning names the others and their reason."""
    found: list[EngineName] = []
    for engine in engines:
        try:
            with open_session(model, threads=1, engine=engine):
                found.append(engine)
        except UserError as reason:
            terminal.warn(f"not measured in {engine}: {reason}")
    return found


def compare(
    model: Path, data: str, limit: int | None, threads: list[int], engines: list[EngineName], load: float
) -> dict[str, Any]:
    """The record of one network.

    Args:
        load: the mean number of running processes in the minute before everything.

    Returns:
        `model`; `load`; `instructions` (`matrix_instructions`); `benches`, a `BenchRecord` as JSON for each number of
        threads; `sessions`, for each of its rows: `model`, `engine`, `start_s`, `cached_start_s` (from the file to the
        first map, with the import of the engine, and once more), `peak_mib`, or `failure`.
    """
    graphs, taken = graphs_of(model), taking(model, engines)
    terminal.note(f"{model}: {', '.join(path.name for path in graphs)}")
    benches = [bench(graphs, data, limit, threads=count, engines=taken, keys=list(METRICS)) for count in threads]
    sessions = [
        session_cost(Path(row.model), cast(EngineName, row.engine), threads[0])
        for row in terminal.progress(benches[0].rows, "opening sessions")
    ]
    return {
        "model": str(model),
        "load": load,
        "instructions": matrix_instructions(),
        "benches": [made.model_dump(mode="json") for made in benches],
        "sessions": sessions,
    }


def session_cost(model: Path, engine: EngineName, threads: int) -> dict[str, Any]:
    """Start-up and memory of a session in a process of its own; its first input is a gray image."""
    found: dict[str, Any] = {"model": str(model), "engine": engine}
    with tempfile.TemporaryDirectory() as folder:
        environment = {"XDG_CACHE_HOME": folder}
        command = ["/usr/bin/env", *(f"{key}={value}" for key, value in environment.items())]
        command += [sys.executable, str(Path(__file__).resolve()), "--session", str(model)]
        command += ["--engines", engine, "--threads", str(threads)]
        log = Path(folder) / "log"
        for key in ("start_s", "cached_start_s"):
            try:
                cost = measure(command, log)
            except CommandFailed as failure:
                return found | {"failure": one_line(failure)}
            found[key] = float(log.read_text().splitlines()[-1])
            found.setdefault("peak_mib", cost.peak_mib)
    return found


def _open_once(model: Path, engine: EngineName, threads: int) -> None:
    """Print the seconds from here to the first map."""
    start = time.perf_counter()
    with open_session(model, threads=threads, engine=engine) as session:
        contract = session.contract
        session.infer(np.zeros((1, 3, contract.height, contract.width), np.float32))
        print(time.perf_counter() - start)


def tables(record: Sequence[dict[str, Any]]) -> list[Table]:
    """A table per network: a row per graph and engine, a column of times per number of threads; then the sessions."""
    return [_table(entry) for entry in record]


def _table(entry: dict[str, Any]) -> Table:
    benches = [BenchRecord.model_validate(made) for made in entry["benches"]]
    cost = {(one["model"], one["engine"]): one for one in entry["sessions"]}
    first = benches[0]
    rows = []
    for index, row in enumerate(first.rows):
        graph = Path(row.model).name.removeprefix(f"{Path(first.rows[0].model).stem}.").removesuffix(".onnx")
        scores = [part for key in METRICS for part in (decimal(row.metrics[key]), interval(row.delta[key]))]
        error = "" if row.map_error is None else decimal(row.map_error)
        times = [f"{made.rows[index].time_ratio.value:.2f}" for made in benches]
        opened = cost.get((row.model, row.engine), {})
        figures = [_rounded(opened.get(key), 1) for key in ("start_s", "cached_start_s")]
        figures.append(_rounded(opened.get("peak_mib"), 0))
        rows.append(["fp32" if index == 0 or graph == "onnx" else graph, row.engine, error, *scores, *times, *figures])
    header = ["graph", "engine", "map error", *(part for label in METRICS.values() for part in (label, "difference"))]
    header += [f"time, {made.threads} thread{'s' if made.threads > 1 else ''}" for made in benches]
    header += ["start (s)", "again (s)", "memory (MiB)"]
    instructions = ", ".join(entry["instructions"]) or "neither VNNI nor AMX"
    busy = "" if entry["load"] < 0.5 else f"; {entry['load']:.1f} other processes ran when it began"
    height, width = first.rows[0].input_shape[2:]
    return Table(
        f"{first.rows[0].network} at {height} x {width}, {first.dataset}, {first.images} images",
        header,
        rows,
        2,
        caption=f"{first.hardware} ({instructions}){busy}\n"
        "map error: mean absolute difference to the map of fp32 in onnxruntime; maps have values from 0 to 1\n"
        "difference to fp32 with 95 % interval (paired bootstrap over images), * where it excludes zero\n"
        "time of inference as a multiple of fp32's in onnxruntime with as many threads, all graphs in turn\n"
        "start: from the file to the first map, with the import of the engine; again: with the compiled model that "
        "OpenVINO kept on disk\n"
        f"memory: the most that a process with one session held; {benches[0].threads} thread(s)",
    )


def _rounded(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def main(
    model: Annotated[list[Path] | None, typer.Option(help="float32 ONNX with a contract; repeatable")] = None,
    data: Annotated[str, typer.Option(help="images and masks, none of which calibrated a model")] = "synthetic:eval",
    limit: Annotated[int | None, typer.Option(min=1, help="only the first N images")] = None,
    threads: Annotated[str, typer.Option(help="numbers of CPU threads, with a comma between")] = "1,2",
    engines: Annotated[str, typer.Option(help="engines; those that are installed by default")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="add the figures to this file")] = None,
    session: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure graphs for CPUs in every engine."""
    counts = _counts(threads)
    chosen = parse_engines(engines) if engines else [one for one in ENGINES if one in installed_engines()]
    if session is not None:
        _open_once(session, chosen[0], counts[0])
        return
    if not model:
        raise UserError("no model is given; give a float32 ONNX file: --model out/u2netp.onnx")
    load = os.getloadavg()[0]
    entries: list[dict[str, Any]] = []
    for path in model:
        entries.append(compare(path, data, limit, counts, chosen, load))
        if json_file is not None:
            add(entries, json_file)  # at once: a network takes minutes
    show(tables(entries))


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise UserError(f"--threads {text}: give whole numbers from 1 on, such as 1,2")
    return counts


if __name__ == "__main__":
    command_line.run(main)
