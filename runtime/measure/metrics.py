"""The table of metrics, and the scores of images in all of them.

The scores of salient-object detection come from PySODMetrics, so they equal the scores that papers report; the scores
of fixation prediction (KLD, CC, SIM, AUC, EMD, NSS) come from saliency.py, and the errors of mattes (SAD, MSE, Grad,
Conn) from matting.py. We keep PySODMetrics' conventions: the saliency map is 8-bit and as large as the mask; before a
metric is computed, the map is stretched to [0, 1] over its own minimum and maximum; a mask pixel is foreground where it
is > 128; F uses beta² = 0.3, weighted F beta² = 1; curves have 256 thresholds; a score over a set is the mean over its
images; max F and max E are the maxima of the mean curves. Mattes are compared as they are.

A new metric is one entry in `METRICS`; nothing else lists metrics, their labels or their directions. Nine of them are
computed by default, the others where a command is asked for them.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from sodeploy.errors import UserError
from sodeploy.runtime.measure import matting
from sodeploy.runtime.measure import saliency as fixation
from sodeploy.workers import parallel_map as parallel_map
from sodeploy.workers import usable_cores as usable_cores


class Pair:
    """One saliency map and its mask, as every metric gets them. Values that several metrics share are computed once.

    Attributes:
        saliency: (H, W) uint8.
        mask: (H, W) uint8, foreground where > 128.
    """

    def __init__(self, saliency: np.ndarray, mask: np.ndarray) -> None:
        """
        Raises:
            ValueError: the two are not uint8 maps of one size.
        """
        if saliency.dtype != np.uint8 or mask.dtype != np.uint8 or saliency.ndim != 2 or saliency.shape != mask.shape:
            raise ValueError(
                "expected two uint8 maps (H, W) of one size, "
                f"got {saliency.shape} {saliency.dtype} and {mask.shape} {mask.dtype}"
            )
        self.saliency, self.mask = saliency, mask

    @cached_property
    def stretched(self) -> tuple[np.ndarray, np.ndarray]:
        """(H, W) float64 map in [0, 1], stretched over its minimum and maximum, and (H, W) bool foreground."""
        from py_sod_metrics.utils import prepare_data

        saliency, foreground = prepare_data(self.saliency, self.mask)
        return saliency, foreground

    @property
    def foreground(self) -> np.ndarray:
        """(H, W) bool, where the mask is > 128: also the fixations."""
        return self.stretched[1]

    @cached_property
    def density(self) -> np.ndarray:
        """(H, W) float64, the mask's density; NaN where it has no foreground."""
        return fixation.density_of_mask(self.foreground)

    @cached_property
    def predicted_density(self) -> np.ndarray:
        """(H, W) float64, the map's density."""
        return fixation.density_of(self.stretched[0])

    def results(self, evaluator: Any) -> dict[str, Any]:
        """The results of one of PySODMetrics' evaluators on this pair alone."""
        with warnings.catch_warnings():
            # S of a mask whose centroid lies on the last row or column is NaN; `without_undefined` names the mask
            warnings.simplefilter("ignore", RuntimeWarning)
            evaluator.step(*self.stretched, normalize=False)
        results: dict[str, Any] = evaluator.get_results()
        return results

    @cached_property
    def f(self) -> dict[str, Any]:
        """F, precision and recall at 256 thresholds (`dynamic`), from 255 down to 0, and adaptive F (`adaptive`)."""
        sod = _pysodmetrics()
        handlers = {
            "f": sod.FmeasureHandler(with_dynamic=True, with_adaptive=True, beta=0.3),
            "precision": sod.PrecisionHandler(with_dynamic=True, with_adaptive=False),
            "recall": sod.RecallHandler(with_dynamic=True, with_adaptive=False),
        }
        return self.results(sod.FmeasureV2(handlers))

    @cached_property
    def e(self) -> dict[str, Any]:
        """E at 256 thresholds (`curve`), from 255 down to 0, and adaptive E (`adp`)."""
        results: dict[str, Any] = self.results(_pysodmetrics().Emeasure())["em"]
        return results


