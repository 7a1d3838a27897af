"""Many images through a network, so that the GPU never waits: reading, copies, network and kernels overlap.

Reader threads decode images ahead. Each batch then takes a lane, which is a CUDA stream with an execution context and
buffers of its own: up, kernels, network, kernels, down, one after another without the host in between. While one lane's
network runs, the next one's images are copied up and the last one's pictures down.

Batches of the same picture sizes, as of a video, are one CUDA graph from the third on: one launch in the place of some
hundred. In a folder of mixed sizes hardly a batch is like another; there the network alone is a graph.
"""

import contextlib
import queue
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from sodeploy.errors import UserError
from sodeploy.runtime.composition import Style
from sodeploy.runtime.errors import DeviceError, DeviceLost, OutOfDeviceMemory
from sodeploy.runtime.gpu.processing import CudaProcessing, Staged
from sodeploy.runtime.gpu.session import DeviceSession
from sodeploy.runtime.gpu.timeline import Timeline
from sodeploy.runtime.measure.metrics import usable_cores
from sodeploy.terminal import warn

Source = TypeVar("Source")
Picture = np.ndarray | UserError  # what became of an image
_ORIGIN = "origin"


def pictures(
    session: DeviceSession,
    sources: Iterable[Source],
    read: Callable[[Source], np.ndarray],
    *,
    batch: int = 8,
    style: Style = "map",
    lanes: int = 3,
    readers: int | None = None,
    timeline: Timeline | None = None,
) -> Generator[tuple[Source, Picture], None, None]:
    """The pictures that a `Pipeline` makes from `sources`; close the generator to stop early."""
    with Pipeline(session, batch=batch, style=style, lanes=lanes, readers=readers, timeline=timeline) as pipeline:
        yield from pipeline.pictures(sources, read)


