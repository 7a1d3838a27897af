"""Images per second through the GPU pipeline, from where a data set keeps them to maps in host memory."""

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from calib_data import Sample
from runtime.device_session import DeviceSession
from runtime.pipeline import pictures
from runtime.timeline import Timeline
from sodeploy import terminal
from sodeploy.errors import UserError

_ROUNDS = 3


class Throughput(NamedTuple):
    """Of one model.

    Attributes:
        images_per_s: the median of several rounds.
        memory_mib: the most device memory that the pipeline took beyond what was in use before.
    """

    images_per_s: float
    memory_mib: float


def throughput(
    models: Sequence[tuple[str, DeviceSession]],
    images: Sequence[Sample],
    batch: int,
    timeline: Timeline | None = None,
) -> list[Throughput]:
    """Send all images through each of the networks, in turn, so that what drifts drifts for all.

    Args:
        models: what errors and the timeline call each, and its session.
        batch: images to one run of a network.
        timeline: where to note what happens when, in a round of its own that does not count.

    Raises:
        UserError: an image cannot be read, or a network or the device fails at it.
    """
    seconds: list[list[float]] = [[] for _ in models]
    used = [0.0] * len(models)
    turns = [(turn, model) for turn in range(_ROUNDS + 1) for model in range(len(models))]
    for turn, model in terminal.progress(turns, "images per second"):
        name, session = models[model]
        if turn == 0:  # warms up
            used[model] = _most_memory(name, session, images, batch)
            continue
        begin = time.perf_counter()
        _run(name, session, images, batch)
        seconds[model].append(time.perf_counter() - begin)
    if timeline is not None:
        for name, session in models:
            with timeline.span(name):
                _run(name, session, images, batch, timeline=timeline)
    return [Throughput(len(images) / statistics.median(s), m) for s, m in zip(seconds, used, strict=True)]


def _most_memory(name: str, session: DeviceSession, images: Sequence[Sample], batch: int) -> float:
    """MiB of device memory that the pipeline takes at most; what other processes do shows in it too."""
    device = session.device
    with device.current():
        free = [device.memory()[0]]
        _run(name, session, images, batch, lambda: free.append(device.memory()[0]))
    return (free[0] - min(free)) / 2**20


def _run(
    name: str,
    session: DeviceSession,
    images: Sequence[Sample],
    batch: int,
    after_each: Callable[[], None] = lambda: None,
    timeline: Timeline | None = None,
) -> None:
    with contextlib.closing(pictures(session, images, _read, batch=batch, timeline=timeline)) as made:
        for sample, picture in made:
            if isinstance(picture, UserError):
                raise UserError(f"{name} on {sample.name}: {picture}")
            after_each()


def _read(sample: Sample) -> np.ndarray:
    return sample.image()
