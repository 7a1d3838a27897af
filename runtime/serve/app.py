"""The HTTP interface of the service."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from fastapi import FastAPI, Request, Security
from fastapi.security import APIKeyHeader
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from sodeploy import __version__
from sodeploy.runtime.serve import schema
from sodeploy.runtime.serve.answers import MIXED, ZIP, as_multipart, as_zip
from sodeploy.runtime.serve.guard import Guard
from sodeploy.runtime.serve.parameters import Wanted, parse_parameters
from sodeploy.runtime.serve.refusals import Refusal
from sodeploy.runtime.serve.service import Made, Service
from sodeploy.runtime.serve.settings import Settings
from sodeploy.runtime.serve.uploads import Upload, read_request

_STATIC = Path(__file__).parent / "static"
MOST_FILES = 32  # of one batch
_DRAINED_BYTES = 1 << 22  # of a refused request that are still read, so that its sender sees the answer
_STATUS_CODES = {404: "not_found", 405: "method_not_allowed"}


def make_app(settings: Settings, stop: Callable[[], None] = lambda: None) -> FastAPI:
    """The application; it opens the models when it starts.

    Args:
        stop: called when nothing can be served any more.
    """
    service = Service(settings, stop)
    app = FastAPI(
        title="sodeploy",
        version=__version__,
        description="Saliency maps and cut-outs of pictures.",
        docs_url=None,  # FastAPI's pages fetch scripts from elsewhere
        redoc_url=None,
        lifespan=partial(_lifespan, service=service, stop=stop),
    )
    app.state.service = service
    app.add_middleware(Guard, service=service)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _not_there)
    _add_pictures(app, service)
    _add_health(app, service)
    app.mount("/static", StaticFiles(directory=_STATIC), "static")
    app.add_api_route("/", lambda: FileResponse(_STATIC / "index.html"), include_in_schema=False)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI, service: Service, stop: Callable[[], None]) -> AsyncIterator[None]:
    loading = asyncio.create_task(service.load())
    loading.add_done_callback(lambda done: None if done.cancelled() or not done.exception() else stop())
    if service.settings.workers > 1:  # a worker that has been restarted takes no request before it can answer
        await loading
    with _draining(service):
        yield
    loading.cancel()
    await service.close()


@contextlib.contextmanager
def _draining(service: Service) -> Iterator[None]:
    """Serve on for a moment after SIGTERM or Ctrl-C, with the word that connections end; then let the server stop.

    A client that has a connection open learns so by an answer, not by a reset in the middle of its next request, and
    a load balancer sees /readyz change before the port closes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def drain(number: int, frame: Any, then: Any) -> None:
        if service.state == "draining" or not callable(then):
            if callable(then):
                then(number, frame)
            return
        service.state = "draining"
        loop.call_soon_threadsafe(loop.call_later, service.settings.drain_s, then, number, frame)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, then in before.items():
        signal.signal(number, partial(drain, then=then))
    yield


def _add_pictures(app: FastAPI, service: Service) -> None:
    """The endpoints that make pictures."""

    async def mask(request: Request) -> Response:
        """The saliency map of a picture."""
        return await _one(request, service, "map")

    async def cutout(request: Request) -> Response:
        """The object of a picture, transparent around it or before something new."""
        return await _one(request, service, "rgba")

    async def batch(request: Request) -> Response:
        """Pictures of several pictures, in a zip archive; in multipart/mixed where the header Accept says so.

        results.json in it has one entry for every input: the name of its file, or its error.
        """
        return await _several(request, service)

    one, several = schema.answers(*schema.PICTURES), schema.answers(ZIP, MIXED)
    for path, endpoint, request, responses in (
        ("/v1/mask", mask, schema.one_picture(cutout=False), one),
        ("/v1/cutout", cutout, schema.one_picture(cutout=True), one),
        ("/v1/batch", batch, schema.several_pictures(), several),
    ):
        app.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            response_class=Response,
            responses=responses,
            openapi_extra=request,
            dependencies=_key(service),
        )
    for path in ("/api/remove", "/v1.0/removebg"):  # rembg's and remove.bg's
        app.add_api_route(path, cutout, methods=["POST"], include_in_schema=False)


