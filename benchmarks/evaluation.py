"""runtime/evaluate.py beside PySODMetrics used image by image: the same maps, in turn, in one run.

    python benchmarks/evaluation.py --gt ECSSD [--images 60] [--rounds 3]

The maps are the masks, blurred and with noise, and are read from files by all. Ratios are medians over the rounds. One
worker does what PySODMetrics does, but for stretching each map once; the gain is in several, whose start costs seconds:
compare them on hundreds of images and on a machine that does nothing else.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated

import cv2
import numpy as np
import typer

from sodeploy import command_line
from sodeploy.artifacts import atomic_write
from sodeploy.calib_data import Dataset, open_dataset
from sodeploy.errors import UserError
from sodeploy.runtime.evaluate import evaluate
from sodeploy.runtime.measure.metrics import default_metrics, usable_cores
from sodeploy.runtime.measure.report import Table, show


def plain(maps: Path, masks: Path) -> dict[str, float]:
    """All nine metrics as PySODMetrics' own example computes them, by their keys."""
    import py_sod_metrics as sod

    handlers = {
        "f": sod.FmeasureHandler(with_dynamic=True, with_adaptive=True, beta=0.3),
        "precision": sod.PrecisionHandler(with_dynamic=True, with_adaptive=False),
        "recall": sod.RecallHandler(with_dynamic=True, with_adaptive=False),
    }
    f, mae, s, e, w_f = sod.FmeasureV2(handlers), sod.MAE(), sod.Smeasure(), sod.Emeasure(), sod.WeightedFmeasure()
    for path in sorted(masks.iterdir()):
        saliency, mask = (cv2.imread(str(folder / path.name), cv2.IMREAD_GRAYSCALE) for folder in (maps, masks))
        for metric in (f, mae, s, e, w_f):
            metric.step(saliency, mask)
    of_f, of_e = f.get_results()["f"], e.get_results()["em"]
    return {
        "mae": mae.get_results()["mae"],
        "mean_f": of_f["dynamic"].mean(),
        "max_f": of_f["dynamic"].max(),
        "adp_f": of_f["adaptive"],
        "w_f": w_f.get_results()["wfm"],
        "s": s.get_results()["sm"],
        "mean_e": of_e["curve"].mean(),
        "max_e": of_e["curve"].max(),
        "adp_e": of_e["adp"],
    }


def compare(dataset: Dataset, rounds: int, workers: int) -> dict[str, list[float]]:
    """Seconds of each round: of `PySODMetrics`, and of `evaluate` with one and with `workers` processes.

    Raises:
        UserError: the scores differ.
    """
    with tempfile.TemporaryDirectory() as folder:
        maps, masks = Path(folder) / "maps", Path(folder) / "masks"
        _save(dataset, maps, masks)
        ways: dict[str, Callable[[], dict[str, float]]] = {
            "PySODMetrics": lambda: plain(maps, masks),
            "evaluate, 1 worker": lambda: evaluate([maps], [masks], 1)[0].scores.summary(),
            f"evaluate, {workers} workers": lambda: evaluate([maps], [masks], workers)[0].scores.summary(),
        }
        expected = plain(maps, masks)  # and everything is imported and cached
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                scores = way()
                seconds[name].append(time.perf_counter() - start)
                if not np.allclose(
                    [scores[key] for key in default_metrics()], [expected[key] for key in default_metrics()], atol=1e-12
                ):
                    raise UserError(f"{name} gives other scores than PySODMetrics: {scores}, not {expected}")
    return seconds


def _save(dataset: Dataset, maps: Path, masks: Path) -> None:
    random = np.random.default_rng(0)
    for number, sample in enumerate(dataset):
        mask = sample.mask()
        blurred = cv2.GaussianBlur(mask, (0, 0), 5).astype(np.float32) + random.normal(0, 20, mask.shape)
        for folder, image in ((maps, blurred.clip(0, 255).astype(np.uint8)), (masks, mask)):
            with atomic_write(folder / f"{number:04}.png") as path:
                cv2.imwrite(str(path), image)


def main(
    gt: Annotated[str, typer.Option(help="data set with masks")],
    images: Annotated[int, typer.Option(help="the first so many of it", min=1)] = 60,
    rounds: Annotated[int, typer.Option(help="how often each way takes its turn", min=1)] = 3,
    workers: Annotated[int | None, typer.Option(help="processes; one per core by default", min=2)] = None,
) -> None:
    """Time the ways to score the same maps."""
    dataset = open_dataset(gt)
    chosen = Dataset(dataset.name, [dataset[index] for index in range(min(images, len(dataset)))])
    seconds = compare(chosen, rounds, workers or max(2, usable_cores()))
    base = seconds["PySODMetrics"]
    rows = [
        [name, f"{len(chosen) / median(times):.1f}", f"{median(b / t for b, t in zip(base, times, strict=True)):.2f}"]
        for name, times in seconds.items()
    ]
    show([Table("", ["way", "images/s", "times as fast"], rows)])


if __name__ == "__main__":
    command_line.run(main)
