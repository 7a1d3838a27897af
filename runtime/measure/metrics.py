"""The metrics of salient object detection, per image and over a set, and what a difference between two models is worth.

All scores come from PySODMetrics, so they are the ones that papers report. Its conventions, which are ours too: the
saliency map is 8-bit and as large as the mask; it is stretched to [0, 1] over its own minimum and maximum before
anything is computed; the mask is foreground where > 128; F uses beta² = 0.3, weighted F beta² = 1; curves have 256
thresholds; a score over a set is the mean over its images, and max F and max E are the maxima of the mean curves.
"""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from sodeploy.errors import UserError

# What tables call each metric, in their order.
LABELS = {
    "mae": "MAE",
    "mean_f": "mean F",
    "max_f": "max F",
    "adp_f": "adaptive F",
    "w_f": "weighted F",
    "s": "S",
    "mean_e": "mean E",
    "max_e": "max E",
    "adp_e": "adaptive E",
}

_CHUNK = 256  # bootstrap resamples at a time: bounds memory at 2 KiB per image


@dataclass(frozen=True)
class Scores:
    """The scores of one model on N images, in the images' order; curves run from threshold 255 down to 0."""

    mae: np.ndarray  # (N,) float64, as are all
    s: np.ndarray  # (N,) structure measure, Fan et al., ICCV 2017
    w_f: np.ndarray  # (N,) weighted F, Margolin et al., CVPR 2014
    adp_f: np.ndarray  # (N,) F at twice the map's mean, Achanta et al., CVPR 2009
    adp_e: np.ndarray  # (N,) enhanced-alignment measure, Fan et al., IJCAI 2018, at the same threshold
    f_curve: np.ndarray  # (N, 256)
    e_curve: np.ndarray  # (N, 256)
    precision: np.ndarray  # (N, 256)
    recall: np.ndarray  # (N, 256)

    def __len__(self) -> int:
        return len(self.mae)

    def summary(self) -> dict[str, float]:
        """The nine metrics over all images, by the keys of `LABELS`.

        Raises:
            ValueError: there are no images.
        """
        if not len(self):
            raise ValueError("no images were scored")
        f_curve, e_curve = self.f_curve.mean(axis=0), self.e_curve.mean(axis=0)
        values = {
            "mae": self.mae.mean(),
            "mean_f": f_curve.mean(),
            "max_f": f_curve.max(),
            "adp_f": self.adp_f.mean(),
            "w_f": self.w_f.mean(),
            "s": self.s.mean(),
            "mean_e": e_curve.mean(),
            "max_e": e_curve.max(),
            "adp_e": self.adp_e.mean(),
        }
        return {key: float(value) for key, value in values.items()}


@dataclass(frozen=True)
class Delta:
    """A difference of one metric, and the 95 % confidence interval of that difference."""

    value: float
    low: float
    high: float


def score(saliency: np.ndarray, mask: np.ndarray) -> Scores:
    """Score one saliency map against its mask.

    Args:
        saliency: (H, W) uint8.
        mask: (H, W) uint8, foreground where > 128.

    Raises:
        UserError: PySODMetrics is not installed.
        ValueError: the two are not uint8 maps of one size.
    """
    if saliency.dtype != np.uint8 or mask.dtype != np.uint8 or saliency.ndim != 2 or saliency.shape != mask.shape:
        raise ValueError(
            "expected two uint8 maps (H, W) of one size, "
            f"got {saliency.shape} {saliency.dtype} and {mask.shape} {mask.dtype}"
        )
    try:
        import py_sod_metrics as sod
        from py_sod_metrics.utils import prepare_data
    except ImportError:
        raise UserError("scoring needs PySODMetrics; install it: pip install 'sodeploy[bench]'") from None

    handlers = {
        "f": sod.FmeasureHandler(with_dynamic=True, with_adaptive=True, beta=0.3),
        "precision": sod.PrecisionHandler(with_dynamic=True, with_adaptive=False),
        "recall": sod.RecallHandler(with_dynamic=True, with_adaptive=False),
    }
    f, mae, s, e, w_f = sod.FmeasureV2(handlers), sod.MAE(), sod.Smeasure(), sod.Emeasure(), sod.WeightedFmeasure()
    stretched, foreground = prepare_data(saliency, mask)  # once, where each metric's `step` would do so
    for metric in (f, mae, s, e, w_f):
        metric.step(stretched, foreground, normalize=False)
    curves, enhanced = f.get_results(), e.get_results()["em"]
    values = {
        "mae": mae.get_results()["mae"],
        "s": s.get_results()["sm"],
        "w_f": w_f.get_results()["wfm"],
        "adp_f": curves["f"]["adaptive"],
        "adp_e": enhanced["adp"],
        "f_curve": curves["f"]["dynamic"],
        "e_curve": enhanced["curve"],
        "precision": curves["precision"]["dynamic"],
        "recall": curves["recall"]["dynamic"],
    }
    return Scores(**{name: np.asarray(value, np.float64)[None] for name, value in values.items()})


