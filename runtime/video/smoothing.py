"""Maps of consecutive frames made steadier in time.

A network that sees each frame alone gives maps that flicker: their edges jump although the picture hardly changes
(`sodeploy.runtime.video.flicker` measures it).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar, get_args

import numpy as np

from sodeploy.runtime.media.conversion import Smoothing

SMOOTHINGS: tuple[Smoothing, ...] = get_args(Smoothing)

NEWEST = 0.5  # weight of the newest map in exponential smoothing
CUT = 30.0  # grey levels: a frame that differs so much on average from the one before begins a new shot

Key = TypeVar("Key")


class Smoother(Protocol[Key]):
    """Takes the maps of one shot in order, and gives each back once, smoothed, in order."""

    def push(self, key: Key, saliency: np.ndarray) -> Iterable[tuple[Key, np.ndarray]]:
        """Take the next map, (H, W) uint8; give those that are ready."""

    def end(self) -> Iterable[tuple[Key, np.ndarray]]:
        """The shot is over: give the rest, and be ready for the next shot."""


class NoSmoothing(Smoother[Key]):
    """Every map as it is."""

    def push(self, key: Key, saliency: np.ndarray) -> Iterable[tuple[Key, np.ndarray]]:
        return [(key, saliency)]

    def end(self) -> Iterable[tuple[Key, np.ndarray]]:
        return []


class Median(Smoother[Key]):
    """The median over the frame before, the frame itself and the frame after, pixel by pixel.

    A change that lasts for one frame disappears, and one that lasts stays where it is. The first and the last frame of
    a shot keep their own maps. Each map is given back one frame late.
    """

    def __init__(self) -> None:
        self._held: deque[tuple[Key, np.ndarray]] = deque(maxlen=3)

    def push(self, key: Key, saliency: np.ndarray) -> Iterable[tuple[Key, np.ndarray]]:
        self._held.append((key, saliency))
        if len(self._held) == 1:
            return []
        if len(self._held) == 2:
            return [self._held[0]]
        before, now, after = (held for _, held in self._held)
        middle = np.maximum(np.minimum(before, now), np.minimum(np.maximum(before, now), after))
        return [(self._held[1][0], middle)]

    def end(self) -> Iterable[tuple[Key, np.ndarray]]:
        last = [self._held[-1]] if self._held else []
        self._held.clear()
        return last


class Exponential(Smoother[Key]):
    """s(t) = a m(t) + (1 - a) s(t-1), with s(0) = m(0), for the maps m and the weight a of the newest one.

    The sum is kept as float32, and each map is rounded half to even.
    """

    def __init__(self, newest: float = NEWEST) -> None:
        """
        Args:
            newest: weight of the newest map, above 0 and at most 1.
        """
        self._newest = np.float32(newest)
        self._state: np.ndarray | None = None

    def push(self, key: Key, saliency: np.ndarray) -> Iterable[tuple[Key, np.ndarray]]:
        if self._state is None:
            self._state = saliency.astype(np.float32)
        else:
            self._state += self._newest * (saliency - self._state)
        return [(key, np.rint(self._state).astype(np.uint8))]

    def end(self) -> Iterable[tuple[Key, np.ndarray]]:
        self._state = None
        return []


# A new kind of smoothing costs one entry, and its name in `Smoothing`.
SMOOTHERS: dict[Smoothing, Callable[[], Smoother]] = {
    "none": NoSmoothing,
    "median": Median,
    "exponential": Exponential,
}


def smoothed(
    maps: Iterable[tuple[Key, np.ndarray]], smoothing: Smoothing, image_of: Callable[[Key], np.ndarray]
) -> Iterator[tuple[Key, np.ndarray]]:
    """Smooth the maps of a video in time; nothing is smoothed across a cut.

    A frame begins a new shot if its mean absolute difference from the frame before, over all pixels and channels, is
    over `CUT` grey levels.

    Args:
        maps: each frame with its map, (H, W) uint8, in order; all of one size.
        image_of: the picture of a frame, (H, W, 3) uint8 RGB.

    Yields:
        Each frame with its smoothed map, in order.
    """
    smoother = SMOOTHERS[smoothing]()
    before: np.ndarray | None = None
    for key, saliency in maps:
        image = image_of(key)
        if smoothing != "none" and before is not None and _difference(before, image) > CUT:
            yield from smoother.end()
        before = image
        yield from smoother.push(key, saliency)
    yield from smoother.end()


def _difference(before: np.ndarray, image: np.ndarray) -> float:
    """Mean absolute difference in grey levels, over every fourth row and column, which is enough to see a cut."""
    return float(np.abs(before[::4, ::4].astype(np.int16) - image[::4, ::4]).mean())
