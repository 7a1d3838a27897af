"""The service without HTTP: models, limits, and the way of one picture through them."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

from sodeploy import terminal
from sodeploy.errors import UserError
from sodeploy.runtime.errors import DeviceLost
from sodeploy.runtime.media.pictures import load_estimation, require_estimation
from sodeploy.runtime.serve.batching import Batcher, Opened
from sodeploy.runtime.serve.limits import PixelBudget, Places
from sodeploy.runtime.serve.measures import Measures
from sodeploy.runtime.serve.parameters import Wanted
from sodeploy.runtime.serve.pictures import MEDIA_TYPES, declared_pixels, finish, prepare
from sodeploy.runtime.serve.refusals import Refusal
from sodeploy.runtime.serve.settings import Settings
from sodeploy.runtime.session import open_session
from sodeploy.workers import usable_cores

T = TypeVar("T")
_LARGEST_AT_ONCE = 4  # pictures of the largest size that are decoded at a time


class Made(NamedTuple):
    """A finished picture: its bytes, its media type, its suffix, and the model that made it."""

    data: bytes
    media_type: str
    suffix: str
    model: str


class Service:
    """Everything behind the HTTP interface.

    Attributes:
        state: "loading", "ready", "draining" or "failed".
        failure: why the state is "failed".
    """

    def __init__(self, settings: Settings, on_failure: Callable[[], None]) -> None:
        """
        Args:
            on_failure: called in the event loop when nothing can be served any more.
        """
        self.settings, self.measures = settings, Measures()
        self.places = Places(settings.queue, self.measures.waiting.set)
        self.state, self.failure = "loading", ""
        self.opened: dict[str, Opened] = {}
        self._on_failure = on_failure
        self._budget = PixelBudget(_LARGEST_AT_ONCE * settings.most_pixels)
        self._pool = ThreadPoolExecutor(usable_cores(), "pictures")
        self._batchers = {name: self._batcher(name) for name in settings.models}

    async def load(self) -> None:
        """Open all models, one after the other; the state says how it went.

        Raises:
            UserError: one cannot be opened.
        """
        name, loop = "", asyncio.get_running_loop()
        try:
            require_estimation()
            await loop.run_in_executor(None, load_estimation)  # may take a minute, in which /healthz answers
            for name, batcher in self._batchers.items():
                batcher.start()
                self.opened[name] = await asyncio.wrap_future(batcher.opened)
                batcher.lost.add_done_callback(lambda lost: loop.call_soon_threadsafe(self._fail, lost.result()))
        except Exception as error:
            if not isinstance(error, (UserError, ModuleNotFoundError)):
                error = UserError(f"--model: {name} cannot be opened ({type(error).__name__}: {error})")
            self._fail(error)
            raise error from None
        if self.state == "loading":
            self.state = "ready"

    async def close(self) -> None:
        """Finish what is queued, and free the models."""
        loop = asyncio.get_running_loop()
        for name in self.opened:
            await loop.run_in_executor(None, self._batchers[name].close)
        self._pool.shutdown()

    @property
    def is_open(self) -> bool:
        """Whether all models are open."""
        return len(self.opened) == len(self.settings.models)

    def require_ready(self) -> None:
        """Refuse a request while the models are not open.

        Raises:
            Refusal: that is so.
        """
        if not self.is_open or self.state == "failed":
            raise Refusal("loading", f"the models are not ready ({self.state}); see /readyz", {"Retry-After": "2"})

    async def make(self, data: bytes, wanted: Wanted) -> Made:
        """The picture that a request wants, of the bytes of an encoded picture.

        Raises:
            Refusal: there is none.
        """
        name = wanted.model or next(iter(self.settings.models))
        if name not in self.settings.models:
            raise Refusal("unknown_model", f"there is no model {name[:60]!r}; there are {', '.join(self.opened)}")
        batcher, contract = self._batchers[name], self.opened[name].contract
        most = self.settings.most_pixels
        try:
            pixels = await self._in_pool(partial(declared_pixels, data, most))
            async with self._budget.take(pixels):
                with batcher.expecting():
                    frame, tensor = await self._in_pool(partial(prepare, data, contract, most, wanted))
                    done = batcher.submit(tensor)
                output = await asyncio.wrap_future(done)
                made = await self._in_pool(partial(finish, frame, output, contract, wanted))
        except MemoryError:
            raise Refusal("out_of_memory", "there is not enough memory for the picture now; send it again") from None
        except UserError as error:
            terminal.warn(f"model {name}: {error}")
            raise Refusal("model_failed", f"the model {name} failed; see the service's log") from None
        self.measures.pictures.labels(name).inc()
        return Made(made, MEDIA_TYPES[wanted.suffix], wanted.suffix, name)

    def _batcher(self, name: str) -> Batcher:
        settings = self.settings
        opener = partial(
            open_session,
            settings.models[name],
            "cpu" if settings.gpu is None else "cuda",
            settings.threads,
            settings.engine,
            gpu=settings.gpu or 0,
        )
        runs, seconds = self.measures.runs.labels(name), self.measures.network.labels(name)

        def measured(pictures: int, elapsed: float) -> None:
            runs.observe(pictures)
            seconds.observe(elapsed)
            self.places.measured(pictures, elapsed)

        return Batcher(opener, settings.batch, settings.window_s, measured)

    def _fail(self, error: Exception) -> None:
        """Nothing can be served any more."""
        self.state, self.failure = "failed", str(error)
        if self.settings.failure_file:
            self.settings.failure_file.write_text(self.failure)
        if isinstance(error, DeviceLost):
            self._on_failure()

    async def _in_pool(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)
