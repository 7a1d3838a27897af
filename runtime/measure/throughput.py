"""Images per second through the GPU pipeline, from where a data set keeps them to maps in host memory."""

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sodeploy import terminal
from sodeploy.calib_data import Sample
from sodeploy.errors import UserError
from sodeploy.runtime.gpu.pipeline import Pipeline
from sodeploy.runtime.gpu.session import DeviceSession
from sodeploy.runtime.gpu.timeline import Timeline

_ROUNDS = 3


class Throughput(NamedTuple):
    """The speed of one model, with the memory that it takes.

    Attributes:
        images_per_s: the median of several rounds.
        memory_mib: the most device memory that the pipeline took beyond what was in use before, by anyone.
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
    used: list[float] = []
    seconds: list[list[float]] = [[] for _ in models]
    with contextlib.ExitStack() as stack:
        pipelines = []
        for name, session in models:
            before = _free_memory(session)
            pipelines.append(stack.enter_context(Pipeline(session, batch=batch)))
            used.append((before - _least_free(name, pipelines[-1], session, images)) / 2**20)
        turns = [(turn, model) for turn in range(_ROUNDS) for model in range(len(models))]
        for _, model in terminal.progress(turns, "images per second"):
            begin = time.perf_counter()
            _run(models[model][0], pipelines[model], images)
            seconds[model].append(time.perf_counter() - begin)
    if timeline is not None:
        for name, session in models:
            with Pipeline(session, batch=batch, timeline=timeline) as pipeline, timeline.span(name):
                _run(name, pipeline, images)
    return [Throughput(len(images) / statistics.median(s), m) for s, m in zip(seconds, used, strict=True)]


def _least_free(name: str, pipeline: Pipeline, session: DeviceSession, images: Sequence[Sample]) -> int:
    """Bytes of device memory left at the worst of a round, which also warms up: engines record their graphs, and
    onnxruntime chooses its algorithms."""
    least = [_free_memory(session)]
    _run(name, pipeline, images, lambda: least.append(_free_memory(session)))
    return min(least)


def _free_memory(session: DeviceSession) -> int:
    with session.device.current():
        return session.device.memory()[0]


def _run(
    name: str, pipeline: Pipeline, images: Sequence[Sample], after_each: Callable[[], None] = lambda: None
) -> None:
    with contextlib.closing(pipeline.pictures(images, _read)) as made:
        for sample, picture in made:
            if isinstance(picture, UserError):
                raise UserError(f"{name} on {sample.name}: {picture}")
            after_each()


def _read(sample: Sample) -> np.ndarray:
    return sample.image()
