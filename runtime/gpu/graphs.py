"""Work that comes again on a stream, recorded as CUDA graphs."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from sodeploy.errors import UserError
from sodeploy.runtime.errors import DeviceError, DeviceLost
from sodeploy.runtime.gpu.device import Device, Graph
from sodeploy.terminal import note

_MOST_GRAPHS = 16  # each holds device memory, several KiB a kernel
_MOST_SEEN = 256
_ATTEMPTS = 3  # that fail one after another
_OLD = 4 * _MOST_GRAPHS  # runs after which a graph that was not launched makes room for another


@dataclass
class _Kept:
    graph: Graph
    last_run: int


class Graphs:
    """The graphs of one stream, each with a key; for one thread at a time.

    A graph does what was recorded, with the addresses and sizes of then. So equal keys must stand for equal work, and
    whoever changes what the graphs hold calls `clear` first.
    """

    def __init__(self, device: Device, stream: Any, name: str, recordable: bool = True) -> None:
        """
        Args:
            name: of the model, for the note that it runs without graphs.
            recordable: whether its work can be recorded at all.
        """
        self._device, self._stream, self._name = device, stream, name
        self._attempts = _ATTEMPTS if recordable else 0
        self._kept: dict[Hashable, _Kept] = {}  # the one that was not launched for longest first
        self._seen: dict[Hashable, None] = {}  # keys that came once, the oldest first
        self._runs = 0

    def __len__(self) -> int:
        return len(self._kept)

    def run(self, key: Hashable, work: Callable[[], None], first: Callable[[], None] | None = None) -> None:
        """Enqueue work, by the graph of `key` where there is one.

        Work that comes for the second time is enqueued and then recorded. Work that comes once would be recorded in
        vain, and the first run of a TensorRT context prepares what a graph may not contain.

        Args:
            work: enqueues it on the stream, and may be called twice; it must not use these graphs.
            first: enqueues the same where it is not recorded, and may use these graphs; `work` by default.

        Raises:
            DeviceLost: the GPU's context has ended.
            UserError: as `work`. One that cannot be recorded a few times runs without graphs, and a note says so.
        """
        self._runs += 1
        if key in self._kept:
            self._launch(key)
        elif self._attempts and key in self._seen and self._room():
            work()
            self._record(key, work)
        else:
            (first or work)()
            self._see(key)

    def clear(self) -> None:
        """Free all graphs, and forget what has come."""
        if self._kept:  # one of them may still run
            self._device.wait(self._stream)
        for kept in self._kept.values():
            kept.graph.free()
        self._kept.clear()
        self._seen.clear()

    def _launch(self, key: Hashable) -> None:
        kept = self._kept.pop(key)
        try:
            kept.graph.launch(self._stream)
        except DeviceError:
            kept.graph.free()
            raise
        kept.last_run = self._runs
        self._kept[key] = kept

    def _room(self) -> bool:
        """Whether one more may be recorded. More keys in turn than graphs would else free each graph before its use."""
        return len(self._kept) < _MOST_GRAPHS or self._runs - next(iter(self._kept.values())).last_run > _OLD

    def _record(self, key: Hashable, work: Callable[[], None]) -> None:
        try:
            graph = self._device.record(work, self._stream)
        except DeviceLost:
            raise
        except UserError as error:
            self._attempts -= 1 if isinstance(error, DeviceError) else self._attempts
            if not self._attempts:
                note(f"{self._name} runs without CUDA graphs: {error}")
            return
        self._attempts = _ATTEMPTS
        if len(self._kept) >= _MOST_GRAPHS:
            self._device.wait(self._stream)  # it may still run
            self._kept.pop(next(iter(self._kept))).graph.free()
        self._kept[key] = _Kept(graph, self._runs)
        del self._seen[key]

    def _see(self, key: Hashable) -> None:
        self._seen.pop(key, None)
        self._seen[key] = None
        if len(self._seen) > _MOST_SEEN:
            del self._seen[next(iter(self._seen))]
