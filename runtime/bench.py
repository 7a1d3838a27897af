"""Accuracy, its loss against a baseline, and speed of several models on the same images.

    python runtime/bench.py out/u2netp.onnx out/u2netp.int8.cpu.onnx --data ECSSD [--max-drop s=0.002] [--threads 1]

The first model is the baseline. Maps are compared with the masks at the size of the masks (see measure/metrics.py).
With --max-drop the fastest model that loses no more is recommended (see measure/recommendation.py).

    python runtime/bench.py out/u2netp.onnx out/u2netp.fp16.engine out/u2netp.int8.engine --data ECSSD --device cuda

With --device cuda the GPU also does pre- and post-processing, and images per second are measured through the pipeline
of runtime/infer.py; --timeline writes what the pipeline does when.

With --ray, Ray's workers score the images of a large set; times are measured here, on its first images.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer

from sodeploy import artifacts, command_line, terminal
from sodeploy.calib_data import Dataset, Sample, open_dataset, open_datasets
from sodeploy.calib_data.mask_sets import check_masks
from sodeploy.calib_data.options import LimitOption, RootOption
from sodeploy.calib_data.sources import Source
from sodeploy.errors import UserError
from sodeploy.runtime.cpu import processor_name
from sodeploy.runtime.fleet import Fleet, RayOption, require_ray
from sodeploy.runtime.gpu.driver import current_gpu, gpu_state
from sodeploy.runtime.gpu.timeline import Timeline
from sodeploy.runtime.measure import metrics
from sodeploy.runtime.measure.budget import Budget, parse_budget
from sodeploy.runtime.measure.divided import judge_divided
from sodeploy.runtime.measure.opening import (
    announce_stand_ins,
    count_calibration_images,
    open_models,
    refuse_overlap,
)
from sodeploy.runtime.measure.options import MetricsOption, WorkersOption
from sodeploy.runtime.measure.record import BenchRecord, GpuStates, to_json
from sodeploy.runtime.measure.report import bench_tables, show, to_markdown
from sodeploy.runtime.measure.rows import advice_on, row_of
from sodeploy.runtime.measure.runners import GpuRunner
from sodeploy.runtime.measure.throughput import throughput
from sodeploy.runtime.measure.under_test import ModelUnderTest
from sodeploy.runtime.review.evidence import EvidenceLog, ImageEvidence, examine
from sodeploy.runtime.review.gate import EXIT_STATUS, checks, write_junit
from sodeploy.runtime.review.page import Extras, require_page, write_page
from sodeploy.runtime.session import ENGINES, DeviceName, EngineName, parse_engines
from sodeploy.workers import usable_cores

REPORT_FILE = "index.html"
_WARMUP = 3  # runs of each model before the first run that counts
_TIMED = 200  # images whose times are measured where a fleet scores the others
_CHUNK = 16  # images between two rounds of scoring: this many maps of each model wait in memory


def bench(
    models: Sequence[str | Path],
    data: Source | Sequence[Source],
    limit: int | None = None,
    device: DeviceName = "cpu",
    threads: int | None = None,
    workers: int | None = None,
    allow_overlap: bool = False,
    budget: Budget | None = None,
    batch: int = 8,
    timeline: str | Path | None = None,
    engines: Sequence[EngineName] = ("onnxruntime",),
    keys: Sequence[str] | None = None,
    log: EvidenceLog | None = None,
    fleet: Fleet | None = None,
) -> BenchRecord:
    """Run every model on every image of `data`.

    Latency is measured image by image with the models in turn, so that a drift of the machine affects all models
    alike. Nothing else runs meanwhile: scoring waits for the end of each chunk of images. Then the models on the GPU
    take all images in batches, in turn again.

    Args:
        models: paths; the first is the baseline.
        data: a data set with masks, as `calib_data.open_dataset` takes it; several become one.
        limit: use only the first so many images; all by default.
        device: where ONNX models run; engines run on the GPU.
        threads: CPU threads of the network and of OpenCV; one per core by default.
        workers: processes that score; one per core by default.
        allow_overlap: accept images that a model was calibrated on; the tables then say so.
        budget: the largest loss with which a model is still recommended.
        batch: images in one run of a network when images per second are measured.
        timeline: file for a timeline of the GPU pipeline, JSON for Perfetto or chrome://tracing.
        engines: runtimes of ONNX models on the CPU. Each model is measured in each of them, but a graph that is made
            for one of them only there.
        keys: the metrics, in the order of tables; the default ones by default. Those of `budget` are added.
        log: where to note what a report shows beyond the record.
        fleet: workers of Ray. They score all images but the first 200, whose times are measured here. Models and data
            lie where every worker finds them under these names.

    Raises:
        ModuleNotFoundError: there is a fleet, and the extra "ray" is not installed.
        UserError: a model, the device or the data is unfit; the message says which and why.
    """
    if fleet is not None:
        require_ray()
    if not models:
        raise UserError("no models given; give the baseline first, then the models to compare with it")
    on_gpu = [device == "cuda" or Path(model).suffix == ".engine" for model in models]
    if timeline is not None and not any(on_gpu):
        raise UserError(f"the timeline {timeline} shows the GPU pipeline; choose the device cuda, or leave it out")
    dataset = open_dataset(data).first(limit)
    if not len(dataset):
        raise UserError(f"{dataset.name} has no images; give a data set with images and masks")
    check_masks(dataset, dataset.name)
    threads = threads or usable_cores()
    with contextlib.ExitStack() as stack:
        tested = open_models(models, on_gpu, threads, engines, dataset[0], stack)
        count_calibration_images(tested, dataset)
        if not allow_overlap:
            refuse_overlap(tested, dataset)
        announce_stand_ins(tested)
        mapped = stack.enter_context(metrics.parallel_map(workers))
        before = gpu_state() if any(on_gpu) else {}
        judge = partial(_score if log is None else _examine, keys=_with_budget(keys, budget))
        timed = dataset if fleet is None else dataset.first(_TIMED)
        scored = _measure(tested, timed, threads, lambda samples, maps: _noted(mapped(judge, samples, maps), log))
        if fleet is not None:
            left = dataset.samples[len(timed) :]
            workers_models = partial(open_models, models, on_gpu, fleet.threads, engines, dataset[0])
            scored += _noted(judge_divided(workers_models, left, judge, fleet, any(on_gpu)), log)
        for model, parts in zip(tested, zip(*scored, strict=True), strict=True):
            model.scores = metrics.join(parts)
        if any(on_gpu):
            _measure_throughput(tested, timed, batch, timeline)
        after = gpu_state() if any(on_gpu) else {}
        left_out = _leave_out_undefined(tested, dataset)
        record = BenchRecord(
            rows=[row_of(model, tested, dataset.name) for model in tested],
            dataset=dataset.name,
            images=len(tested[0].scores),
            timed=None if fleet is None else len(tested[0].times["total"]),
            left_out=left_out,
            threads=threads,
            batch=batch,
            hardware=_hardware({model.runner.where for model in tested}),
            gpu=GpuStates(before=before, after=after),
            versions=artifacts.versions(),
            recommendation=advice_on(tested, budget),
        )
        if log is not None:
            log.finish(record, tested, [sample for sample in dataset if sample.name not in left_out])
    return record


def _measure(
    tested: Sequence[ModelUnderTest],
    dataset: Dataset,
    threads: int,
    scored_by: Callable[..., Iterable[list[metrics.Scores]]],
) -> list[list[metrics.Scores]]:
    """Fill in the times and map errors of each model; the scores of each image, of each model."""
    scored: list[list[metrics.Scores]] = []
    waiting: list[tuple[Sample, list[np.ndarray]]] = []
    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        for index, sample in enumerate(terminal.progress(dataset, "measuring", total=len(dataset))):
            image = sample.image()
            if index % _CHUNK == 0:  # the caches hold other data: of the file system, or of scoring
                for model in [*tested] * (_WARMUP if index == 0 else 1):
                    model.warm_up(image, sample.name)
            turn = index % len(tested)
            maps = {model: model.run(image, sample.name) for model in (*tested[turn:], *tested[:turn])}
            for model in tested:
                model.map_errors.append(float(np.mean(cv2.absdiff(maps[model], maps[tested[0]])) / 255))
            waiting.append((sample, [maps[model] for model in tested]))
            if len(waiting) == _CHUNK or index + 1 == len(dataset):
                scored += scored_by(*zip(*waiting, strict=True))
                waiting.clear()
    finally:
        cv2.setNumThreads(before)
    return scored


def _measure_throughput(
    tested: Sequence[ModelUnderTest], dataset: Dataset, batch: int, timeline: str | Path | None
) -> None:
    """Fill in the throughput of each model on the GPU."""
    there = [(model, model.runner.session) for model in tested if isinstance(model.runner, GpuRunner)]
    trace = Timeline() if timeline is not None else None
    found = throughput([(model.path, session) for model, session in there], dataset.samples, batch, trace)
    for (model, _), rate in zip(there, found, strict=True):
        model.throughput = rate
    if trace is not None and timeline is not None:
        trace.save(timeline)


def _leave_out_undefined(tested: Sequence[ModelUnderTest], dataset: Dataset) -> list[str]:
    """Drop the images on which a metric is undefined from the scores and times of all models; their names."""
    names = [sample.name for sample in dataset]
    defined, left_out = metrics.without_undefined([model.scores for model in tested], names, dataset.name)
    if left_out:
        terminal.warn(f"{dataset.name}: {metrics.left_out_in_words(left_out)}")
        for model, scores in zip(tested, defined, strict=True):
            model.scores = scores
            kept = np.array([name not in left_out for name in names[: len(model.times["total"])]])
            if kept.any():
                model.map_errors = list(np.array(model.map_errors)[kept])
                model.times = {stage: list(np.array(values)[kept]) for stage, values in model.times.items()}
    return left_out


def _with_budget(keys: Sequence[str] | None, budget: Budget | None) -> Sequence[str]:
    chosen = metrics.default_metrics() if keys is None else keys
    return (*chosen, *(key for key in budget or () if key not in chosen))


def _noted(judged: Iterable[Any], log: EvidenceLog | None) -> Iterator[list[metrics.Scores]]:
    """The scores of each model on each image; evidence goes into `log`."""
    for one in judged:
        if log is None:
            yield one
        else:
            log.add(one)
            yield one.scores


def _examine(sample: Sample, maps: list[np.ndarray], keys: Sequence[str]) -> ImageEvidence:
    return examine(sample.name, maps, sample.mask(), keys)


def _score(sample: Sample, maps: list[np.ndarray], keys: Sequence[str]) -> list[metrics.Scores]:
    mask = sample.mask()
    return [metrics.score(saliency, mask, keys, curves=False) for saliency in maps]


def _hardware(devices: set[str]) -> str:
    """The CPU's model name and, if it was used, the GPU's."""
    return f"{processor_name()} and {current_gpu().name}" if "cuda" in devices else processor_name()


def main(
    models: Annotated[list[Path], typer.Argument(help="models; the first is the baseline", show_default=False)],
    data: Annotated[
        list[str],
        typer.Option(help="images with masks: a folder, a list or synthetic:eval; tables for each of several"),
    ],
    root: RootOption = None,
    limit: LimitOption = None,
    device: Annotated[DeviceName, typer.Option(help="where ONNX models run; engines run on the GPU")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; one per core by default")] = None,
    workers: WorkersOption = None,
    max_drop: Annotated[
        str | None, typer.Option(help="recommend a model that loses no more: s=0.002,mae=0.001")
    ] = None,
    chosen: MetricsOption = None,
    batch: Annotated[int, typer.Option(min=1, help="cuda: images in one run, for images per second")] = 8,
    engine: Annotated[
        str, typer.Option(help=f"runtime of ONNX models on a CPU, or several to compare: {','.join(ENGINES)}")
    ] = "onnxruntime",
    timeline: Annotated[Path | None, typer.Option(help="cuda: write a timeline of the pipeline for Perfetto")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the record here; - for stdout")] = None,
    markdown: Annotated[Path | None, typer.Option(help="write the tables here")] = None,
    allow_overlap: Annotated[bool, typer.Option("--allow-overlap", help="accept calibration images in --data")] = False,
    report: Annotated[Path | None, typer.Option(help="write a report for people, index.html, into this folder")] = None,
    plan: Annotated[Path | None, typer.Option(help="report: the plan of the int8 model, for its reasons")] = None,
    layers: Annotated[
        Path | None, typer.Option(help="report: a record of `layers --json`, for the cost of each layer")
    ] = None,
    fail_on: Annotated[
        str | None, typer.Option(help="exit with 3 if a loss may be larger, at 95 %: s=0.003,mae=0.001")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="fail-on: write the checks as JUnit XML")] = None,
    ray: RayOption = None,
) -> None:
    """Compare models in accuracy, with intervals, and in speed."""
    budget = parse_budget(max_drop, metrics.METRICS) if max_drop is not None else None
    keys = metrics.parse_metrics(chosen) if chosen is not None else None
    datasets = open_datasets(data, root=root)
    if timeline is not None and len(datasets) > 1:
        raise UserError(f"--timeline {timeline} shows the run on one data set; give one, not {len(datasets)}")
    limits = parse_budget(fail_on, metrics.METRICS, "--fail-on") if fail_on is not None else None
    _check_report(report, plan, layers, limits, junit)
    if limits is not None:  # they are measured too
        keys = tuple(_with_budget(keys, limits))
    logs = [EvidenceLog() if report is not None else None for _ in datasets]
    records = [
        bench(
            models,
            dataset,
            limit,
            device,
            threads,
            workers,
            allow_overlap,
            budget,
            batch,
            timeline,
            parse_engines(engine),
            keys,
            log,
            None if ray is None else Fleet(ray, workers, threads or 1),
        )
        for dataset, log in zip(datasets, logs, strict=True)
    ]
    publish(*records, json_file=json_file, markdown=markdown)
    if report is not None:
        found = [log.evidence for log in logs if log is not None]
        write_page(found, report / REPORT_FILE, limits or budget, Extras(plan, layers))
        terminal.note(f"the report is {report / REPORT_FILE}")
    if limits is not None:
        _judge(records, limits, junit)


def _check_report(
    report: Path | None, plan: Path | None, layers: Path | None, limits: Budget | None, junit: Path | None
) -> None:
    """
    Raises:
        UserError: an option is missing that another one needs, or a package, or a file that a report shows.
    """
    if report is None and (plan or layers):
        raise UserError("--plan and --layers are shown in a report; add --report DIR")
    if junit is not None and limits is None:
        raise UserError(f"--junit {junit} says whether limits are kept; add --fail-on s=0.003,mae=0.001")
    if report is not None:
        require_page()
        artifacts.check_output(report / REPORT_FILE)
        Extras(plan, layers).check()


def _judge(records: Sequence[BenchRecord], limits: Budget, junit: Path | None) -> None:
    """Say which limits are exceeded, and end with `EXIT_STATUS` if any is."""
    found = checks(records, limits)
    if junit is not None:
        write_junit(found, junit)
    broken = [check for check in found if not check.passed]
    for check in broken:
        terminal.warn(str(check))
    if broken:
        raise typer.Exit(EXIT_STATUS)


def publish(*records: BenchRecord, json_file: Path | None = None, markdown: Path | None = None) -> None:
    """Show records as tables and sentences on stdout, and write them where asked; JSON to "-" takes their place.

    The JSON of several records is an array of them.
    """
    parts = [(bench_tables(record), record.recommendation.text) for record in records]
    if json_file is not None and str(json_file) != "-":
        artifacts.write_text(json_file, to_json(*records))
    if markdown is not None:
        texts = [[*map(to_markdown, tables), *(f"- {sentence}" for sentence in advice)] for tables, advice in parts]
        artifacts.write_text(markdown, "\n\n".join("\n".join(lines) for lines in texts) + "\n")
    if str(json_file) == "-":
        typer.echo(to_json(*records), nl=False)
    else:
        for tables, advice in parts:
            show(tables)
            for sentence in advice:
                terminal.results.print(sentence, markup=False, soft_wrap=True)


if __name__ == "__main__":
    command_line.run(main)
