"""Several processes that share one listening socket: the system hands every connection to one of them."""

import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from sodeploy import terminal
from sodeploy.errors import UserError
from sodeploy.runtime.serve.listening import drop_new_connections
from sodeploy.runtime.serve.settings import SHARED_FOLDER, Settings
from sodeploy.workers import end_with_parent, interrupts_held_back

START_FAILED = 3  # exit status of a worker that could not start: another one could not either
_LOOK_EVERY_S = 0.2
_RESTART_AFTER_S = 1.0  # a worker that dies at once again and again must not take all of a core

Work = Callable[[Settings, socket.socket], None]  # serves until SIGTERM; raises UserError if it cannot


def serve_by_workers(work: Work, settings: Settings, listening: socket.socket) -> None:
    """Keep `settings.workers` processes at work until SIGTERM or Ctrl-C, then let them finish.

    A worker that dies is replaced. All end with this process, however it ends.

    Args:
        work: a function of a module.

    Raises:
        UserError: a worker cannot start.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="sodeploy-serve-") as folder, _stop_requests() as asked:
        failure_file = Path(folder, "failure")
        os.environ[SHARED_FOLDER] = folder
        settings = replace(settings, failure_file=failure_file)

        def start() -> SpawnProcess:
            process = context.Process(target=_worker, args=(work, settings, listening, os.getpid()))
            with interrupts_held_back():
                process.start()
            return process

        workers = [start() for _ in range(settings.workers)]
        try:
            while not asked:
                connection.wait([worker.sentinel for worker in workers], _LOOK_EVERY_S)
                for place, worker in enumerate(workers):
                    status = worker.exitcode
                    if status == START_FAILED:
                        reason = failure_file.read_text() if failure_file.is_file() else "a worker does not start"
                        raise UserError(reason)
                    if status is not None and not asked:
                        terminal.warn(f"a worker ended with status {status}; another one starts")
                        time.sleep(_RESTART_AFTER_S)
                        workers[place] = start()
        finally:
            _end(workers, settings, listening)
            del os.environ[SHARED_FOLDER]


def _end(workers: list[SpawnProcess], settings: Settings, listening: socket.socket) -> None:
    """Let the workers answer what they accepted, and end."""
    for worker in workers:
        worker.terminate()
    # New connections are dropped while the workers still take those that wait: the last one leaves none behind.
    connection.wait([worker.sentinel for worker in workers], settings.drain_s / 2)
    drop_new_connections(listening)
    listening.close()
    end = time.monotonic() + settings.deadline_s + 11 * settings.drain_s + 10
    for worker in workers:
        worker.join(max(0.0, end - time.monotonic()))
        if worker.exitcode is None:
            worker.kill()
            worker.join()


def _worker(work: Work, settings: Settings, listening: socket.socket, parent: int) -> None:
    end_with_parent(parent)
    with terminal.talking(quiet=True):
        try:
            work(settings, listening)
        except UserError:
            os._exit(START_FAILED)  # the parent has the reason in its file


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """The numbers of the signals that asked for the end."""
    asked: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda which, _: asked.append(which)) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
