"""The bounds of what one process holds at a time: accepted pictures, and decoded pixels."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Iterator

from sodeploy.runtime.serve.refusals import Refusal


class Places:
    """The pictures that are accepted and not answered yet. Used by the event loop alone."""

    def __init__(self, most: int, changed: Callable[[int], object] = lambda taken: None) -> None:
        """
        Args:
            changed: called with the number of places that are taken, whenever it changes.
        """
        self.most, self.taken, self._changed = most, 0, changed
        self.seconds_each = 0.1  # running mean of the time that a picture takes the network

    @contextlib.contextmanager
    def take(self, count: int) -> Iterator[None]:
        """Hold `count` places.

        Raises:
            Refusal: there are not as many free; says after how many seconds there may be.
        """
        if self.taken + count > self.most:
            wait = max(1, math.ceil(self.taken * self.seconds_each))
            raise Refusal(
                "busy",
                f"{self.taken} of {self.most} places are taken; send it again in {wait} s",
                {"Retry-After": str(wait)},
            )
        self._add(count)
        try:
            yield
        finally:
            self._add(-count)

    def measured(self, pictures: int, seconds: float) -> None:
        """Note that the network took so many seconds for so many pictures."""
        self.seconds_each += 0.1 * (seconds / pictures - self.seconds_each)

    def _add(self, count: int) -> None:
        self.taken += count
        self._changed(self.taken)


class PixelBudget:
    """The pixels that are decoded at a time. A picture waits, still encoded, until there is room for it."""

    def __init__(self, most: int) -> None:
        self._most, self._used = most, 0
        self._freed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def take(self, pixels: int) -> AsyncIterator[None]:
        """Hold room for so many pixels; a picture that is larger than all the room goes alone."""
        while self._used and self._used + pixels > self._most:
            await self._freed.wait()
        self._used += pixels
        try:
            yield
        finally:  # without an await, which a cancelled request would not come back from
            self._used -= pixels
            freed, self._freed = self._freed, asyncio.Event()
            freed.set()