def _add_health(app: FastAPI, service: Service) -> None:
    """The endpoints about the service itself."""

    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    async def readyz() -> JSONResponse:
        """Whether pictures can be served: status 200, else 503 with the reason."""
        body = {"status": service.state} | ({"reason": service.failure} if service.failure else {})
        return JSONResponse(body, 200 if service.state == "ready" else 503)

    async def models() -> dict[str, Any]:
        """The models; the first is the one for requests without `model`."""
        return {
            "models": [
                {
                    "name": name,
                    "network": opened.contract.network,
                    "precision": opened.precision,
                    "height": opened.contract.height,
                    "width": opened.contract.width,
                }
                for name, opened in service.opened.items()
            ],
            "device": service.settings.device,
            "engine": service.settings.engine,
            "most_bytes": service.settings.most_bytes,
            "most_pixels": service.settings.most_pixels,
            "version": __version__,
        }

    async def metrics() -> Response:
        """The figures for Prometheus."""
        return Response(service.measures.text(), media_type=CONTENT_TYPE_LATEST)

    app.add_api_route("/healthz", healthz)
    app.add_api_route("/readyz", readyz, responses={503: {"description": "loading, draining or failed"}})
    locked: dict[str, Any] = {"responses": {401: {"description": "unauthorized"}}, "dependencies": _key(service)}
    app.add_api_route("/v1/models", models, **locked)
    app.add_api_route("/metrics", metrics, response_class=Response, **locked)


def _key(service: Service) -> list[Any]:
    """The API key for the OpenAPI description, where the service has one; `Guard` asks for it."""
    return [Security(APIKeyHeader(name="X-Api-Key", auto_error=False))] if service.settings.keys else []


async def _one(request: Request, service: Service, default_type: str) -> Response:
    async with _accepted(request, service) as read:
        ((upload,), wanted) = await read(default_type, 1)
        made = await service.make(upload.data, wanted)
    headers = {"X-Sodeploy-Model": made.model}
    if wanted.ignored:
        headers["X-Sodeploy-Ignored"] = ", ".join(sorted(set(wanted.ignored)))
    return Response(made.data, media_type=made.media_type, headers=headers)


async def _several(request: Request, service: Service) -> Response:
    async with _accepted(request, service) as read:
        uploads, wanted = await read("rgba", min(MOST_FILES, service.settings.queue))
        with service.places.take(len(uploads) - 1):  # one is held already

            async def make(upload: Upload) -> Made | Refusal:
                try:
                    return await service.make(upload.data, wanted)
                except Refusal as refusal:
                    service.measures.refused.labels(refusal.code).inc()
                    return refusal

            results = await asyncio.gather(*map(make, uploads))
        pack = as_multipart if MIXED in request.headers.get("accept", "") else as_zip
        names = [upload.name for upload in uploads]
        body, media_type = await asyncio.get_running_loop().run_in_executor(None, pack, names, results)
    return Response(body, headers={"Content-Type": media_type})


_Read = Callable[[str, int], Any]


@contextlib.asynccontextmanager
async def _accepted(request: Request, service: Service) -> AsyncIterator[_Read]:
    """Hold a place for a request until its deadline; gives the function that reads it.

    Raises:
        Refusal: the models are not ready, all places are taken, or the deadline has passed.
    """
    settings, was_read = service.settings, False

    async def read(default_type: str, most_files: int) -> tuple[list[Upload], Wanted]:
        nonlocal was_read
        sent = await read_request(request, settings.most_bytes, most_files)
        was_read = True
        return sent.uploads, parse_parameters(sent.parameters, default_type)

    with contextlib.ExitStack() as held:
        try:
            service.require_ready()
            held.enter_context(service.places.take(1))
        except Refusal:
            await _drain(request)
            raise
        try:
            with anyio.fail_after(settings.deadline_s):
                yield read
        except TimeoutError:
            seconds = f"{settings.deadline_s:g} s"
            if not was_read:
                raise Refusal("slow_upload", f"the request did not arrive within {seconds}") from None
            raise Refusal("deadline", f"there was no picture within {seconds}; send it again later") from None


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    request.app.state.service.measures.refused.labels(error.code).inc()
    return error.response()


async def _drain(request: Request) -> None:
    """Read the rest of a small request: a sender that is still sending would not see the answer."""
    read = 0
    with anyio.move_on_after(2), contextlib.suppress(Exception):
        async for chunk in request.stream():
            read += len(chunk)
            if read > _DRAINED_BYTES:
                return


async def _not_there(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _STATUS_CODES.get(error.status_code)
    if code is None:
        return JSONResponse({"error": {"code": "bad_request", "message": error.detail}}, error.status_code)
    return Refusal(code, f"{request.method} is not served here; see /openapi.json", error.headers).response()
