"""Dynamic batching: pictures of different requests go through a network together.

One thread owns one model. It opens it, runs it and closes it, because a GPU's context belongs to a thread.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import numpy as np

from sodeploy.errors import UserError
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.errors import DeviceLost
from sodeploy.runtime.session import Session


@dataclass
class _Job:
    """One picture on its way through the network."""

    tensor: np.ndarray
    done: "Future[np.ndarray]" = field(default_factory=Future)


@dataclass(frozen=True)
class Opened:
    """The facts of a model that has been opened."""

    contract: Contract
    precision: str


class Batcher:
    """A model behind a queue.

    A run starts as soon as the batch is full, as no further picture is on the way, or as the window is over.
    """

    def __init__(
        self,
        open_model: Callable[[], Session],
        most: int,
        window_s: float,
        measured: Callable[[int, float], None] = lambda pictures, seconds: None,
    ) -> None:
        """
        Args:
            open_model: called once, in the thread of the model.
            most: pictures in one run, at most; a model of fixed batch never gets more than that.
            window_s: seconds that the first picture of a run waits for others.
            measured: called after every run with its pictures and its seconds.
        """
        self._open, self._most, self._window_s, self._measured = open_model, most, window_s, measured
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock, self._coming = threading.Lock(), 0
        self._closing = False
        self.opened: Future[Opened] = Future()
        self.lost: Future[DeviceLost] = Future()  # has a result once nothing can run in this process any more
        self._thread = threading.Thread(target=self._serve, name="network", daemon=True)

    def start(self) -> None:
        """Start to open the model; `opened` has the result."""
        self._thread.start()

    def close(self) -> None:
        """Run what is queued, then free the model."""
        self._jobs.put(None)
        self._thread.join()

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """A picture is on the way: a run that has room waits for it, within its window."""
        with self._lock:
            self._coming += 1
        try:
            yield
        finally:
            with self._lock:
                self._coming -= 1

    def submit(self, tensor: np.ndarray) -> "Future[np.ndarray]":
        """Queue one pre-processed picture (3, h, w) float32; the result is the network's output (h, w).

        A future that is cancelled before its run takes no part in it. It fails with UserError where the network does.
        """
        job = _Job(tensor)
        self._jobs.put(job)
        return job.done

    def _serve(self) -> None:
        try:
            session = self._open()
            contract = session.contract
            self._most = min(self._most, contract.batch) if contract.batch else self._most
            blank = np.zeros((3, contract.height, contract.width), np.float32)
            for count in sorted({1, self._most}):  # kernels are chosen and memory is taken at the first run
                session.infer(np.stack([blank] * count))
        except BaseException as error:  # whatever it is, the service must hear of it
            self.opened.set_exception(error)
            return
        with session:
            self.opened.set_result(Opened(contract, session.precision))
            while jobs := self._next_batch():
                live = [job for job in jobs if job.done.set_running_or_notify_cancel()]
                if live:
                    self._run(session, live)

    def _next_batch(self) -> list[_Job]:
        """The jobs of the next run; [] when the model is to be closed."""
        jobs: list[_Job] = []
        end = 0.0
        while len(jobs) < self._most and not self._closing:
            nobody_comes = bool(jobs) and self._coming == 0
            wait = None if not jobs else 0.0 if nobody_comes else max(0.0, end - time.monotonic())
            try:
                job = self._jobs.get(timeout=wait)
            except Empty:
                break
            if job is None:
                self._closing = True
            elif not job.done.cancelled():
                end = end or time.monotonic() + self._window_s
                jobs.append(job)
        return jobs

    def _run(self, session: Session, jobs: list[_Job]) -> None:
        began = time.monotonic()
        try:
            outputs = session.infer(np.stack([job.tensor for job in jobs]))
        except Exception as error:
            if isinstance(error, DeviceLost) and not self.lost.done():
                self.lost.set_result(error)
            if len(jobs) > 1 and isinstance(error, (UserError, MemoryError)) and not isinstance(error, DeviceLost):
                for job in jobs:  # one picture must not fail the others
                    self._run(session, [job])
                return
            for job in jobs:
                job.done.set_exception(error)
            return
        self._measured(len(jobs), time.monotonic() - began)
        for job, output in zip(jobs, outputs, strict=True):
            job.done.set_result(output[0])