class Pipeline:
    """Lanes on one GPU, for any number of runs; a context manager that frees them."""

    def __init__(
        self,
        session: DeviceSession,
        *,
        batch: int = 8,
        style: Style = "map",
        lanes: int = 3,
        readers: int | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        """
        Args:
            batch: images to one run of the network; the model's largest if that is less.
            style: what the pictures are (`sodeploy.runtime.composition`).
            lanes: batches on the GPU at a time.
            readers: reader threads; one per core by default.
            timeline: where to note what happened when.

        Raises:
            OutOfDeviceMemory: there is no room for even one lane; where there is for fewer, a warning says so.
        """
        self._batch = min(batch, session.largest_batch or batch)
        self._readers = readers or usable_cores()
        self._device, self._timeline = session.device, timeline
        self._free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        self._lanes = _open_lanes(self._free, session, lanes, style, timeline)

    def pictures(
        self, sources: Iterable[Source], read: Callable[[Source], np.ndarray]
    ) -> Generator[tuple[Source, Picture], None, None]:
        """Yield each source with its picture, in order; close it to stop early. One run at a time.

        An image that cannot be read, or whose batch the GPU fails at, comes with the error instead; the others go on. A
        batch that the GPU has no room for is halved, and a warning says so.

        Args:
            read: a source to its image (H, W, 3) uint8 RGB; called in the reader threads, may raise UserError.

        Raises:
            DeviceLost: the GPU's context has ended, and with it the run.
        """
        batch, lanes = self._batch, self._lanes
        reading: deque[tuple[Source, Future[Picture]]] = deque()
        running: deque[tuple[list[Source], Future[list[Picture]]]] = deque()
        remaining = iter(sources)
        reader_pool = ThreadPoolExecutor(self._readers, "reader")
        lane_pool = ThreadPoolExecutor(lanes, "lane")
        try:
            while True:
                for source in _first(remaining, max(batch * (lanes + 1), self._readers) - len(reading)):
                    reading.append((source, reader_pool.submit(_read, read, source, self._timeline)))
                if reading and len(running) <= lanes:
                    taken = [reading.popleft() for _ in range(min(batch, len(reading)))]
                    images = [future.result() for _, future in taken]
                    running.append(([source for source, _ in taken], lane_pool.submit(_take_lane, self._free, images)))
                elif running:
                    done, result = running.popleft()
                    yield from zip(done, result.result(), strict=True)
                else:
                    return
        finally:  # also when the consumer stops early
            reader_pool.shutdown(cancel_futures=True)
            lane_pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Free the lanes; no run may be under way."""
        with self._device.current():
            while not self._free.empty():
                self._free.get().close()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_lanes(
    free: "queue.SimpleQueue[Lane]", session: DeviceSession, lanes: int, style: Style, timeline: Timeline | None
) -> int:
    """Fill `free` with as many lanes as there is room for, `lanes` at most; returns how many."""
    with session.device.current():
        for number in range(lanes):
            try:
                free.put(Lane(session, style, f"GPU stream {number}", timeline))
            except OutOfDeviceMemory as error:
                if number == 0:
                    raise
                warn(f"{error}; going on with {number} of {lanes} batches at a time")
                return number
    return lanes


class Lane:
    """A stream with everything a batch needs on its way; made and closed while the device is current."""

    def __init__(self, session: DeviceSession, style: Style, name: str, timeline: Timeline | None) -> None:
        """
        Args:
            name: of its track on the timeline.
        """
        self._device, self._name, self._timeline = session.device, name, timeline
        self._stream = self._device.stream()
        self._session = session.fork(self._stream)
        self._processing = CudaProcessing(
            self._device,
            session.contract,
            self._stream,
            style,
            session.input_dtype,
            session.output_dtype,
            self._mark,
        )
        self._largest = 0  # images of the largest batch so far
        self._buffers: tuple[int, ...] = ()  # those that the graphs were recorded with
        self._events: dict[str, Any] = {}  # by the stage they end
        if timeline:  # GPU events tell the time since another event only: note when one was
            self._mark(_ORIGIN)
            self._device.wait(self._stream)
            self._origin_time = timeline.now()

    def run(self, images: list[np.ndarray]) -> list[Picture]:
        """The pictures of a batch; errors in their stead."""
        with self._device.current():
            try:
                return self._run(images)
            except DeviceLost:
                raise
            except DeviceError as error:
                self._drain()
                self._largest = 0  # a smaller batch may not fail
                return [error] * len(images)
            except UserError as error:  # there is no room for so many, or one of the images cannot be processed
                self._drain()
                if isinstance(error, OutOfDeviceMemory) and self._largest > max(
                    len(images), self._session.smallest_batch
                ):
                    self._largest = 0  # there may be room for these without filling up
                    self._processing.release()
                    return self.run(images)
                if len(images) == 1:
                    return [error]
                half = len(images) // 2
                if isinstance(error, OutOfDeviceMemory):
                    self._largest = half
                    self._processing.release()
                    warn(f"{error}; going on with a batch of {half}")
                return self.run(images[:half]) + self.run(images[half:])

    def _drain(self) -> None:
        """Wait for what is still under way, which reads and writes the buffers of the next batch."""
        with contextlib.suppress(DeviceError):
            self._device.wait(self._stream)

    def close(self) -> None:
        self._processing.release()
        self._session.close()
        self._events.clear()
        self._device.keep(self._stream)

    def _run(self, images: list[np.ndarray]) -> list[Picture]:
        # A short batch behind whole ones runs as whole: another shape would cost the network's graphs.
        self._largest = count = max(len(images), self._largest, self._session.smallest_batch)
        contract = self._session.contract
        shape = (count, 3, contract.height, contract.width)
        with self._span("copy images, enqueue"):
            self._enqueue(self._processing.stage(images, room=count), shape)
        with self._span("wait for the GPU"):
            self._device.wait(self._stream)
        self._note_stages()
        with self._span("copy pictures"):
            return self._processing.pictures()

    def _enqueue(self, staged: Staged, shape: tuple[int, int, int, int]) -> None:
        graphs = self._session.graphs
        if staged.buffers != self._buffers:
            graphs.clear()
            self._buffers = staged.buffers

        def network() -> None:
            self._session.enqueue(staged.input, staged.output, shape)

        def whole() -> None:
            self._processing.preprocess()
            network()
            self._processing.postprocess()

        def parts() -> None:
            self._processing.preprocess()
            graphs.run(shape, network)
            self._mark("infer")
            self._processing.postprocess()

        if self._timeline:  # a graph tells nothing of its parts
            parts()
        else:
            graphs.run((shape, staged.work), whole, first=parts)

    def _span(self, name: str) -> contextlib.AbstractContextManager[None]:
        return self._timeline.span(name) if self._timeline else contextlib.nullcontext()

    def _mark(self, stage: str) -> None:
        if self._timeline:
            if stage not in self._events:
                self._events[stage] = self._device.event()
            self._events[stage].record(self._stream)

    def _note_stages(self) -> None:
        """Put the batch on the timeline; the stream is idle."""
        if not self._timeline:
            return
        origin, *events = self._events.values()
        begin = self._origin_time + origin.time_till(events[0]) / 1e3
        # Each stage from its own two events: time since the origin is a float32, which gets coarse within minutes.
        for stage, before, after in zip([*self._events][2:], events, events[1:], strict=False):
            seconds = before.time_till(after) / 1e3
            self._timeline.add(self._name, stage, begin, seconds)
            begin += seconds


def _take_lane(free: "queue.SimpleQueue[Lane]", images: list[Picture]) -> list[Picture]:
    """Send those that are images through a free lane; errors stay where they are."""
    whole = [image for image in images if not isinstance(image, UserError)]
    lane = free.get()
    try:
        made = iter(lane.run(whole) if whole else [])
    finally:
        free.put(lane)
    return [image if isinstance(image, UserError) else next(made) for image in images]


def _read(read: Callable[[Source], np.ndarray], source: Source, timeline: Timeline | None) -> Picture:
    try:
        if timeline is None:
            return read(source)
        with timeline.span("read"):
            return read(source)
    except UserError as error:
        return error
    except MemoryError:
        return UserError(f"{source} needs more memory than there is; make it smaller or remove it")


def _first(items: Iterator[Source], count: int) -> Iterator[Source]:
    for _ in range(count):
        try:
            yield next(items)
        except StopIteration:
            return
