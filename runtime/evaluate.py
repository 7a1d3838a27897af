"""Score folders of saliency maps, made by anyone, against the masks of one or several data sets.

    python runtime/evaluate.py --pred maps/U2Net --pred maps/ISNet --data ECSSD --data DUTS-TE [--curves curves.png]

    python runtime/evaluate.py --config eval.yaml
    python runtime/evaluate.py --pairs pairs.lst

A map has the name of its mask, in `maps/U2Net/` or, where there are several data sets, in `maps/U2Net/ECSSD/`.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import cv2
import typer

from sodeploy import artifacts, command_line, terminal
from sodeploy.calib_data.mask_reading import read_map
from sodeploy.calib_data.mask_sets import check_masks
from sodeploy.calib_data.options import RootOption
from sodeploy.calib_data.sources import Source, one_by_one
from sodeploy.errors import UserError
from sodeploy.runtime.measure import metrics
from sodeploy.runtime.measure.curves import draw_curves, require_drawable
from sodeploy.runtime.measure.evaluation_config import load_evaluation
from sodeploy.runtime.measure.map_files import Truth, listed_pairs, maps_of, open_truths
from sodeploy.runtime.measure.options import MetricsOption, WorkersOption
from sodeploy.runtime.measure.record import EvaluationRecord, EvaluationRow, to_json
from sodeploy.runtime.measure.report import evaluation_table, labels, show, to_markdown

EVALUATION = "evaluation.json"  # in a folder of results


@dataclass(frozen=True)
class Evaluation:
    """One method on one data set."""

    method: str
    dataset: str
    scores: metrics.Scores
    resized: int  # maps that did not have their mask's size
    left_out: list[str]  # masks on which a metric is undefined; no method is scored on them


def evaluate(
    predictions: Sequence[str | Path] | Mapping[str, Path],
    truths: Sequence[Source],
    workers: int | None = None,
    root: str | Path | None = None,
    keys: Sequence[str] | None = None,
    curves: bool = True,
) -> list[Evaluation]:
    """Score every method on every data set, in parallel processes.

    Maps are read as 8-bit grey, cut-outs by their alpha channel; a map that is not as large as its mask is first
    resized to it, bilinearly.

    Args:
        predictions: a folder of maps per method; a mapping names the methods.
        truths: data sets as `calib_data.open_dataset` takes them, or folders of nothing but masks.
        workers: processes; one per core by default.
        root: folder of the data sets that are given by name.
        keys: the metrics, in the order of tables; the default ones by default.
        curves: keep the curves that `draw_curves` draws.

    Returns:
        Data set by data set, the methods in the given order.

    Raises:
        UserError: a folder, a map or a mask is missing or broken; nothing is scored in part.
    """
    place = None if root is None else Path(root)
    folders = list(map(Path, predictions.values() if isinstance(predictions, Mapping) else predictions))
    methods = list(predictions) if isinstance(predictions, Mapping) else _names_of(folders)
    datasets = [open_truths(source, place) for source in one_by_one(truths, place)]
    names = _different([name for name, _ in datasets])
    jobs = [
        _Job(method, name, list(zip(masks, maps_of(folder, name, masks), strict=True)))
        for name, (_, masks) in zip(names, datasets, strict=True)
        for method, folder in zip(methods, folders, strict=True)
    ]
    return _evaluated(jobs, workers, keys, curves)


def evaluate_pairs(
    lists: Sequence[str | Path],
    workers: int | None = None,
    root: str | Path | None = None,
    keys: Sequence[str] | None = None,
    curves: bool = True,
) -> list[Evaluation]:
    """Score the maps of lists whose lines are a map and its mask, as SalMetric takes them.

    Args:
        root: the folder that the lines are relative to; by default each list's own.
        workers, keys, curves: as of `evaluate`.

    Raises:
        UserError: a list, a map or a mask is missing or broken; nothing is scored in part.
    """
    found = [listed_pairs(path, None if root is None else Path(root)) for path in lists]
    names = _different([name for name, _ in found])
    jobs = [_Job("listed maps", name, pairs) for name, (_, pairs) in zip(names, found, strict=True)]
    return _evaluated(jobs, workers, keys, curves)


@dataclass(frozen=True)
class _Job:
    """The masks of a data set, each with the map of one method."""

    method: str
    dataset: str
    pairs: list[tuple[Truth, Path]]


def _different(names: list[str]) -> list[str]:
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two data sets are called {twice}; give each once, under a name of its own")
    return names


def _names_of(folders: Sequence[Path]) -> list[str]:
    return labels([folder.resolve().as_posix() for folder in folders])


def _evaluated(jobs: Sequence[_Job], workers: int | None, keys: Sequence[str] | None, curves: bool) -> list[Evaluation]:
    """The scores of the jobs, in their order. Methods on one data set are compared on the same masks."""
    for dataset, masks in {job.dataset: [mask for mask, _ in job.pairs] for job in jobs}.items():
        check_masks(masks, dataset)
    pairs = [pair for job in jobs for pair in job.pairs]
    with metrics.parallel_map(workers) as mapped:
        working = mapped(partial(_score, keys=keys, curves=curves), *zip(*pairs, strict=True))
        scored = iter(list(terminal.progress(working, "scoring", total=len(pairs))))
    parts = [[next(scored) for _ in job.pairs] for job in jobs]
    evaluations = []
    for dataset in dict.fromkeys(job.dataset for job in jobs):
        its = [(job, part) for job, part in zip(jobs, parts, strict=True) if job.dataset == dataset]
        scores = [metrics.join([score for score, _ in part]) for _, part in its]
        defined, left_out = metrics.without_undefined(scores, [mask.name for mask, _ in its[0][0].pairs], dataset)
        for (job, part), kept in zip(its, defined, strict=True):
            evaluations.append(Evaluation(job.method, dataset, kept, sum(resized for _, resized in part), left_out))
    return evaluations


def to_record(evaluations: Sequence[Evaluation]) -> EvaluationRecord:
    """The record that the JSON file holds."""
    rows = [
        EvaluationRow(
            method=one.method,
            dataset=one.dataset,
            images=len(one.scores),
            resized=one.resized,
            left_out=one.left_out,
            metrics=one.scores.summary(),
        )
        for one in evaluations
    ]
    return EvaluationRecord(rows=rows, versions=artifacts.versions())


def to_csv(record: EvaluationRecord) -> str:
    """The rows as comma-separated values at full precision, under a header."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    keys = list(record.rows[0].metrics)
    table.writerow(["dataset", "method", "images", "resized", *keys])
    for row in record.rows:
        table.writerow([row.dataset, row.method, row.images, row.resized, *(row.metrics[key] for key in keys)])
    return text.getvalue()


