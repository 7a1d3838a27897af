"""The processes that train together. `torchrun` describes them in environment variables."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """One of `count` processes. The process of rank 0 writes the files and prints the notes."""

    rank: int
    count: int
    device: torch.device
    control: dist.ProcessGroup | None = None  # of the CPUs, beside the GPUs' own; None: the only group there is

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The values of all processes in the order of their ranks; every process gets the list."""
        if self.count == 1:
            return [value]
        values: list[T | None] = [None] * self.count
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def highest(self, value: int) -> int:
        """The highest `value` of all processes. The CPUs exchange it, so no GPU is waited for."""
        if self.count == 1:
            return value
        values = torch.tensor([value])
        dist.all_reduce(values, dist.ReduceOp.MAX, self.control)
        return int(values)


@contextlib.contextmanager
def join_processes() -> Iterator[Process]:
    """Connect the processes that `torchrun` started: by NCCL with one GPU each, by gloo on CPUs."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if count == 1:
        yield Process(0, 1, device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    control = dist.new_group(backend="gloo") if device.type == "cuda" else None
    try:
        yield Process(dist.get_rank(), count, device, control)
    finally:
        dist.destroy_process_group()