class PerImage(NamedTuple):
    """A value of each image: a number, or a curve over 256 thresholds.

    Attributes:
        name: key of the values in `Scores`.
        compute: the value of one pair; NaN where the metric is undefined.
    """

    name: str
    compute: Callable[[Pair], Any]


@dataclass(frozen=True)
class Metric:
    """A metric over a set of images.

    Attributes:
        key: name in options, records and recipes.
        label: name in tables.
        per_image: the value of each image. Two metrics may share one, as mean F and max F share the F curve.
        aliases: other names in options, such as those in InSPyReNet's configuration. Only their letters and digits
            count, in any case.
        by_default: computed where nothing else is asked for.
        summary: how the mean over all images becomes a number: "mean" takes the mean of a mean curve, and a number as
            it is; "max" takes the maximum of a mean curve.
        lower_is_better: the direction.
        is_headline: stands in the opening table of a bench.
    """

    key: str
    label: str
    per_image: PerImage
    summary: Literal["mean", "max"] = "mean"
    lower_is_better: bool = False
    is_headline: bool = False
    by_default: bool = True
    aliases: tuple[str, ...] = ()

    def worse_by(self, difference: float) -> float:
        """How much worse the metric is after it changed by `difference`; negative: better."""
        return difference if self.lower_is_better else -difference

    def is_better(self, value: float, other: float) -> bool:
        """Whether `value` is better than `other`."""
        return self.worse_by(value - other) < 0

    def over(self, means: np.ndarray) -> np.ndarray:
        """The metric from means over images, (..., 1) or (..., 256) -> (...)."""
        return means.mean(axis=-1) if self.summary == "mean" else means.max(axis=-1)


MAE = PerImage("mae", lambda pair: pair.results(_pysodmetrics().MAE())["mae"])
STRUCTURE = PerImage("s", lambda pair: pair.results(_pysodmetrics().Smeasure())["sm"])
WEIGHTED_F = PerImage("w_f", lambda pair: pair.results(_pysodmetrics().WeightedFmeasure())["wfm"])
F_CURVE = PerImage("f_curve", lambda pair: pair.f["f"]["dynamic"])
E_CURVE = PerImage("e_curve", lambda pair: pair.e["curve"])
PRECISION = PerImage("precision", lambda pair: pair.f["precision"]["dynamic"])
RECALL = PerImage("recall", lambda pair: pair.f["recall"]["dynamic"])
KLD = PerImage("kld", lambda pair: fixation.kld(pair.predicted_density, pair.density))
CC = PerImage("cc", lambda pair: fixation.cc(pair.stretched[0], pair.density))
SIM = PerImage("sim", lambda pair: fixation.sim(pair.predicted_density, pair.density))
AUC_JUDD = PerImage("auc_judd", lambda pair: fixation.auc_judd(pair.saliency, pair.foreground))
AUC_BORJI = PerImage("auc_borji", lambda pair: fixation.auc_borji(pair.saliency, pair.foreground))
EMD = PerImage("emd", lambda pair: fixation.emd(pair.predicted_density, pair.density))
NSS = PerImage("nss", lambda pair: fixation.nss(pair.stretched[0], pair.foreground))
SAD = PerImage("sad", lambda pair: matting.sad(pair.saliency, pair.mask))
MSE = PerImage("mse", lambda pair: matting.mse(pair.saliency, pair.mask))
GRADIENT = PerImage("grad", lambda pair: matting.gradient_error(pair.saliency, pair.mask))
CONNECTIVITY = PerImage("conn", lambda pair: matting.connectivity_error(pair.saliency, pair.mask))


def _hce(pair: Pair) -> float:
    evaluator = _pysodmetrics().HumanCorrectionEffortMeasure()
    return float(pair.results(evaluator)["hce"])


def _binary_iou(pair: Pair) -> float:
    sod = _pysodmetrics()
    handler = sod.IOUHandler(with_dynamic=False, with_adaptive=False, with_binary=True)
    return float(pair.results(sod.FmeasureV2({"iou": handler}))["iou"]["binary"])


def _multi_scale_iou(pair: Pair) -> float:
    evaluator = _pysodmetrics().MSIoU(with_dynamic=False, with_adaptive=False, with_binary=True)
    return float(pair.results(evaluator)["binary"])


