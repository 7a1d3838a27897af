"""Accuracy, its loss against a baseline, and speed of any number of models on the same images.

    python runtime/bench.py out/u2netp.onnx out/u2netp.int8.cpu.onnx --data ECSSD [--max-drop s=0.002] [--threads 1]

The first model is the baseline. Maps are compared with the masks at the masks' own size (see metrics.py). With
--max-drop the fastest model that loses no more than that is recommended (see recommendation.py).

    python runtime/bench.py out/u2netp.onnx out/u2netp.fp16.engine out/u2netp.int8.engine --data ECSSD --device cuda

With --device cuda pre- and post-processing run on the GPU too, and images per second are those of the pipeline that
runtime/infer.py uses; --profile shows it at work.
"""

import contextlib
import json
import platform
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer

from sodeploy import artifacts, terminal
from sodeploy.calib_data import Dataset, Sample, open_dataset
from sodeploy.errors import UserError
from sodeploy.runtime.contract import CALIBRATION_KEY, PRECISION_KEY
from sodeploy.runtime.gpu.device import Device as Gpu
from sodeploy.runtime.gpu.driver import current_gpu, gpu_state
from sodeploy.runtime.gpu.timeline import Timeline
from sodeploy.runtime.measure import metrics
from sodeploy.runtime.measure.budget import Budget, Verdict, parse_budget
from sodeploy.runtime.measure.complexity import complexity
from sodeploy.runtime.measure.differences import Delta, bootstrap_deltas
from sodeploy.runtime.measure.recommendation import Measured, recommend, time_ratio
from sodeploy.runtime.measure.report import bench_tables, labels, show, to_markdown
from sodeploy.runtime.measure.runners import CpuRunner, GpuRunner, Runner, stand_in
from sodeploy.runtime.measure.throughput import Throughput, throughput
from sodeploy.runtime.session import Device

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
    budget: Budget | None = None,
    batch: int = 8,
    profile: str | Path | None = None,
) -> dict[str, Any]:
    """Run every model on every image of `data`.

    Latency is taken image by image with the models in turn, so that what drifts drifts for all. Nothing else runs
    meanwhile: scoring waits for the end of each chunk of images. Then the models on the GPU take all images in batches,
    in turn again.

    Args:
        models: paths; the first is the baseline.
        data: as `calib_data.open_dataset` takes it, with masks.
        images: only the first so many; all by default.
        device: of ONNX models; engines run on the GPU.
        threads: of the network and of OpenCV on the CPU; one per core by default.
        workers: processes that score; one per core by default.
        allow_overlap: measure on images that a model was calibrated on; the tables then say so.
        budget: what a model may lose and still be recommended.
        batch: images to one run of a network when images per second are counted.
        profile: where to write what the pipeline does when, as JSON for Perfetto or chrome://tracing.

    Returns:
        `rows`, one per model: `model` (its path), `network`, `precision`, `device`, `params_m` and `macs_g` (null for
        an engine, whose graph is gone), `input_shape`, `size_mib`, `metrics` {mae, mean_f, max_f, adp_f, w_f, s,
        mean_e, max_e, adp_e}, `delta` {metric: {value, ci95: [low, high]}} to the baseline (whose own are 0),
        `latency_ms` {stage: {p50, p90, p99}} with the stages of `sodeploy.runtime.measure.runners`, `time_ratio`
        {value, ci95}: the
        inference time as a multiple of the baseline's, `stand_in` (why times are not those of a deployed model, or
        ""), `images_per_s` and `device_memory_mib` (null on the CPU), `calibrated_on` (how many of these images it was
        calibrated on; null: it does not say), `images`, `dataset`; beside them `dataset`, `images`, `threads`,
        `batch`, `hardware`, `gpu` {before, after} (`sodeploy.runtime.gpu.driver.gpu_state`), `versions`, and
        `recommendation`
        {budget, model (null: none), int8_pays (null: not measured, or within the noise), text (sentences)}.

    Raises:
        UserError: a model, the device or the data is unfit; the message says which and why.
    """
    if not models:
        raise UserError("no models given; give the baseline first, then the models to compare with it")
    on_gpu = [device == "cuda" or Path(model).suffix == ".engine" for model in models]
    if profile is not None and not any(on_gpu):
        raise UserError(f"the timeline {profile} shows the GPU pipeline; choose the device cuda, or leave it out")
    dataset = open_dataset(data)
    dataset = Dataset(dataset.name, [dataset[index] for index in range(min(len(dataset), images or len(dataset)))])
    if not len(dataset):
        raise UserError(f"{data} has no images; give a data set with images and masks")
    threads = threads or metrics.usable_cores()
    with contextlib.ExitStack() as stack:
        runners, memory = _open(models, on_gpu, threads, dataset[0], stack)
        costs = [_cost(Path(path), runner) for path, runner in zip(models, runners, strict=True)]
        stand_ins = [stand_in(runner) for runner in runners]
        calibrated_on = _calibrated_on(runners, dataset)
        if not allow_overlap:
            _refuse_overlap(models, calibrated_on, dataset)
        _announce_stand_ins(models, stand_ins)
        mapped = stack.enter_context(metrics.parallel_map(workers))
        state = {"before": gpu_state() if any(on_gpu) else {}}
        scores, times = _measure(models, runners, dataset, threads, mapped)
        rates = _throughput(models, runners, dataset, batch, profile) if any(on_gpu) else {}
        state["after"] = gpu_state() if any(on_gpu) else {}

    scores, left_out = metrics.without_undefined(scores, [sample.name for sample in dataset], dataset.name)
    if left_out:
        terminal.warn(f"{dataset.name}: {metrics.left_out_in_words(left_out)}")
    rows: list[dict[str, Any]] = []
    measured = []
    names = labels([str(model) for model in models])
    for index, cost in enumerate(costs):
        deltas = bootstrap_deltas(scores[0], scores[index])
        inference = times[index]["infer"]
        ratio = time_ratio(inference, times[0]["infer"])
        rate = rates.get(index)
        rows.append(
            {
                **cost,
                "metrics": scores[index].summary(),
                "delta": {key: _delta(d) for key, d in deltas.items()},
                "latency_ms": {stage: _percentiles(values) for stage, values in times[index].items()},
                "time_ratio": {"value": ratio.value, "ci95": ratio.interval and list(ratio.interval)},
                "stand_in": stand_ins[index],
                "images_per_s": rate and rate.images_per_s,
                "device_memory_mib": rate and rate.memory_mib + memory[index],
                "calibrated_on": calibrated_on[index],
                "images": len(scores[index]),
                "dataset": dataset.name,
            }
        )
        verdict, flattered = Verdict(deltas), bool(calibrated_on[index])
        measured.append(Measured(names[index], cost["precision"], verdict, inference, stand_ins[index], flattered))
    advice = recommend(measured, budget)
    return {
        "rows": rows,
        "dataset": dataset.name,
        "images": len(scores[0]),
        "left_out": left_out,
        "threads": threads,
        "batch": batch,
        "hardware": _hardware({cost["device"] for cost in costs}),
        "gpu": state,
        "versions": artifacts.versions(),
        "recommendation": {
            "budget": budget,
            "model": None if advice.model is None else str(models[advice.model]),
            "int8_pays": advice.int8_pays,
            "text": advice.sentences,
        },
    }


