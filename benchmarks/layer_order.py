"""How many images the order of the layer report needs: rank correlation of reports on disjoint images.

    python quant/layer_report.py out/u2netp.onnx out/u2netp.plan.json --data ECSSD --limit 16 --exact --json exact.json
    python quant/layer_report.py out/u2netp.onnx out/u2netp.plan.json --data ECSSD --limit 16 --json estimate.json
    python benchmarks/layer_order.py exact.json --estimate estimate.json

For n images the report's images are drawn into pairs of disjoint sets of n, 100 times. The layers are ordered by their
squared error over each set, and Spearman's correlation of both orders is taken. `ENOUGH_IMAGES` of
quant/layer_report.py is the least n for which both sets name the same costliest layer in 95 of 100 draws. A report
without --exact on the same images is held against the exact one.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from sodeploy import command_line
from sodeploy.artifacts import require_file
from sodeploy.errors import UserError
from sodeploy.quant.layer_errors import COSTLIEST
from sodeploy.runtime.measure.report import Table, show

_DRAWS = 100


def agreement(errors: np.ndarray, count: int, rng: np.random.Generator) -> tuple[list[float], list[bool]]:
    """Spearman's correlation of the orders by two disjoint sets of `count` images, and whether their first agree.

    Args:
        errors: `(layers, images)`, the map's error.
    """
    correlations, same_first = [], []
    for _ in range(_DRAWS):
        drawn = rng.permutation(errors.shape[1])
        pair = [np.square(errors[:, chosen]).mean(axis=1) for chosen in (drawn[:count], drawn[count : 2 * count])]
        ranks = [np.argsort(np.argsort(-values)) for values in pair]
        correlations.append(float(np.corrcoef(*ranks)[0, 1]))
        same_first.append(bool(pair[0].argmax() == pair[1].argmax()))
    return correlations, same_first


def table(errors: np.ndarray) -> Table:
    """A row per number of images."""
    rng = np.random.default_rng(0)
    rows = []
    for count in range(1, errors.shape[1] // 2 + 1):
        correlations, same_first = agreement(errors, count, rng)
        low, median = np.quantile(correlations, (0.1, 0.5))
        rows.append([str(count), f"{median:.2f}", f"{low:.2f}", f"{np.mean(same_first):.0%}"])
    return Table(
        f"Order of {errors.shape[0]} layers by two disjoint sets of images",
        ["images in a set", "rank correlation, median", "lowest tenth", "same costliest layer"],
        rows,
        1,
    )


def agreement_of_estimate(exact: Sequence[dict[str, Any]], estimate: Sequence[dict[str, Any]]) -> Table:
    """How well the estimates give the order of the exact errors.

    Args:
        exact: the rows of a report, the costliest first.
        estimate: the rows of another one of the same plan on the same images.

    Raises:
        UserError: they are of other layers.
    """
    order, order_of_estimate = [row["node"] for row in exact], [row["node"] for row in estimate]
    if set(order) != set(order_of_estimate):
        raise UserError("both reports must be of the same plan; their layers differ")
    ranks = [order_of_estimate.index(name) for name in order]
    correlation = np.corrcoef(ranks, np.arange(len(ranks)))[0, 1]
    estimated = sum(not row["exact"] for row in estimate)
    found = len(set(order[:COSTLIEST]) & set(order_of_estimate[:COSTLIEST]))
    return Table(
        f"{estimated} of {len(order)} layers estimated",
        ["rank correlation to exact", "same costliest layer", f"of the {COSTLIEST} costliest"],
        [[f"{correlation:.2f}", "yes" if order[0] == order_of_estimate[0] else "no", str(found)]],
        0,
    )


def _rows(report: Path) -> list[dict[str, Any]]:
    content = require_file(report, "make it with the stage `layers` and --json").read_text()
    try:
        rows = json.loads(content)["rows"]
        if np.array([row["by_image"] for row in rows], float).ndim == 2 and all("exact" in row for row in rows):
            return list(rows)
    except (ValueError, LookupError, TypeError):
        pass
    raise UserError(f"{report} is no JSON of a layer report; make it with the stage `layers` and --json")


def main(
    report: Annotated[Path, typer.Argument(help="the JSON of a layer report by --exact, on 2 images or more")],
    estimate: Annotated[Path | None, typer.Option(help="the JSON of a report on the same images, by estimates")] = None,
) -> None:
    """Print how well the orders of layers by disjoint images agree."""
    rows = _rows(report)
    if not all(row["exact"] for row in rows):
        raise UserError(f"{report} holds estimates; make it with --exact")
    errors = np.array([row["by_image"] for row in rows], float)
    if errors.shape[1] < 2:
        raise UserError(f"{report} is of one image; make it on more, with --limit")
    show([table(errors), *([agreement_of_estimate(rows, _rows(estimate))] if estimate else [])])


if __name__ == "__main__":
    command_line.run(main)