# In the order of all tables. Sources: F, Achanta et al., CVPR 2009 (adaptive: at twice the mean of the map); weighted
# F, Margolin et al., CVPR 2014; S, structure measure, Fan et al., ICCV 2017; E, enhanced alignment, Fan et al., IJCAI
# 2018 (adaptive: at the same threshold as F); HCE, human correction effort, Qin et al., ECCV 2022; MSIoU, multi-scale
# IoU, Ahmadzadeh et al., ICIP 2021; both IoU with the map binarized at half; the others: saliency.py and matting.py.
METRICS = {
    metric.key: metric
    for metric in (
        Metric("mae", "MAE", MAE, lower_is_better=True, is_headline=True),
        Metric("mean_f", "mean F", F_CURVE, is_headline=True, aliases=("avgFm", "meanFm")),
        Metric("max_f", "max F", F_CURVE, "max", aliases=("maxFm",)),
        Metric("adp_f", "adaptive F", PerImage("adp_f", lambda pair: pair.f["f"]["adaptive"]), aliases=("adpFm",)),
        Metric("w_f", "weighted F", WEIGHTED_F, aliases=("wFm", "wfmeasure")),
        Metric("s", "S", STRUCTURE, is_headline=True, aliases=("Sm", "Smeasure")),
        Metric("mean_e", "mean E", E_CURVE, aliases=("avgEm", "meanEm")),
        Metric("max_e", "max E", E_CURVE, "max", aliases=("maxEm",)),
        Metric("adp_e", "adaptive E", PerImage("adp_e", lambda pair: pair.e["adp"]), aliases=("adpEm",)),
        Metric("biou", "binary IoU", PerImage("biou", _binary_iou), by_default=False),
        Metric("msiou", "MSIoU", PerImage("msiou", _multi_scale_iou), by_default=False),
        Metric("hce", "HCE", PerImage("hce", _hce), lower_is_better=True, by_default=False),
        Metric("kld", "KLD", KLD, lower_is_better=True, by_default=False, aliases=("KL",)),
        Metric("cc", "CC", CC, by_default=False),
        Metric("sim", "SIM", SIM, by_default=False),
        Metric("auc_judd", "AUC-Judd", AUC_JUDD, by_default=False, aliases=("AUC",)),
        Metric("auc_borji", "AUC-Borji", AUC_BORJI, by_default=False),
        Metric("emd", "EMD", EMD, lower_is_better=True, by_default=False),
        Metric("nss", "NSS", NSS, by_default=False),
        Metric("sad", "SAD", SAD, lower_is_better=True, by_default=False),
        Metric("mse", "MSE", MSE, lower_is_better=True, by_default=False),
        Metric("grad", "Grad", GRADIENT, lower_is_better=True, by_default=False, aliases=("gradient",)),
        Metric("conn", "Conn", CONNECTIVITY, lower_is_better=True, by_default=False, aliases=("connectivity",)),
    )
}


def default_metrics() -> tuple[str, ...]:
    """The keys of the metrics that are computed where nothing else is asked for."""
    return tuple(key for key, metric in METRICS.items() if metric.by_default)


def parse_metrics(text: str) -> tuple[str, ...]:
    """The keys of the metrics in `S,MAE,max F`, in that order; `all` for all of them.

    Raises:
        UserError: an unknown metric, none, or one that is given twice.
    """
    if _plain(text) == "all":
        return tuple(METRICS)
    by_name = {_plain(name): key for key, one in METRICS.items() for name in (key, one.label, *one.aliases)}
    keys = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        if _plain(name) not in by_name:
            raise UserError(f"--metrics {text}: {name} is no metric; write some of {', '.join(METRICS)}, or all")
        keys.append(by_name[_plain(name)])
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"--metrics {text}: {twice} is given twice; give each once")
    if not keys:
        raise UserError(f"--metrics {text!r} names no metric; write some of {', '.join(METRICS)}, or all")
    return tuple(keys)


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()


