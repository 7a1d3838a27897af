"""Accuracy, its loss against a baseline, and latency of any number of models on the same images.

    python runtime/bench.py out/u2netp.onnx out/u2netp.int8.cpu.onnx --data ECSSD [--threads 1] [--json out/bench.json]

The first model is the baseline. Maps are compared with the masks at the masks' own size (see metrics.py).
"""

import contextlib
import json
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer

from calib_data import Dataset, Sample, open_dataset
from runtime import metrics
from runtime.complexity import complexity
from runtime.contract import CALIBRATION_KEY, DIALECT_KEY, PRECISION_KEY
from runtime.gpu import current_gpu
from runtime.processing import postprocess, preprocess
from runtime.report import bench_tables, show, to_markdown
from runtime.session import Device, Session, open_session
from sodeploy import artifacts, terminal
from sodeploy.errors import UserError

_STAGES = ("pre", "infer", "post")
_WARMUP = 3  # runs of each model before the first that counts
_CHUNK = 16  # images between two rounds of scoring: as many maps of each model wait in memory


def bench(
    models: Sequence[str | Path],
    data: str | Path,
    images: int | None = None,
    device: Device = "cpu",
    threads: int | None = None,
    workers: int | None = None,
    allow_overlap: bool = False,
) -> dict[str, Any]:
    """Run every model on every image of `data`.

    Latency is taken image by image with the models in turn, so that what drifts drifts for all. Nothing else runs
    meanwhile: scoring waits for the end of each chunk of images.

    Args:
        models: paths; the first is the baseline.
        data: as `calib_data.open_dataset` takes it, with masks.
        images: only the first so many; all by default.
        device: of ONNX models; engines run on the GPU.
        threads: of the network and of OpenCV; one per core by default.
        workers: processes that score; one per core by default.
        allow_overlap: measure on images that a model was calibrated on; the tables then say so.

    Returns:
        `rows`, one per model: `model` (its path), `network`, `precision`, `device`, `params_m` and `macs_g` (null for
        an engine, whose graph is gone), `input_shape`, `size_mib`, `metrics` {mae, mean_f, max_f, adp_f, w_f, s,
        mean_e, max_e, adp_e}, `delta` {metric: {value, ci95: [low, high]}} to the baseline (whose own are 0),
        `latency_ms` {pre, infer, post, total: {p50, p99}}, `calibrated_on` (how many of these images it was calibrated
        on; null: it does not say), `images`, `dataset`; beside them `dataset`, `images`, `threads`, `hardware`,
        `versions`.

    Raises:
        UserError: a model or the data is unfit; the message says which and why.
    """
    if not models:
        raise UserError("no models given; give the baseline first, then the models to compare with it")
    dataset = open_dataset(data)
    dataset = Dataset(dataset.name, [dataset[index] for index in range(min(len(dataset), images or len(dataset)))])
    if not len(dataset):
        raise UserError(f"{data} has no images; give a data set with images and masks")
    threads = threads or metrics.usable_cores()
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(open_session(model, device, threads)) for model in models]
        costs = [_cost(Path(path), session, device) for path, session in zip(models, sessions, strict=True)]
        calibrated_on = _calibrated_on(sessions, dataset)
        if not allow_overlap:
            _refuse_overlap(models, calibrated_on, dataset)
        _announce_emulation(models, sessions, device)
        mapped = stack.enter_context(metrics.parallel_map(workers))
        scores, times = _measure(models, sessions, dataset, threads, mapped)

    rows = []
    for index, cost in enumerate(costs):
        deltas = metrics.bootstrap_deltas(scores[0], scores[index])
        rows.append(
            {
                **cost,
                "metrics": scores[index].summary(),
                "delta": {key: {"value": d.value, "ci95": [d.low, d.high]} for key, d in deltas.items()},
                "latency_ms": _percentiles(times[:, index]),
                "calibrated_on": calibrated_on[index],
                "images": len(dataset),
                "dataset": dataset.name,
            }
        )
    return {
        "rows": rows,
        "dataset": dataset.name,
        "images": len(dataset),
        "threads": threads,
        "hardware": _hardware({cost["device"] for cost in costs}),
        "versions": artifacts.versions(),
    }


def _measure(
    models: Sequence[str | Path],
    sessions: list[Session],
    dataset: Dataset,
    threads: int,
    mapped: Callable[..., Iterable[list[metrics.Scores]]],
) -> tuple[list[metrics.Scores], np.ndarray]:
    """The scores of each model, and (images, models, stages) ms."""
    times = np.empty((len(dataset), len(sessions), len(_STAGES)))
    scored: list[list[metrics.Scores]] = []  # of each image, of each model
    waiting: list[tuple[Sample, list[np.ndarray]]] = []
    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        for index, sample in enumerate(terminal.progress(dataset, "measuring", total=len(dataset))):
            image = sample.image()
            if index % _CHUNK == 0:  # the caches have seen something else: the file system, or scoring
                for model in [*range(len(sessions))] * (_WARMUP if index == 0 else 1):
                    _run(sessions[model], image, f"{models[model]} on {sample.name}")
            maps = [np.empty(0, np.uint8)] * len(sessions)
            for turn in range(len(sessions)):
                model = (index + turn) % len(sessions)
                maps[model], times[index, model] = _run(sessions[model], image, f"{models[model]} on {sample.name}")
            waiting.append((sample, maps))
            if len(waiting) == _CHUNK or index + 1 == len(dataset):
                scored += mapped(_score, *zip(*waiting, strict=True))
                waiting.clear()
    finally:
        cv2.setNumThreads(before)
    return [metrics.join(parts) for parts in zip(*scored, strict=True)], times


