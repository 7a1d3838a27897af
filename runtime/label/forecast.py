"""The time, the traffic and the cost of labelling many images, from a run that was measured."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

_FLEETS = (1, 4, 16, 64, 256)  # workers


@dataclass(frozen=True)
class Measured:
    """The speed of a run.

    A worker's seconds run from the begin of its first part to the end of its last one, so they hold reading, the
    network, writing, and the wait for parts.

    Attributes:
        images: pictures that the run wrote.
        workers: that took part.
        worker_s: seconds of all workers together.
        ready_s: seconds in which the slowest worker opened the network.
        bytes_read, bytes_written: of images and pictures, or of whole shards.
    """

    images: int
    workers: int
    worker_s: float
    ready_s: float
    bytes_read: int
    bytes_written: int

    @property
    def per_worker(self) -> float:
        """Images that one worker labels in a second."""
        return self.images / self.worker_s


def measure(rows: Iterable[Mapping[str, Any]]) -> Measured | None:
    """The speed of the workers whose rows these are (`worker.Worker`); None where no picture was written."""
    began: dict[str, float] = {}
    ended: dict[str, float] = {}
    images = read = written = 0
    ready = 0.0
    for row in rows:
        if not row["written"]:
            continue
        worker = row["worker"]
        began[worker] = min(row["began"], began.get(worker, row["began"]))
        ended[worker] = max(row["ended"], ended.get(worker, row["ended"]))
        images += row["written"]
        read += row["bytes_read"]
        written += row["bytes_written"]
        ready = max(ready, row["ready_s"])
    if not images:
        return None
    seconds = sum(ended[worker] - began[worker] for worker in began)
    return Measured(images, len(began), seconds, ready, read, written)


def forecast(measured: Measured, images: int, price: float | None = None) -> dict[str, Any]:
    """The forecast for `images` images like those that were measured.

    Every worker is as fast as in the run, and the storage keeps up: the table says how fast it must be.

    Args:
        price: of one worker for an hour.
    """
    hours = images / measured.per_worker / 3600
    read, written = (size / measured.images for size in (measured.bytes_read, measured.bytes_written))

    def fleet(workers: int) -> dict[str, float]:
        rate = workers * measured.per_worker
        return {
            "workers": workers,
            "hours": hours / workers + measured.ready_s / 3600,
            "images_per_s": rate,
            "read_mb_per_s": rate * read / 1e6,
            "written_mb_per_s": rate * written / 1e6,
        }

    return {
        "images": images,
        "measured_images": measured.images,
        "measured_workers": measured.workers,
        "images_per_s_per_worker": measured.per_worker,
        "worker_hours": hours,
        "read_gb": images * read / 1e9,
        "written_gb": images * written / 1e9,
        "cost": None if price is None else hours * price,
        "fleets": [fleet(workers) for workers in sorted({measured.workers, *_FLEETS})],
    }


def forecast_table(planned: Mapping[str, Any]) -> Table:
    """The forecast for a person."""
    cost = "" if planned["cost"] is None else f", cost {planned['cost']:,.0f}"
    table = Table(
        title=(
            f"{planned['images']:,} images: {planned['worker_hours']:,.1f} hours of one worker at "
            f"{planned['images_per_s_per_worker']:.2f} images/s{cost}; {planned['read_gb']:,.1f} GB to read, "
            f"{planned['written_gb']:,.1f} GB to write"
        )
    )
    for heading in ("workers", "hours", "images/s", "MB/s read", "MB/s written"):
        table.add_column(heading, justify="right")
    for fleet in planned["fleets"]:
        table.add_row(
            str(fleet["workers"]),
            f"{fleet['hours']:,.1f}",
            f"{fleet['images_per_s']:,.1f}",
            f"{fleet['read_mb_per_s']:,.1f}",
            f"{fleet['written_mb_per_s']:,.1f}",
        )
    return table
