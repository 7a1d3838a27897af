"""Precision-recall and F-measure curves, as a picture or as values."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sodeploy.artifacts import atomic_write, write_text
from sodeploy.errors import UserError
from sodeploy.runtime.measure.metrics import F_CURVE, PRECISION, RECALL, Scores

_FORMATS = (".png", ".svg", ".pdf", ".csv")


def require_drawable(path: Path) -> None:
    """Say early what would fail after all the scoring.

    Raises:
        UserError: matplotlib is not installed, or `path` ends in no format that we draw.
    """
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"{path} ends in no known picture format; choose {', '.join(_FORMATS)}")
    if path.suffix.lower() == ".csv":
        return
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("curves need matplotlib; install it: pip install 'sodeploy[report]'") from None


def draw_curves(curves: Sequence[tuple[str, str, Scores]], path: Path) -> None:
    """Draw the mean curves over all images: per data set a row, precision over recall and F over the threshold.

    Args:
        curves: (data set, method, scores), the methods of a data set one after the other.
        path: .png, .svg or .pdf; .csv for the values at the 256 thresholds.

    Raises:
        UserError: see `require_drawable`.
    """
    require_drawable(path)
    if path.suffix.lower() == ".csv":
        write_text(path, _as_csv(curves))
        return
    from matplotlib.figure import Figure

    datasets = list(dict.fromkeys(dataset for dataset, _, _ in curves))
    figure = Figure(figsize=(9.6, 4.2 * len(datasets)), layout="constrained")
    grid = figure.subplots(len(datasets), 2, squeeze=False)
    for (precision_recall, f_measure), dataset in zip(grid, datasets, strict=True):
        for name, method, scores in curves:
            if name != dataset:
                continue
            precision, recall, f = (
                values.mean(axis=0) for values in (scores[PRECISION], scores[RECALL], scores[F_CURVE])
            )
            precision_recall.plot(recall, precision, label=method, linewidth=1.5)
            f_measure.plot(np.arange(255, -1, -1), f, label=f"{method} (max {f.max():.3f})", linewidth=1.5)
        precision_recall.set(title=f"{dataset}: precision and recall", xlabel="recall", ylabel="precision", xlim=(0, 1))
        f_measure.set(title=f"{dataset}: F-measure, β² = 0.3", xlabel="threshold", ylabel="F", xlim=(0, 255))
        for axes in (precision_recall, f_measure):
            axes.set_ylim(0, 1.01)
            axes.grid(alpha=0.3)
            axes.legend(loc="lower left" if axes is precision_recall else "lower center", fontsize="small")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _as_csv(curves: Sequence[tuple[str, str, Scores]]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["dataset", "method", "threshold", "precision", "recall", "f"])
    for dataset, method, scores in curves:
        values = (scores[curve].mean(axis=0) for curve in (PRECISION, RECALL, F_CURVE))
        for threshold, row in zip(range(255, -1, -1), zip(*values, strict=True), strict=True):
            table.writerow([dataset, method, threshold, *map(float, row)])
    return text.getvalue()
