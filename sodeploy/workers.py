"""Processes that work for this one and end with it, however it ends."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import popen_fork, resource_tracker
from multiprocessing.context import ForkContext, ForkProcess, SpawnContext, SpawnProcess
from typing import Any

from sodeploy.errors import UserError

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


@contextlib.contextmanager
def parallel_map(workers: int | None = None) -> Iterator[Callable[..., Iterator[Any]]]:
    """Give a `map` over processes; its function and arguments must be picklable.

    An interrupt, an error in one call, or the end of this process ends all of them quietly.

    Args:
        workers: processes; one per usable core by default. 1 works in this process and starts no other.

    Raises:
        UserError: a process was killed from outside.
    """
    if workers == 1:
        yield map
        return
    # Not forked: onnxruntime's and CUDA's threads do not survive a fork.
    pool = _Pool(workers or usable_cores(), _Context(), initializer=start_worker, initargs=(os.getpid(),))
    try:
        yield pool.map
    except BrokenProcessPool:
        raise UserError("a worker process was killed, most likely for memory; free some, or use --workers 1") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the block ends; processes started in it never see an interrupt.

    Otherwise an early Ctrl-C would find them on their way up, and each would print a traceback.
    """
    received: list[int] = []
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.signal(number, lambda which, _: received.append(which))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for which, handler in handlers.items():
            signal.signal(which, handler)
        for which in received[:1]:
            signal.raise_signal(which)


class _Pool(ProcessPoolExecutor):
    """A pool that an interrupt finds whole.

    `submit` starts processes first and the thread that ends them afterwards. An interrupt between the two would leave
    processes that nobody ends.
    """

    def submit(self, *args: Any, **kwargs: Any) -> "Future[Any]":
        with interrupts_held_back():
            return super().submit(*args, **kwargs)


class _Process(SpawnProcess):
    def start(self) -> None:
        if sys.platform != "win32":
            resource_tracker.ensure_running()  # it lifts the block on interrupts when it starts
        with interrupts_held_back():
            super().start()


class _Context(SpawnContext):
    Process = _Process


class ForkedContext(ForkContext):
    """A context of multiprocessing for forked processes that ignore SIGTERM: to terminate them means to kill them.

    A group of processes may get SIGTERM together, as torchrun sends it. The first process then saves its work and
    needs the others until that is done.
    """

    class Process(ForkProcess):
        @staticmethod
        def _Popen(process: Any) -> "_Killed":
            return _Killed(process)


class _Killed(popen_fork.Popen):
    def terminate(self) -> None:
        self.kill()


_most_cores: int | None = None


def limit_cores(most: int) -> None:
    """Let this process use at most so many cores from now on, because others use the rest."""
    global _most_cores
    _most_cores = most


def usable_cores() -> int:
    """The number of cores that this process may run on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if _most_cores is None else min(cores, _most_cores)


def start_worker(parent: int) -> None:
    """Prepare a process that works for `parent`: it ends with it, and leaves interrupts to it."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends us
    end_with_parent(parent)
    cv2.setNumThreads(1)


def end_with_parent(parent: int) -> None:
    """Make this process end when the process `parent`, which started it, does: also when that one is killed."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)
    if sys.platform != "linux":
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        threading.Event().wait(1)
    os._exit(1)