def _open(
    models: Sequence[str | Path], on_gpu: Sequence[bool], threads: int, first: Sample, stack: contextlib.ExitStack
) -> tuple[list[Runner], list[float]]:
    """Each model ready to run, and the MiB of device memory that it took to get there."""
    device = Gpu() if any(on_gpu) else None
    if device is not None:
        stack.enter_context(device.current())
    runners: list[Runner] = []
    memory = []
    for model, there in zip(models, on_gpu, strict=True):
        if device is None or not there:
            runners.append(stack.enter_context(CpuRunner(Path(model), threads)))
            memory.append(0.0)
            continue
        before = device.memory()[0]
        runners.append(stack.enter_context(GpuRunner(Path(model), device)))
        _run(runners[-1], first.image(), f"{model} on {first.name}")  # onnxruntime takes its memory when it first runs
        memory.append((before - device.memory()[0]) / 2**20)
    return runners, memory


def _measure(
    models: Sequence[str | Path],
    runners: Sequence[Runner],
    dataset: Dataset,
    threads: int,
    mapped: Callable[..., Iterable[list[metrics.Scores]]],
) -> tuple[list[metrics.Scores], list[dict[str, np.ndarray]]]:
    """Of each model the scores, and for each stage (images,) ms."""
    times: list[dict[str, list[float]]] = [{} for _ in runners]
    scored: list[list[metrics.Scores]] = []  # of each image, of each model
    waiting: list[tuple[Sample, list[np.ndarray]]] = []
    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        for index, sample in enumerate(terminal.progress(dataset, "measuring", total=len(dataset))):
            image = sample.image()
            if index % _CHUNK == 0:  # the caches have seen something else: the file system, or scoring
                for model in [*range(len(runners))] * (_WARMUP if index == 0 else 1):
                    _run(runners[model], image, f"{models[model]} on {sample.name}")
            maps = [np.empty(0, np.uint8)] * len(runners)
            for turn in range(len(runners)):
                model = (index + turn) % len(runners)
                maps[model], taken = _run(runners[model], image, f"{models[model]} on {sample.name}")
                for stage, milliseconds in taken.items():
                    times[model].setdefault(stage, []).append(milliseconds)
            waiting.append((sample, maps))
            if len(waiting) == _CHUNK or index + 1 == len(dataset):
                scored += mapped(_score, *zip(*waiting, strict=True))
                waiting.clear()
    finally:
        cv2.setNumThreads(before)
    scores = [metrics.join(parts) for parts in zip(*scored, strict=True)]
    return scores, [{stage: np.array(values) for stage, values in each.items()} for each in times]


def _run(runner: Runner, image: np.ndarray, what: str) -> tuple[np.ndarray, dict[str, float]]:
    """The saliency map of an image, and the ms of each stage; `what` this is stands before an error."""
    try:
        return runner.run(image)
    except UserError as error:
        raise UserError(f"{what}: {error}") from None


