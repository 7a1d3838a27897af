"""Batches of augmented, normalized samples, the same whatever the number of processes, workers and interruptions.

The samples of a run form one endless sequence, epoch after epoch in an order drawn from the seed; step s takes the
samples `s * batch` to `(s + 1) * batch - 1`, so a batch may span two epochs and none is ever smaller. Which chances an
augmentation takes follows from the seed, the epoch and the sample. To resume, one begins at another step.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from types import TracebackType

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from sodeploy.calib_data import Dataset
from sodeploy.calib_data.masks import dilate, erode
from sodeploy.errors import UserError
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.processing import preprocess
from sodeploy.training.augment import Augmentation
from sodeploy.workers import ForkedContext, interrupts_held_back, start_worker

Place = tuple[int, int]  # epoch, index
Item = tuple[torch.Tensor, torch.Tensor]


class AugmentedSamples(torch.utils.data.Dataset[Item | UserError]):
    """Samples by (epoch, index) as `(3, h, w) float32` image and `(1, h, w) float32` mask in [0, 1].

    With `margins` the mask is `(3, h, w)`: itself, dilated and eroded; that is done at its own size, before all else.
    """

    def __init__(
        self,
        dataset: Dataset,
        augment: Sequence[Augmentation],
        contract: Contract,
        seed: int,
        margins: bool = False,
    ) -> None:
        self.dataset = dataset
        self.augment = augment
        self.contract = contract
        self.seed = seed
        self.margins = margins

    def __getitem__(self, place: Place) -> Item | UserError:
        epoch, index = place
        try:
            sample = self.dataset[index]
            image, mask = sample.image(), sample.mask()
            if self.margins:
                mask = np.dstack([mask, dilate(mask), erode(mask)])
            random = np.random.default_rng([self.seed, epoch, index])
            for step in self.augment:
                image, mask = step(image, mask, random)
        except UserError as error:  # returned: raised in a worker it would reach the terminal with a traceback
            return error
        size = (image.shape[0], image.shape[1])
        tensor = torch.from_numpy(preprocess(np.ascontiguousarray(image), self.contract, size))
        planes = np.atleast_3d(mask).transpose(2, 0, 1)
        return tensor, torch.from_numpy(planes.astype(np.float32, order="C") / 255)


def places(
    indices: Sequence[int], batch: int, seed: int, steps: range, share: tuple[int, int] = (0, 1), passes: int = 1
) -> Iterator[list[Place]]:
    """Yield the places of each forward pass of one process.

    Args:
        indices: the samples of the data set that train.
        batch: samples per step, of all processes together.
        share: (rank of the process, number of processes).
        passes: forward passes of a step.
    """
    epoch, order = -1, np.empty(0, np.int64)
    rank, processes = share
    size = batch // processes // passes
    for step in steps:
        for part in range(passes):
            start = step * batch + (rank * passes + part) * size
            taken = []
            for position in range(start, start + size):
                if position // len(indices) != epoch:
                    epoch = position // len(indices)
                    order = np.random.default_rng([seed, epoch]).permutation(len(indices))
                taken.append((epoch, int(indices[order[position % len(indices)]])))
            yield taken


def batches(
    samples: AugmentedSamples, sampler: Iterator[list[Place]], workers: int, pin_memory: bool
) -> Iterator[Item]:
    """`(N, 3, h, w)` images and `(N, 1, h, w)` masks, loaded ahead by `workers` processes.

    Raises:
        UserError: a sample cannot be read, or those of a batch differ in size.
    """
    loader = DataLoader(
        samples,
        batch_sampler=_Once(sampler),
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        worker_init_fn=partial(_start_worker, os.getpid()),
        prefetch_factor=4 if workers else None,
        multiprocessing_context=ForkedContext() if workers and multiprocessing.get_start_method() == "fork" else None,
    )
    with interrupts_held_back(), _without_opencv_threads():
        loaded = iter(loader)
    while True:
        try:
            batch = next(loaded, None)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                "a process that loads data was killed, most likely for memory; free some, or load in this process: "
                "--set workers=0"
            ) from None
        if batch is None:
            return
        if isinstance(batch, UserError):
            raise batch
        yield batch


@contextlib.contextmanager
def _without_opencv_threads() -> Iterator[None]:
    """End OpenCV's threads for as long as processes are forked.

    A forked process gets the pool without its threads, and waits for them forever when it changes their number.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


class _Once:
    """An iterator under the one method that DataLoader calls."""

    def __init__(self, iterator: Iterator[list[Place]]) -> None:
        self.iterator = iterator

    def __iter__(self) -> Iterator[list[Place]]:
        return self.iterator


def _collate(items: list[Item | UserError]) -> Item | UserError:
    pairs: list[Item] = []
    for item in items:
        if isinstance(item, UserError):
            return item
        pairs.append(item)
    sizes = {tuple(image.shape[1:]) for image, _ in pairs}
    if len(sizes) > 1:
        (h, w), (other_h, other_w) = sorted(sizes)[:2]
        return UserError(f"a batch has images of {h}x{w} and {other_h}x{other_w}; add a resize to the recipe's augment")
    return torch.stack([image for image, _ in pairs]), torch.stack([mask for _, mask in pairs])


def _start_worker(parent: int, _: int) -> None:
    start_worker(parent)
    if multiprocessing.get_start_method() == "fork":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # see ForkedContext
    cv2.setNumThreads(0)  # the workers are the parallelism
    sys.excepthook = _report_unless_the_parent_is_gone


def _report_unless_the_parent_is_gone(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Silence a thread of multiprocessing whose parent is interrupted while the thread hands a tensor over."""
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)
