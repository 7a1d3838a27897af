"""The figures of a report, as SVG that takes its text colour from the page, and images as data URIs."""

import base64
import io
import re
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from sodeploy.runtime.measure.metrics import F_CURVE, METRICS, PRECISION, RECALL
from sodeploy.runtime.measure.report import decimal
from sodeploy.runtime.review.evidence import Evidence, Example
from sodeploy.runtime.review.regions import REGIONS

_INK = "#010203"  # stands for the page's text colour while matplotlib draws
_COLORS = ("#3b82c4", "#d9822b", "#2f9e62", "#b05cc6", "#c23b3b", "#8a8a2a")  # legible on white and on black
_ZOOM, _SIDE = 96, 256  # pixels: of the part of an image that is enlarged, and of every picture's longer side


def forest(evidence: Evidence) -> str:
    """The differences of every model to the first, with their intervals: a panel for each metric."""
    rows = evidence.record.rows[1:]
    keys = [key for key in evidence.record.rows[0].metrics if METRICS[key].is_headline] or list(rows[0].metrics)[:3]
    figure, panels = _figure(9.6, 1.0 + 0.45 * len(rows), 1, len(keys), sharey=True)
    for axes, key in zip(panels.flat, keys, strict=True):
        for place, row in enumerate(rows):
            delta = row.delta[key]
            color = _COLORS[(place + 1) % len(_COLORS)]
            if delta.ci95:
                axes.plot(delta.ci95, [place, place], color=color, linewidth=2.5, solid_capstyle="butt")
            axes.plot([delta.value], [place], "o", color=color)
        axes.axvline(0, color=_INK, linewidth=0.8)
        better = "left" if METRICS[key].lower_is_better else "right"
        axes.set(title=f"{METRICS[key].label} (better: {better})", ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.tick_params(axis="x", labelrotation=30)
        axes.margins(x=0.15)
    return _svg(figure)


def curves(evidence: Evidence) -> str:
    """Precision over recall, and F over the threshold, means over the images."""
    figure, panels = _figure(9.6, 3.6, 1, 2)
    for place, (row, scores) in enumerate(zip(evidence.record.rows, evidence.scores, strict=True)):
        precision, recall, f = (scores[value].mean(axis=0) for value in (PRECISION, RECALL, F_CURVE))
        style = {"color": _COLORS[place % len(_COLORS)], "linewidth": 1.6, "linestyle": "-" if place == 0 else "--"}
        panels[0, 0].plot(recall, precision, label=row.name, **style)
        panels[0, 1].plot(np.arange(255, -1, -1), f, label=f"{row.name} (max {decimal(f.max())})", **style)
    panels[0, 0].set(title="Precision and recall", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.01))
    panels[0, 1].set(title="F, β² = 0.3", xlabel="threshold", ylabel="F", xlim=(0, 255), ylim=(0, 1.01))
    for axes in panels.flat:
        axes.legend(loc="lower center", fontsize="small", frameon=False, labelcolor=_INK)
    return _svg(figure)


def latency(evidence: Evidence) -> str:
    """The median time of each stage, model by model."""
    rows = evidence.record.rows
    stages = [stage for stage in rows[0].latency_ms if stage != "total"]
    figure, panels = _figure(9.6, 1.2 + 0.45 * len(rows), 1, 1)
    axes = panels[0, 0]
    for place, row in enumerate(rows):
        left = 0.0
        for stage, color in zip(stages, _COLORS, strict=False):
            time = row.latency_ms[stage].p50 if stage in row.latency_ms else 0.0
            axes.barh([place], [time], left=left, color=color, height=0.6, label=stage if place == 0 else None)
            left += time
    axes.set_yticks(range(len(rows)), [f"{row.name}, {row.engine}" for row in rows])
    axes.set(xlabel="ms per image, p50 of each stage", ylim=(len(rows) - 0.5, -0.5))
    axes.legend(  # above the bars, which may fill the axes
        ncols=len(stages),
        fontsize="small",
        frameon=False,
        labelcolor=_INK,
        loc="lower right",
        bbox_to_anchor=(1, 1),
    )
    return _svg(figure)


