"""The summary of an experiment: the scores of its models, their differences to the first model, and its steps."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sodeploy import artifacts
from sodeploy.experiment import Experiment
from sodeploy.runtime.evaluate import Evaluation
from sodeploy.runtime.measure.differences import bootstrap_deltas
from sodeploy.runtime.measure.metrics import METRICS
from sodeploy.runtime.measure.record import Difference, read_evaluation
from sodeploy.runtime.measure.report import Table, evaluation_table, interval, to_markdown

SUMMARY, SUMMARY_JSON, PAGE = "summary.md", "summary.json", "report.html"


def differences_of(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, dict[str, Any]]]:
    """Data set -> model -> metric -> the difference to the first model, with its 95 % interval where there is one."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for dataset in dict.fromkeys(one.dataset for one in evaluations):
        baseline, *others = [one for one in evaluations if one.dataset == dataset]
        found[dataset] = {
            other.method: {
                key: Difference.of(delta).model_dump(mode="json")
                for key, delta in bootstrap_deltas(baseline.scores, other.scores).items()
            }
            for other in others
        }
    return found


def write_summary(
    config: Path,
    experiment: Experiment,
    output: Path,
    states: Mapping[str, str],
    files: Mapping[str, Mapping[str, str]],
) -> None:
    """Write summary.md and summary.json.

    Args:
        config: the file of the experiment.
        output: its folder.
        states: step -> "done", "skipped" or "not selected".
        files: step -> role -> path of each output; the step `eval` has "json" and "differences".

    Raises:
        UserError: an output of the step `eval` is broken.
        OSError: for example no space is left.
    """
    record = read_evaluation(files["eval"]["json"])
    differences = artifacts.read_json(files["eval"]["differences"], "do the step eval again")
    content = {
        "experiment": experiment.model_dump(mode="json"),
        "config": {"path": str(config), "sha256": artifacts.sha256(config)},
        "steps": states,
        "files": files,
        "evaluation": record.model_dump(mode="json"),
        "differences": differences,
        "versions": artifacts.versions(),
    }
    artifacts.write_text(output / SUMMARY_JSON, json.dumps(content, indent=2) + "\n")
    steps = [[step, states[step], ", ".join(made.values())] for step, made in files.items() if step in states]
    tables = [
        evaluation_table(record),
        *_difference_tables(differences, experiment.test.models[0]),
        Table("Steps", ["step", "state", "files"], steps, text_columns=3),
    ]
    lines = [f"# {output.name}\n", f"Made by `sodeploy run --config {config}`.\n", *map(to_markdown, tables)]
    if "page" in files["report"]:
        lines.append(f"[The report]({PAGE}): losses, times, and the images that lost most.\n")
    if "curves" in files["eval"]:
        lines.append(f"![precision-recall and F curves]({Path(files['eval']['curves']).name})\n")
    artifacts.write_text(output / SUMMARY, "\n".join(lines))


def _difference_tables(differences: Mapping[str, Mapping[str, Mapping[str, Any]]], baseline: str) -> list[Table]:
    tables = []
    for dataset, models in differences.items():
        if not models:
            continue
        keys = list(next(iter(models.values())))
        rows = [
            [METRICS[key].label, *(interval(Difference.model_validate(deltas[key])) for deltas in models.values())]
            for key in keys
        ]
        has_interval = all(delta["ci95"] for deltas in models.values() for delta in deltas.values())
        how = (
            "with 95 % interval (paired bootstrap over images)" if has_interval else "without interval: too few images"
        )
        title = f"{dataset}: difference to {baseline}, {how}"
        tables.append(Table(title, ["metric", *models], rows))
    return tables
