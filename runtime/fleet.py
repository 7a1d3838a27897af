"""Workers on one machine or many. Ray starts them, hands them the parts of the work, and replaces those that die."""

import contextlib
import logging
import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from sodeploy import artifacts
from sodeploy.errors import UserError
from sodeploy.workers import limit_cores

HERE = "here"
_CONNECT_S = 5.0
_STORE_BYTES = 100_000_000  # of Ray on this machine; what does not fit goes to its disk
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="divide the work over Ray's workers: a cluster, HOST:PORT or auto; without an address Ray starts here",
    ),
]


@dataclass(frozen=True)
class Fleet:
    """The workers.

    Attributes:
        address: of a running Ray cluster, "auto" for the one that this machine belongs to, "here" to start Ray here.
        workers: at most; by default as many as the cluster has room for. The first one starts the run, and others
            follow while parts wait.
        threads: CPU cores of a worker.
        gpus: share of a GPU of a worker on cuda; 0.25 puts four workers on each GPU.
    """

    address: str = HERE
    workers: int | None = None
    threads: int = 1
    gpus: float = 1.0


def require_ray() -> None:
    """
    Raises:
        ModuleNotFoundError: the extra "ray" is not installed.
    """
    import ray.data  # noqa: F401


def answers(
    worker: Callable[..., Callable[[Any], Any]],
    parts: Sequence[Any],
    fleet: Fleet,
    on_gpu: bool = False,
    **arguments: Any,
) -> Generator[tuple[int, Any], None, None]:
    """The answers of workers to all parts, as they come: the index of the part, and the answer to it.

    A part whose worker dies goes to another worker. Close the iterator to end before the last part.

    Args:
        worker: makes a worker, which is called with one part after another; it must be picklable, as must parts and
            answers. An answer is a `UserError` where that was raised.
        parts: shares of the work.
        on_gpu: whether a worker needs a GPU.
        arguments: of `worker`.

    Raises:
        UserError: there is no such cluster, or it has no room for a worker.
    """
    if not parts:
        return
    import ray.data

    with _cluster(fleet.address):
        room = ray.cluster_resources()
        most = int(room.get("GPU", 0) / fleet.gpus if on_gpu else room.get("CPU", 0) / fleet.threads)
        if most < 1:
            needs = f"{fleet.gpus:g} GPU" if on_gpu else f"{fleet.threads} cores"
            has = f"{room.get('CPU', 0):g} cores and {room.get('GPU', 0):g} GPUs"
            raise UserError(f"Ray has no room for a worker of {needs}; it has {has}")
        most = min(most, fleet.workers or most, len(parts))
        rows = (
            ray.data.from_items(
                [{"index": index, "part": part} for index, part in enumerate(parts)], override_num_blocks=len(parts)
            )
            .map(
                _Answering,
                fn_constructor_kwargs={"worker": worker, "arguments": arguments, "threads": fleet.threads},
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most, max_tasks_in_flight_per_actor=2),
                num_cpus=fleet.threads,
                num_gpus=fleet.gpus if on_gpu else None,
            )
            .iter_rows()
        )
        for row in rows:
            yield row["index"], pickle.loads(row["answer"])


class _Answering:
    """A worker as Ray calls it. Arrow, which carries rows, knows few types, so answers are pickled."""

    def __init__(self, worker: Callable[..., Callable[[Any], Any]], arguments: dict[str, Any], threads: int) -> None:
        import cv2

        limit_cores(threads)
        cv2.setNumThreads(threads)
        os.environ["NUMBA_NUM_THREADS"] = str(threads)
        self._unfit: UserError | None = None
        try:
            self._worker = worker(**arguments)
        except UserError as error:  # Ray would start the worker again and again
            self._unfit = error

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = self._unfit or self._worker(row["part"])
        except UserError as error:
            answer = error
        return {"index": row["index"], "answer": pickle.dumps(answer)}


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[None]:
    """Ray, connected until the block ends; one that the caller has connected to stays."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's makers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    terminating = signal.getsignal(signal.SIGTERM)
    try:
        if address == HERE:
            ray.init(include_dashboard=False, object_store_memory=_STORE_BYTES, **settings)
        else:
            if ":" in address:  # Ray itself waits for minutes
                host, _, port = address.removeprefix("ray://").rpartition(":")
                socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
            ray.init(address, **settings)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--ray {address}: there is no such cluster ({artifacts.one_line(error, 120)}); start one with "
            "`ray start --head`, or leave the address out"
        ) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminating)  # Ray's would end the process without a word
    try:
        yield
    finally:
        ray.shutdown()