def regions(evidence: Evidence) -> str:
    """The parts of each model's change in MAE that lie in each kind of pixels."""
    rows = evidence.record.rows[1:]
    figure, panels = _figure(9.6, 1.2 + 0.4 * len(REGIONS), 1, 1)
    axes, height = panels[0, 0], 0.8 / len(rows)
    for place, row in enumerate(rows):
        at = np.arange(len(REGIONS)) + (place - (len(rows) - 1) / 2) * height
        color = _COLORS[(place + 1) % len(_COLORS)]
        axes.barh(at, evidence.losses[place + 1], height=height, color=color, label=row.name)
    names = [f"{name} ({100 * share:.1f} %)" for name, share in zip(REGIONS, evidence.shares, strict=True)]
    axes.set_yticks(range(len(REGIONS)), names)
    axes.axvline(0, color=_INK, linewidth=0.8)
    axes.set(xlabel="part of the change in MAE; right: worse", ylim=(len(REGIONS) - 0.5, -0.5))
    axes.legend(fontsize="small", frameon=False, labelcolor=_INK)
    return _svg(figure)


def sensitivity(layers: Sequence[tuple[str, float]]) -> str:
    """The error of the map with one layer alone in int8, along the network."""
    figure, panels = _figure(9.6, 2.6, 1, 1)
    axes = panels[0, 0]
    errors = [error for _, error in layers]
    axes.bar(range(len(layers)), errors, color=_COLORS[1], width=0.9)
    for place in sorted(range(len(layers)), key=lambda index: -errors[index])[:3]:
        axes.annotate(layers[place][0], (place, errors[place]), fontsize="small", ha="center", va="bottom", color=_INK)
    axes.set(xlabel="int8 layers in the order of the network", ylabel="RMS error of the map")
    axes.margins(y=0.2)
    return _svg(figure)


def pictures(example: Example) -> list[list[tuple[str, str]]]:
    """Two lines of (caption, data URI) of an example: whole images, and the part that changed most, enlarged."""
    difference = _signed(example.other.astype(np.int16) - example.baseline)
    whole = [
        ("image", example.image),
        ("truth", example.mask),
        ("baseline", example.baseline),
        ("model", example.other),
        ("difference", difference),
    ]
    top, left, side = _most_changed(example)
    part = (slice(top, top + side), slice(left, left + side))
    zoomed = [(f"{name}, enlarged", picture[part]) for name, picture in whole]
    return [
        [(name, _uri(_sized(picture, how), name.startswith("image"))) for name, picture in line]
        for line, how in ((whole, cv2.INTER_AREA), (zoomed, cv2.INTER_NEAREST))
    ]


def _figure(width: float, height: float, rows: int, columns: int, **shared: Any) -> tuple[Any, Any]:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.hashsalt": "sodeploy", "svg.fonttype": "none"})
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    panels = figure.subplots(rows, columns, squeeze=False, **shared)
    for axes in panels.flat:
        axes.patch.set_alpha(0)
        axes.tick_params(colors=_INK)
        axes.grid(alpha=0.2)
        axes.title.set_fontsize("medium")
        for part in axes.spines.values():
            part.set_color(_INK)
            part.set_alpha(0.4)
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            text.set_color(_INK)
    return figure, panels


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    drawing = text.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace(_INK, "currentColor")
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', drawing, count=1)


def _signed(difference: np.ndarray) -> np.ndarray:
    """(H, W) int16 -> (H, W, 3) uint8 RGB: white where equal, red where the model is brighter, blue where darker."""
    strength = np.clip(np.abs(difference) * 2, 0, 255).astype(np.uint8)
    picture = np.full((*difference.shape, 3), 255, np.uint8)
    brighter = difference > 0
    for channel, fades in ((0, ~brighter), (1, np.ones_like(brighter)), (2, brighter)):
        picture[..., channel] = np.where(fades, 255 - strength, 255)
    return picture


def _most_changed(example: Example) -> tuple[int, int, int]:
    """Top, left and side of the square in which the maps differ most."""
    changed = np.abs(example.other.astype(np.int16) - example.baseline).astype(np.float32)
    side = min(_ZOOM, *changed.shape)
    sums = cv2.boxFilter(changed, -1, (side, side), normalize=True, anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    valid = sums[: changed.shape[0] - side + 1, : changed.shape[1] - side + 1]
    top, left = np.unravel_index(int(valid.argmax()), valid.shape)
    return int(top), int(left), side


def _sized(picture: np.ndarray, interpolation: int) -> np.ndarray:
    scale = _SIDE / max(picture.shape[:2])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    sized: np.ndarray = cv2.resize(picture, size, interpolation=interpolation)
    return sized


def _uri(picture: np.ndarray, photograph: bool) -> str:
    colors = picture[..., ::-1] if picture.ndim == 3 else picture
    suffix, kind = (".jpg", "jpeg") if photograph else (".png", "png")
    _, data = cv2.imencode(suffix, colors)
    return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"
