"""How many images the order of the layer report needs: rank correlation of reports on disjoint images.

    python quant/layer_report.py out/u2netp.onnx out/u2netp.plan.json --data ECSSD --limit 16 --json report.json
    python benchmarks/layer_order.py report.json

For n images the report's images are drawn into pairs of disjoint sets of n, 100 times. The layers are ordered by their
squared error over each set, and Spearman's correlation of both orders is taken. `ENOUGH_IMAGES` of
quant/layer_report.py is the least n for which both sets name the same costliest layer in 95 of 100 draws.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from sodeploy import command_line
from sodeploy.artifacts import require_file
from sodeploy.errors import UserError
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


def main(
    report: Annotated[Path, typer.Argument(help="the JSON of a layer report, on 2 images or more")],
) -> None:
    """Print how well the orders of layers by disjoint images agree."""
    content = require_file(report, "make it with the stage `layers` and --json").read_text()
    try:
        errors = np.array([row["by_image"] for row in json.loads(content)["rows"]], float)
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{report} is no JSON of a layer report; make it with the stage `layers` and --json") from None
    if errors.ndim != 2 or errors.shape[1] < 2:
        raise UserError(f"{report} is of one image; make it on more, with --limit")
    show([table(errors)])


if __name__ == "__main__":
    command_line.run(main)
