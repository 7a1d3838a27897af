"""Around every request: headers for safety, the API key, the figures, and an end for errors that nobody caught."""

import hmac
import time
import traceback
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sodeploy import terminal
from sodeploy.runtime.serve.refusals import Refusal
from sodeploy.runtime.serve.service import Service
from sodeploy.runtime.serve.settings import digest

_CSP = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_SAFETY = {
    "Content-Security-Policy": _CSP,
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_LOCKED = ("/v1/", "/v1.0/", "/api/", "/metrics")  # what an API key opens; the page and the health checks are open


class Guard:
    """ASGI middleware; the outermost of ours."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _SAFETY.items():
                    headers[name] = value
                if self._service.state == "draining":  # the client's next connection finds another process
                    headers["Connection"] = "close"
            await send(message)

        try:
            if scope["path"].startswith(_LOCKED) and not self._is_known(Headers(scope=scope)):
                refusal = Refusal(
                    "unauthorized", "send the API key in the header X-Api-Key", {"WWW-Authenticate": "Bearer"}
                )
                await refusal.response()(scope, receive, send_guarded)
            else:
                await self._app(scope, receive, send_guarded)
        except ClientDisconnect:
            return
        except Exception as error:
            terminal.warn(f"a defect of the service: {_place(error)}")
            if status:
                raise
            await Refusal("internal", "a defect of the service; see its log").response()(scope, receive, send_guarded)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "") or "other"
            self._service.measures.requests.labels(path, str(status)).inc()
            self._service.measures.seconds.labels(path).observe(time.monotonic() - began)

    def _is_known(self, headers: Headers) -> bool:
        """Whether the request has one of the keys. Every key is compared, each in constant time."""
        keys = self._service.settings.keys
        if not keys:
            return True
        bearer = headers.get("authorization", "")
        given = headers.get("x-api-key") or (bearer[7:] if bearer[:7].lower() == "bearer " else "")
        mine = digest(given)
        return sum(hmac.compare_digest(mine, key) for key in keys) > 0  # `any` would end at the first


def _place(error: Exception) -> str:
    """The kind of an error and the lines where it arose; its text might repeat something of a request."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return f"{type(error).__name__} at " + " < ".join(
        f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames)
    )