def per_image_values(keys: Sequence[str] | None = None, curves: bool = True) -> dict[str, PerImage]:
    """The results for each image, by name.

    Args:
        keys: of the metrics; the default ones by default.
        curves: with the curves that `curves.py` draws.
    """
    wanted = [METRICS[key].per_image for key in (default_metrics() if keys is None else keys)]
    return {value.name: value for value in (*wanted, *((F_CURVE, PRECISION, RECALL) if curves else ()))}


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of one model on N images, in the order of the images.

    Attributes:
        values: by the name of each `PerImage`, (N,) or (N, 256) float64.
        keys: the metrics, in the order of tables.
    """

    values: dict[str, np.ndarray]
    keys: tuple[str, ...] = field(default_factory=default_metrics)

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def __getitem__(self, value: PerImage) -> np.ndarray:
        """(N,) or (N, 256) float64."""
        return self.values[value.name]

    def take(self, chosen: np.ndarray) -> "Scores":
        """The scores of the chosen images; `chosen`: indices, or (N,) bool."""
        return Scores({name: array[chosen] for name, array in self.values.items()}, self.keys)

    def undefined(self) -> np.ndarray:
        """(N,) bool: images with a score that is NaN or infinite."""
        flat = [~np.isfinite(array).reshape(len(self), -1).all(axis=1) for array in self.values.values()]
        return np.asarray(np.any(flat, axis=0))

    def summary(self) -> dict[str, float]:
        """The metrics over all images, by their keys.

        Raises:
            ValueError: there are no images.
        """
        if not len(self):
            raise ValueError("no images were scored")
        means = {name: np.atleast_1d(array.mean(axis=0)) for name, array in self.values.items()}
        return {key: float(METRICS[key].over(means[METRICS[key].per_image.name])) for key in self.keys}


def score(saliency: np.ndarray, mask: np.ndarray, keys: Sequence[str] | None = None, curves: bool = True) -> Scores:
    """Score one saliency map against its mask.

    Args:
        saliency: (H, W) uint8.
        mask: (H, W) uint8, foreground where > 128.
        keys: the metrics; the default ones by default.
        curves: keep the curves that `curves.py` draws too.

    Raises:
        UserError: PySODMetrics is not installed.
        ValueError: the two are not uint8 maps of one size.
    """
    pair = Pair(saliency, mask)
    _pysodmetrics()
    wanted = per_image_values(keys, curves)
    return Scores(
        {name: np.asarray(value.compute(pair), np.float64)[None] for name, value in wanted.items()},
        default_metrics() if keys is None else tuple(keys),
    )


def _pysodmetrics() -> Any:
    try:
        import py_sod_metrics
    except ImportError:
        raise UserError("scoring needs PySODMetrics; install it: pip install 'sodeploy[bench]'") from None
    return py_sod_metrics


def join(parts: Sequence[Scores]) -> Scores:
    """The scores of several sets of images, one after the other; at least one part."""
    return Scores(
        {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values}, parts[0].keys
    )


def without_undefined(scores: Sequence[Scores], names: Sequence[str], source: str) -> tuple[list[Scores], list[str]]:
    """The scores of the images on which every score is defined.

    S is undefined (NaN) for a mask whose foreground has its centroid on the last row or column, as PySODMetrics
    computes it. One such mask would make the mean over the set NaN.

    Args:
        scores: of each model on the same images.
        names: of the images, in the same order.
        source: name of the data set, for the error.

    Returns:
        The scores of each model without those images, and the names of the images that were left out.

    Raises:
        UserError: no image is left.
    """
    undefined = np.any([each.undefined() for each in scores], axis=0)
    left_out = [name for name, out in zip(names, undefined, strict=True) if out]
    if len(left_out) == len(names):
        raise UserError(f"{source}: no mask has a defined score, the first is {names[0]}; check the masks")
    return [each.take(~undefined) for each in scores] if left_out else list(scores), left_out


def left_out_in_words(left_out: Sequence[str]) -> str:
    """A sentence for the user about images that `without_undefined` left out."""
    shown = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
    masks = "1 mask is" if len(left_out) == 1 else f"{len(left_out)} masks are"
    return f"{masks} left out of all scores, because a metric is undefined (NaN) there: {shown}"
