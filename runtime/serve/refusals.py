"""The answers to a request that gets no picture: a status, a code for programs, and a sentence for people.

`STATUS` is the table of them; a new one costs one entry.
"""

from collections.abc import Mapping

from starlette.responses import JSONResponse

STATUS = {
    "bad_request": 400,
    "unauthorized": 401,
    "not_found": 404,
    "method_not_allowed": 405,
    "slow_upload": 408,
    "too_many_bytes": 413,
    "too_many_pixels": 413,
    "too_many_files": 413,
    "unsupported_media_type": 415,
    "no_picture": 422,
    "bad_picture": 422,
    "bad_parameter": 422,
    "unknown_parameter": 422,
    "unknown_model": 422,
    "url_refused": 422,
    "busy": 429,
    "model_failed": 500,
    "internal": 500,
    "loading": 503,
    "out_of_memory": 503,
    "deadline": 504,
}


class Refusal(Exception):
    """A request, or one picture of it, that is not served.

    Attributes:
        code: a key of `STATUS`.
        headers: further headers of the answer.
    """

    def __init__(self, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code, self.headers = code, dict(headers or {})

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS[self.code]

    @property
    def body(self) -> dict[str, dict[str, str]]:
        """The JSON of the answer."""
        return {"error": {"code": self.code, "message": str(self)}}

    def response(self) -> JSONResponse:
        """The answer itself."""
        return JSONResponse(self.body, self.status, self.headers)