def _throughput(
    models: Sequence[str | Path], runners: Sequence[Runner], dataset: Dataset, batch: int, profile: str | Path | None
) -> dict[int, Throughput]:
    """Of each model on the GPU, by its index."""
    there = {index: runner.session for index, runner in enumerate(runners) if isinstance(runner, GpuRunner)}
    timeline = Timeline() if profile is not None else None
    sessions = [(str(models[index]), session) for index, session in there.items()]
    found = throughput(sessions, dataset.samples, batch, timeline)
    if timeline is not None and profile is not None:
        timeline.save(profile)
    return dict(zip(there, found, strict=True))


def _delta(delta: Delta) -> dict[str, Any]:
    return {"value": delta.value, "ci95": [delta.low, delta.high] if np.isfinite(delta.low) else None}


def _score(sample: Sample, maps: list[np.ndarray]) -> list[metrics.Scores]:
    mask = sample.mask()
    return [metrics.score(saliency, mask) for saliency in maps]


def _percentiles(values: np.ndarray) -> dict[str, float]:
    return {f"p{percent}": float(np.percentile(values, percent)) for percent in (50, 90, 99)}


def _cost(path: Path, runner: Runner) -> dict[str, Any]:
    session = runner.session
    contract = session.contract
    counted = None if path.suffix == ".engine" else complexity(path, contract)
    return {
        "model": str(path),
        "network": contract.network,
        "precision": session.metadata.get(PRECISION_KEY) or (counted.weights if counted else session.precision),
        "device": runner.where,
        "params_m": counted.params / 1e6 if counted else None,
        "macs_g": counted.macs / 1e9 if counted else None,
        "input_shape": [contract.batch or "N", 3, contract.height, contract.width],
        "size_mib": path.stat().st_size / 2**20,
    }


def _announce_stand_ins(models: Sequence[str | Path], stand_ins: Sequence[str]) -> None:
    """onnxruntime's CPU provider runs graphs for a GPU in other arithmetic and says nothing; so we do."""
    for model, reason in zip(models, stand_ins, strict=True):
        if reason not in ("", "simulates an engine"):
            simulation = Path(model).stem.removesuffix(".trt") + ".sim.onnx"
            terminal.warn(
                f"{model} {reason}, so its accuracy is not that of an engine; {simulation} shows that "
                "(quant/build_engine.py writes it)"
            )


def _calibrated_on(runners: Sequence[Runner], dataset: Dataset) -> list[int | None]:
    """For each model on how many of the images it was calibrated; None for one that does not say."""
    said = [json.loads(runner.session.metadata.get(CALIBRATION_KEY, "{}")) for runner in runners]
    used = [set(each.get("digests_sha256", ())) for each in said]
    if not any(used):
        return [None] * len(runners)
    digests = [sample.digest() for sample in terminal.progress(dataset, "comparing with the calibration images")]
    return [sum(digest in theirs for digest in digests) if theirs else None for theirs in used]


def _refuse_overlap(models: Sequence[str | Path], calibrated_on: list[int | None], dataset: Dataset) -> None:
    for model, count in zip(models, calibrated_on, strict=True):
        if count:
            raise UserError(
                f"{model} was calibrated on {count} of the {len(dataset)} images of {dataset.name}, which flatters it; "
                "evaluate on other images, or insist with --allow-overlap"
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
    max_drop: Annotated[
        str | None, typer.Option(help="Recommend what loses no more than this: s=0.002,mae=0.001")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="cuda: images to one run, for images per second.")] = 8,
    profile: Annotated[Path | None, typer.Option(help="cuda: write a timeline of the pipeline, for Perfetto.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the record here; - for stdout.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here.")] = None,
    allow_overlap: Annotated[bool, typer.Option("--allow-overlap", help="Images of the calibration set too.")] = False,
) -> None:
    """Compare models in accuracy, with intervals, and in speed."""
    budget = parse_budget(max_drop) if max_drop is not None else None
    record = bench(models, data, images, device, threads, workers, allow_overlap, budget, batch, profile)
    publish(record, json_file, markdown)


def publish(record: dict[str, Any], json_file: Path | None = None, markdown: Path | None = None) -> None:
    """Show the record of `bench` as tables and what follows from them on stdout, and write it as asked; JSON to "-"
    takes their place."""
    tables, advice = bench_tables(record), record["recommendation"]["text"]
    text = json.dumps(record, indent=2) + "\n"
    if json_file is not None and str(json_file) != "-":
        artifacts.write_text(json_file, text)
    if markdown is not None:
        artifacts.write_text(
            markdown, "\n".join([*map(to_markdown, tables), *(f"- {sentence}" for sentence in advice)]) + "\n"
        )
    if str(json_file) == "-":
        typer.echo(text, nl=False)
    else:
        show(tables)
        for sentence in advice:
            terminal.results.print(sentence, markup=False, soft_wrap=True)


if __name__ == "__main__":
    terminal.run(main)
