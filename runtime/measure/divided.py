"""Maps of many images and what is found in them, by Ray's workers, each with models of its own."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sodeploy import terminal
from sodeploy.calib_data import Sample
from sodeploy.errors import UserError
from sodeploy.runtime.fleet import Fleet, answers
from sodeploy.runtime.measure.under_test import ModelUnderTest

_IMAGES_IN_A_PART = 32  # a worker that dies loses a part
Judge = Callable[[Sample, list[np.ndarray]], Any]
Open = Callable[[contextlib.ExitStack], list[ModelUnderTest]]


class Judging:
    """A worker: it opens the models once, and judges the images of one part after another."""

    def __init__(self, models: Open, judge: Judge) -> None:
        self._judge = judge
        with contextlib.ExitStack() as resources:
            self._models = models(resources)
            self._resources = resources.pop_all()

    def __call__(self, part: Sequence[Sample]) -> list[Any]:
        return [self._judged(sample) for sample in part]

    def _judged(self, sample: Sample) -> Any:
        image = sample.image()
        return self._judge(sample, [model.again(image, sample.name) for model in self._models])


def judge_divided(
    models: Open, samples: Sequence[Sample], judge: Judge, fleet: Fleet, on_gpu: bool = False
) -> list[Any]:
    """The judgements on all images, in their order.

    Args:
        models: opens them in a worker.
        judge: takes an image and the map of each model; picklable.

    Raises:
        UserError: a model or an image is unfit, or there is no such cluster.
    """
    parts = [samples[at : at + _IMAGES_IN_A_PART] for at in range(0, len(samples), _IMAGES_IN_A_PART)]
    judged: dict[int, list[Any]] = {}
    with contextlib.closing(answers(Judging, parts, fleet, on_gpu, models=models, judge=judge)) as found:
        for index, answer in terminal.progress(found, "scoring, parts", total=len(parts)):
            if isinstance(answer, UserError):
                raise answer
            judged[index] = answer
    return [one for index in sorted(judged) for one in judged[index]]