def _score(truth: Truth, path: Path, keys: Sequence[str] | None, curves: bool) -> tuple[metrics.Scores, bool]:
    mask, saliency = truth.mask(), read_map(path)
    if saliency.shape == mask.shape[::-1] != mask.shape:
        (height, width), (mask_height, mask_width) = saliency.shape, mask.shape
        raise UserError(
            f"{path} is {width}x{height} but its mask {truth.name} is {mask_width}x{mask_height}: height and width are "
            "swapped; turn the one that is wrong"
        )
    resized = saliency.shape != mask.shape
    if resized:
        saliency = cv2.resize(saliency, mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return metrics.score(saliency, mask, keys, curves), resized


def main(
    pred: Annotated[list[Path] | None, typer.Option(help="folder of maps; once per method", show_default=False)] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="data set, or folder of masks; once each", show_default=False)
    ] = None,
    root: RootOption = None,
    pairs: Annotated[
        list[Path] | None, typer.Option(help="instead of --pred and --data: a list with a map and its mask per line")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="instead: a YAML file of methods, data sets and metrics")] = None,
    workers: WorkersOption = None,
    chosen: MetricsOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the record here; - for stdout")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="write the rows here")] = None,
    markdown: Annotated[Path | None, typer.Option(help="write the table here")] = None,
    curves: Annotated[
        Path | None, typer.Option(help="draw PR and F curves: .png, .svg or .pdf; .csv for their values")
    ] = None,
) -> None:
    """Score saliency maps in all metrics."""
    if curves is not None:
        require_drawable(curves)
    keys = metrics.parse_metrics(chosen) if chosen is not None else None
    with_curves = curves is not None
    given = [name for name, value in (("--config", config), ("--pairs", pairs), ("--pred", pred)) if value]
    if len(given) > 1 or (given != ["--pred"] and data):
        names = [*given, *(["--data"] if data else [])]
        raise UserError(f"{' and '.join(names)} each say what is scored; give --pred with --data, --pairs or --config")
    outputs = Outputs(json_file, csv_file, markdown, curves)
    if config is not None:
        wanted = load_evaluation(config)
        evaluations = evaluate(
            wanted.folders(), wanted.datasets, workers, root or wanted.gt_root, keys or wanted.metrics, with_curves
        )
        outputs = outputs.in_folder(wanted.result_path)
    elif pairs:
        evaluations = evaluate_pairs(pairs, workers, root, keys, with_curves)
    else:
        evaluations = evaluate(pred or [], data or [], workers, root, keys, with_curves)
    publish(evaluations, outputs)


@dataclass(frozen=True)
class Outputs:
    """The files that an evaluation is written to; JSON to "-" takes the table's place on stdout."""

    json: Path | None = None
    csv: Path | None = None
    markdown: Path | None = None
    curves: Path | None = None

    def in_folder(self, folder: Path | None) -> "Outputs":
        """The same, with files in `folder` where none are given."""
        if folder is None:
            return self
        return replace(
            self,
            json=self.json or folder / EVALUATION,
            csv=self.csv or folder / "evaluation.csv",
            markdown=self.markdown or folder / "evaluation.md",
        )


def publish(evaluations: Sequence[Evaluation], outputs: Outputs) -> None:
    """Write the files, and show the table on stdout; JSON to "-" takes its place."""
    record = write_outputs(evaluations, outputs)
    if str(outputs.json) == "-":
        typer.echo(to_json(record), nl=False)
    else:
        show([evaluation_table(record)])


def write_outputs(evaluations: Sequence[Evaluation], outputs: Outputs) -> EvaluationRecord:
    """Write the files, and warn about maps that were resized or left out; returns the record."""
    for dataset, left_out in {one.dataset: one.left_out for one in evaluations}.items():
        if left_out:
            terminal.warn(f"{dataset}: {metrics.left_out_in_words(left_out)}")
    for one in evaluations:
        if one.resized:
            count = f"{one.resized} of {len(one.scores) + len(one.left_out)} maps"
            terminal.warn(
                f"{one.method}: {count} of {one.dataset} did not have their mask's size and were resized to it"
            )
    record = to_record(evaluations)
    if outputs.json is not None and str(outputs.json) != "-":
        artifacts.write_text(outputs.json, to_json(record))
    if outputs.csv is not None:
        artifacts.write_text(outputs.csv, to_csv(record))
    if outputs.markdown is not None:
        artifacts.write_text(outputs.markdown, to_markdown(evaluation_table(record)))
    if outputs.curves is not None:
        draw_curves([(one.dataset, one.method, one.scores) for one in evaluations], outputs.curves)
    return record


if __name__ == "__main__":
    command_line.run(main)