def _run(session: Session, image: np.ndarray, what: str) -> tuple[np.ndarray, list[float]]:
    """The saliency map of an image, and the ms that each stage took; `what` this is stands before an error."""
    try:
        start = time.perf_counter()
        tensor = preprocess(image, session.contract)[None]
        ready = time.perf_counter()
        output = session.infer(tensor)
        done = time.perf_counter()
        saliency = postprocess(output[0, 0], session.contract, image.shape[:2])
        end = time.perf_counter()
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    return saliency, [1e3 * (ready - start), 1e3 * (done - ready), 1e3 * (end - done)]


def _score(sample: Sample, maps: list[np.ndarray]) -> list[metrics.Scores]:
    mask = sample.mask()
    return [metrics.score(saliency, mask) for saliency in maps]


def _percentiles(times: np.ndarray) -> dict[str, dict[str, float]]:
    """p50 and p99 of each stage and of their sum, from (images, stages) ms."""
    columns = {**dict(zip(_STAGES, times.T, strict=True)), "total": times.sum(axis=1)}
    return {
        stage: dict(zip(("p50", "p99"), map(float, np.percentile(column, [50, 99])), strict=True))
        for stage, column in columns.items()
    }


def _cost(path: Path, session: Session, device: Device) -> dict[str, Any]:
    contract = session.contract
    counted = None if path.suffix == ".engine" else complexity(path, contract)
    return {
        "model": str(path),
        "network": contract.network,
        "precision": session.metadata.get(PRECISION_KEY) or (counted.weights if counted else session.precision),
        "device": device if counted else "cuda",
        "params_m": counted.params / 1e6 if counted else None,
        "macs_g": counted.macs / 1e9 if counted else None,
        "input_shape": [contract.batch or "N", 3, contract.height, contract.width],
        "size_mib": path.stat().st_size / 2**20,
    }


def _calibrated_on(sessions: list[Session], dataset: Dataset) -> list[int | None]:
    """For each model on how many of the images it was calibrated; None for one that does not say."""
    used = [set(json.loads(s.metadata.get(CALIBRATION_KEY, "{}")).get("digests_sha256", ())) for s in sessions]
    if not any(used):
        return [None] * len(sessions)
    digests = [sample.digest() for sample in terminal.progress(dataset, "comparing with the calibration images")]
    return [sum(digest in theirs for digest in digests) if theirs else None for theirs in used]


def _refuse_overlap(models: Sequence[str | Path], calibrated_on: list[int | None], dataset: Dataset) -> None:
    for model, count in zip(models, calibrated_on, strict=True):
        if count:
            raise UserError(
                f"{model} was calibrated on {count} of the {len(dataset)} images of {dataset.name}, which flatters it; "
                "evaluate on other images, or insist with --allow-overlap"
            )


def _announce_emulation(models: Sequence[str | Path], sessions: list[Session], device: Device) -> None:
    """onnxruntime's CPU provider has no fp16 kernels and says nothing; so we do."""
    for model, session in zip(models, sessions, strict=True):
        emulated = session.precision == "fp16" and session.metadata.get(DIALECT_KEY) != "simulation"
        if emulated and device == "cpu" and Path(model).suffix == ".onnx":
            terminal.warn(
                f"{model}: a CPU computes fp16 graphs in fp32, so its accuracy is not that of fp16; "
                f"{Path(model).stem}.sim.onnx shows that (quant/build_engine.py writes it)"
            )


def _hardware(devices: set[str]) -> str:
    """The CPU's model name and, if it was used, the GPU's."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
    return f"{processor} and {current_gpu().name}" if "cuda" in devices else processor


def main(
    models: Annotated[list[Path], typer.Argument(help="Models; the first is the baseline.", show_default=False)],
    data: Annotated[str, typer.Option(help="Images with masks: a folder, a .txt list or synthetic:eval.")],
    images: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    device: Annotated[Device, typer.Option(help="Where ONNX models run; engines run on the GPU.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; one per core by default.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that score; one per core by default.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the record here; - for stdout.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here.")] = None,
    allow_overlap: Annotated[bool, typer.Option("--allow-overlap", help="Images of the calibration set too.")] = False,
) -> None:
    """Compare models in accuracy, with intervals, and in latency."""
    publish(bench(models, data, images, device, threads, workers, allow_overlap), json_file, markdown)


def publish(record: dict[str, Any], json_file: Path | None = None, markdown: Path | None = None) -> None:
    """Show the record of `bench` as tables on stdout and write it as asked; JSON to "-" takes the tables' place."""
    tables = bench_tables(record)
    text = json.dumps(record, indent=2) + "\n"
    if json_file is not None and str(json_file) != "-":
        artifacts.write_text(json_file, text)
    if markdown is not None:
        artifacts.write_text(markdown, "\n".join(map(to_markdown, tables)))
    if str(json_file) == "-":
        typer.echo(text, nl=False)
    else:
        show(tables)


if __name__ == "__main__":
    terminal.run(main)
