"""Score folders of saliency maps, made by anyone, against the masks of one or several data sets.

    python runtime/evaluate.py --pred maps/U2Net --pred maps/ISNet --data ECSSD --data DUTS-TE [--curves curves.png]

A map has the name of its mask, in `maps/U2Net/` or, where there are several data sets, in `maps/U2Net/ECSSD/`.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Protocol

import cv2
import numpy as np
import typer

from sodeploy import artifacts, command_line, terminal
from sodeploy.calib_data import Dataset, open_datasets
from sodeploy.calib_data.dataset import FileSample
from sodeploy.calib_data.images import SUFFIXES
from sodeploy.calib_data.layouts import find_layout, without_ending
from sodeploy.calib_data.mask_reading import read_map, read_mask
from sodeploy.calib_data.mask_sets import check_masks
from sodeploy.calib_data.options import RootOption
from sodeploy.calib_data.sources import Source, located, one_by_one
from sodeploy.errors import UserError
from sodeploy.runtime.measure import metrics
from sodeploy.runtime.measure.curves import draw_curves, require_drawable
from sodeploy.runtime.measure.options import MetricsOption
from sodeploy.runtime.measure.record import EvaluationRecord, EvaluationRow, to_json
from sodeploy.runtime.measure.report import evaluation_table, labels, show, to_markdown


class Truth(Protocol):
    """A mask under the name that its saliency maps have too."""

    @property
    def name(self) -> str: ...

    def mask(self) -> np.ndarray:
        """(H, W) uint8."""


@dataclass(frozen=True)
class MaskFile:
    """A mask whose image nobody needs."""

    name: str
    mask_path: Path

    def mask(self) -> np.ndarray:
        """(H, W) uint8."""
        return read_mask(self.mask_path)


@dataclass(frozen=True)
class Evaluation:
    """One method on one data set."""

    method: str
    dataset: str
    scores: metrics.Scores
    resized: int  # maps that did not have their mask's size
    left_out: list[str]  # masks on which a metric is undefined; no method is scored on them


def evaluate(
    predictions: Sequence[str | Path],
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
        predictions: a folder of maps per method.
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
    folder = None if root is None else Path(root)
    datasets = [_open_truths(source, folder) for source in one_by_one(truths, folder)]
    names = labels([name for name, _ in datasets])
    methods = labels([Path(folder).resolve().as_posix() for folder in predictions])
    jobs = [
        list(zip(masks, _maps(folder, name, masks), strict=True))
        for name, (_, masks) in zip(names, datasets, strict=True)
        for folder in map(Path, predictions)
    ]
    pairs = [pair for job in jobs for pair in job]
    for name, masks in datasets:
        check_masks(masks, name)
    with metrics.parallel_map(workers) as mapped:
        working = mapped(partial(_score, keys=keys, curves=curves), *zip(*pairs, strict=True))
        scored = iter(list(terminal.progress(working, "scoring", total=len(pairs))))
    evaluations = []
    for name, (_, masks) in zip(names, datasets, strict=True):
        parts = [[next(scored) for _ in masks] for _ in methods]
        scores = [metrics.join([score for score, _ in part]) for part in parts]
        defined, left_out = metrics.without_undefined(scores, [mask.name for mask in masks], name)
        for method, part, kept in zip(methods, parts, defined, strict=True):
            evaluations.append(Evaluation(method, name, kept, sum(resized for _, resized in part), left_out))
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


def _open_truths(source: Source, root: Path | None) -> tuple[str, list[Truth]]:
    """A data set's name and its masks."""
    place = None if isinstance(source, Dataset) else located(source, root)
    if place and place.is_dir() and not (layout := find_layout(place)).masks and layout.images:
        photograph = next((path for path in layout.images.values() if path.suffix.lower() in (".jpg", ".jpeg")), None)
        if photograph:
            raise UserError(f"{place} has no masks, and {photograph.name} does not look like one; give the data set")
        return place.resolve().name, [MaskFile(stem, path) for stem, path in layout.images.items()]
    (dataset,) = open_datasets([place or source], root=root)
    masks: list[Truth] = [
        MaskFile(sample.name, sample.mask_path) if isinstance(sample, FileSample) and sample.mask_path else sample
        for sample in dataset
    ]
    return dataset.name, masks


def _maps(folder: Path, dataset: str, masks: Sequence[Truth]) -> list[Path]:
    """The map of each mask."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one with a saliency map for every mask")
    place = folder / dataset if (folder / dataset).is_dir() else folder
    files: dict[str, Path] = {}
    for path in sorted(place.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            other = files.setdefault(path.relative_to(place).with_suffix("").as_posix(), path)
            if other != path:
                raise UserError(f"{other} and {path.name} are maps of the same name; remove one")
    found = {mask.name: its for mask in masks if (its := _map_of(mask.name, files))}
    missing = [mask.name for mask in masks if mask.name not in found]
    if missing:
        raise UserError(
            f"{place} lacks {len(missing)} of {len(masks)} maps of {dataset}, the first {missing[0]}; "
            "make them, or give the list of the images that count as --data LIST.txt"
        )
    if len(set(found.values())) < len(masks):
        first = next(name for name, its in found.items() if list(found.values()).count(its) > 1)
        raise UserError(
            f"{place} has one map for several masks of {dataset}, the first {first}; name maps as the masks"
        )
    return [found[mask.name] for mask in masks]


def _map_of(name: str, files: Mapping[str, Path]) -> Path | None:
    """The map of a mask: of its whole name, without its folders (a list has them), or without its ending (x_mask)."""
    plain = Path(name).name
    return next(
        (files[one] for one in (name, plain, without_ending(name), without_ending(plain)) if one in files), None
    )


def _score(truth: Truth, path: Path, keys: Sequence[str] | None, curves: bool) -> tuple[metrics.Scores, bool]:
    mask, saliency = truth.mask(), read_map(path)
    resized = saliency.shape != mask.shape
    if resized:
        saliency = cv2.resize(saliency, mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return metrics.score(saliency, mask, keys, curves), resized


def main(
    pred: Annotated[list[Path], typer.Option(help="folder of maps; once per method", show_default=False)],
    data: Annotated[list[str], typer.Option(help="data set, or folder of masks; once each", show_default=False)],
    root: RootOption = None,
    workers: Annotated[int | None, typer.Option(min=1, help="processes that score; one per core by default")] = None,
    chosen: MetricsOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the record here; - for stdout")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="write the rows here")] = None,
    markdown: Annotated[Path | None, typer.Option(help="write the table here")] = None,
    curves: Annotated[Path | None, typer.Option(help="draw PR and F curves: .png, .svg or .pdf")] = None,
) -> None:
    """Score saliency maps in all metrics."""
    if curves is not None:
        require_drawable(curves)
    keys = metrics.parse_metrics(chosen) if chosen is not None else None
    evaluations = evaluate(pred, data, workers, root, keys, curves is not None)
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
    text = to_json(record)
    table = evaluation_table(record)
    if json_file is not None and str(json_file) != "-":
        artifacts.write_text(json_file, text)
    if csv_file is not None:
        artifacts.write_text(csv_file, to_csv(record))
    if markdown is not None:
        artifacts.write_text(markdown, to_markdown(table))
    if curves is not None:
        draw_curves([(one.dataset, one.method, one.scores) for one in evaluations], curves)
    if str(json_file) == "-":
        typer.echo(text, nl=False)
    else:
        show([table])


if __name__ == "__main__":
    command_line.run(main)