def join(parts: Sequence[Scores]) -> Scores:
    """The scores of several sets of images, one after the other; at least one part."""
    return Scores(
        **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Scores)}
    )


def bootstrap_deltas(baseline: Scores, other: Scores, resamples: int = 5000, seed: int = 0) -> dict[str, Delta]:
    """How `other` differs from `baseline` on the same images, metric by metric.

    The interval is the paired percentile bootstrap over images (Efron and Tibshirani, 1993, ch. 13): both models are
    scored on the same resampled images, so what is common to both, a hard image, cancels. Max F and max E are taken
    anew from each resample's mean curves.

    Returns:
        By the keys of `LABELS`: other - baseline, with the 2.5 % and 97.5 % quantiles; equal for equal arguments.

    Raises:
        ValueError: the two were not scored on the same number of images, or on none.
    """
    images = len(baseline)
    if len(other) != images or not images:
        raise ValueError(f"a paired comparison needs the same images: {images} against {len(other)}")
    means = {
        **{name: getattr(other, name) - getattr(baseline, name) for name in ("mae", "s", "w_f", "adp_f", "adp_e")},
        "mean_f": (other.f_curve - baseline.f_curve).mean(axis=1),
        "mean_e": (other.e_curve - baseline.e_curve).mean(axis=1),
    }
    differences = np.stack(list(means.values()), axis=1)  # (N, 7)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in LABELS}
    random = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        count = min(_CHUNK, resamples - start)
        choice = random.integers(images, size=(count, images))
        weights = np.stack([np.bincount(row, minlength=images) for row in choice]) / images  # (count, N)
        for name, column in zip(means, (weights @ differences).T, strict=True):
            drawn[name].append(column)
        drawn["max_f"].append((weights @ other.f_curve).max(axis=1) - (weights @ baseline.f_curve).max(axis=1))
        drawn["max_e"].append((weights @ other.e_curve).max(axis=1) - (weights @ baseline.e_curve).max(axis=1))

    before, after = baseline.summary(), other.summary()
    deltas = {}
    for name in LABELS:
        low, high = np.quantile(np.concatenate(drawn[name]), [0.025, 0.975])
        deltas[name] = Delta(after[name] - before[name], float(low), float(high))
    return deltas


@contextlib.contextmanager
def parallel_map(workers: int | None = None) -> Iterator[Callable[..., Iterator[Any]]]:
    """A `map` over processes to score in: weighted F alone takes 10 ms for 400x300 pixels.

    What it is given must be picklable. An interrupt, or an error in one call, ends all of them quietly.

    Args:
        workers: one per usable core by default; 1: in this process, without the seconds that starting others takes.

    Raises:
        UserError: a process was killed from outside.
    """
    if workers == 1:
        yield map
        return
    # Not forked: onnxruntime's and CUDA's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers or usable_cores(), mp_context=context, initializer=_start_worker)
    try:
        yield pool.map
    except BrokenProcessPool:
        raise UserError("a scoring process was killed, most likely for memory; free some, or use --workers 1") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def usable_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker() -> None:
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends us
    cv2.setNumThreads(1)
