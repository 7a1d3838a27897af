"""From frames to saliency maps, many at a time: reading, the network and whatever comes after overlap."""

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from sodeploy.errors import UserError
from sodeploy.runtime.composition import Style
from sodeploy.runtime.gpu.pipeline import pictures
from sodeploy.runtime.gpu.session import DeviceSession
from sodeploy.runtime.gpu.timeline import Timeline
from sodeploy.runtime.media.frame import Frame
from sodeploy.workers import usable_cores

Source = TypeVar("Source")
_INPUT_PIXELS = 1 << 21  # of the images in one run on a GPU: 16 of 320 x 320, 2 of 1024 x 1024
_LARGEST_BATCH = 16


@dataclass(frozen=True)
class Mapped(Generic[Source]):
    """One source after the network.

    Attributes:
        frame: None where it could not be read.
        result: (H, W) uint8, the saliency map; of a mapper with another style its picture; or why there is none.
    """

    source: Source
    frame: Frame | None
    result: np.ndarray | UserError


class Mapper(Protocol):
    """A network that is ready to make maps of frames. One run at a time."""

    def maps(self, sources: Iterable[Source], read: Callable[[Source], Frame]) -> Generator[Mapped[Source], None, None]:
        """Yield each source with its map, in order; close it to stop early.

        A few frames are read ahead, never all of them: `sources` may be endless.

        Args:
            read: called in other threads, several at a time; may raise UserError.
        """


class HostMapper:
    """Images in the host's memory, one at a time; reader threads decode ahead while the network runs."""

    def __init__(self, predict: Callable[[np.ndarray], np.ndarray], ahead: int | None = None) -> None:
        """
        Args:
            predict: (H, W, 3) uint8 RGB -> (H, W) uint8 saliency map; may raise UserError.
            ahead: frames that are read ahead; one per core by default. 0 for a camera, whose frames would grow old.
        """
        self._predict = predict
        self._ahead = usable_cores() if ahead is None else ahead

    def maps(self, sources: Iterable[Source], read: Callable[[Source], Frame]) -> Generator[Mapped[Source], None, None]:
        remaining = iter(sources)
        reading: deque[tuple[Source, Future[Frame | UserError]]] = deque()
        readers = ThreadPoolExecutor(usable_cores(), "reader")
        try:
            while True:
                for source in remaining:
                    reading.append((source, readers.submit(_read, read, source)))
                    if len(reading) > self._ahead:
                        break
                if not reading:
                    return
                source, future = reading.popleft()
                frame = future.result()
                if isinstance(frame, UserError):
                    yield Mapped(source, None, frame)
                else:
                    yield Mapped(source, frame, self._map(source, frame))
        finally:  # also when the consumer stops early
            readers.shutdown(cancel_futures=True)

    def _map(self, source: Source, frame: Frame) -> np.ndarray | UserError:
        try:
            return self._predict(frame.image)
        except UserError as error:
            return error
        except MemoryError:
            return _no_memory(source)


class DeviceMapper:
    """Images on a GPU, in batches, with pre- and post-processing as CUDA kernels."""

    def __init__(
        self,
        session: DeviceSession,
        style: Style = "map",
        batch: int | None = None,
        timeline: Timeline | None = None,
        lanes: int = 3,
    ) -> None:
        """
        Args:
            style: the pictures that the GPU makes in the place of maps.
            batch: images in one run of the network; chosen by the size of its input by default.
            timeline: notes what happened when.
            lanes: batches on the GPU at a time.
        """
        self._session, self._style, self._timeline = session, style, timeline
        self._batch = batch or chosen_batch(session)
        self._lanes = lanes

    def maps(self, sources: Iterable[Source], read: Callable[[Source], Frame]) -> Generator[Mapped[Source], None, None]:
        def holding() -> Generator[_Held[Source], None, None]:
            for source in sources:
                yield _Held(source)

        def image_of(one: _Held[Source]) -> np.ndarray:
            one.frame = read(one.source)
            return one.frame.image

        made = pictures(
            self._session,
            holding(),
            image_of,
            batch=self._batch,
            style=self._style,
            lanes=self._lanes,
            readers=1 if self._lanes == 1 else None,
            timeline=self._timeline,
        )
        with contextlib.closing(made):
            for one, picture in made:
                yield Mapped(one.source, one.frame, picture)


@dataclass
class _Held(Generic[Source]):
    """A source on its way through the GPU, with its frame, which the result is joined with."""

    source: Source
    frame: Frame | None = None

    def __str__(self) -> str:
        return str(self.source)


def chosen_batch(session: DeviceSession) -> int:
    """Images in one run: as many as fill a GPU, and no more than its memory and the model are made for."""
    contract = session.contract
    batch = max(1, min(_LARGEST_BATCH, _INPUT_PIXELS // (contract.height * contract.width)))
    return min(batch, session.largest_batch or batch)


def _read(read: Callable[[Source], Frame], source: Source) -> Frame | UserError:
    try:
        return read(source)
    except UserError as error:
        return error
    except MemoryError:
        return _no_memory(source)


def _no_memory(source: object) -> UserError:
    return UserError(f"{source} needs more memory than there is; make it smaller or remove it")
