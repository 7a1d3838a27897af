"""Reading a request: its pictures and its parameters, in memory and within limits."""

import logging
from collections.abc import AsyncGenerator
from typing import NamedTuple

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from sodeploy.runtime.serve.parameters import refuse_urls
from sodeploy.runtime.serve.refusals import Refusal

FILE_FIELDS = ("file", "image_file")  # rembg's name, and remove.bg's
TOGETHER = 4  # times the largest picture: all pictures of one request together
_FORM_BYTES = 64 << 10  # of the fields and the boundaries of a form
_FIELD_BYTES = 1 << 10  # of one field
_MOST_FIELDS = 32
_MIXED = "multipart/form-data"
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it would log parts of broken requests


class Upload(NamedTuple):
    """One picture as it was sent.

    Attributes:
        name: the name of its file, for the names in the answer to a batch; "" where it has none.
        data: the bytes of the file.
    """

    name: str
    data: bytes


class Sent(NamedTuple):
    """The content of a request: its pictures, and its parameters from the query and the form."""

    uploads: list[Upload]
    parameters: list[tuple[str, str]]


class _InMemory(MultiPartParser):
    """Starlette's parser without its temporary files: a picture never reaches a disk."""

    spool_max_size = 1 << 40


async def read_request(request: Request, most_bytes: int, most_files: int = 1) -> Sent:
    """Read a form with pictures, or one picture as the whole body.

    Args:
        most_bytes: the largest picture; several together are at most `TOGETHER` times as large.
        most_files: pictures in the request, at most.

    Raises:
        Refusal: the request is too large, of another kind, broken, or has no picture.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and kind not in (_MIXED, "application/octet-stream") and not kind.startswith("image/"):
        raise Refusal(
            "unsupported_media_type",
            f"send {_MIXED} with the field file, or the bytes of a picture as image/* or application/octet-stream",
        )
    parameters = list(request.query_params.multi_items())
    limit = most_bytes * min(most_files, TOGETHER) + (_FORM_BYTES if kind == _MIXED else 0)
    stream = _limited(request, limit, most_bytes)
    if kind != _MIXED:
        data = b"".join([chunk async for chunk in stream])
        uploads = [Upload("", data)]
    else:
        uploads, fields = await _read_form(request, stream, most_files)
        parameters += fields
    refuse_urls(name for name, _ in parameters)
    if not uploads or not any(upload.data for upload in uploads):
        raise Refusal("no_picture", "there is no picture in the request; send it in the field file, or as the body")
    if len(uploads) > most_files:
        raise _too_many(most_files)
    if any(len(upload.data) > most_bytes for upload in uploads):
        raise _too_large(most_bytes)
    return Sent(uploads, parameters)


async def _read_form(
    request: Request, stream: AsyncGenerator[bytes, None], most_files: int
) -> tuple[list[Upload], list[tuple[str, str]]]:
    parser = _InMemory(
        request.headers, stream, max_files=most_files + 1, max_fields=_MOST_FIELDS, max_part_size=_FIELD_BYTES
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise _too_many(most_files) from None
        raise Refusal("bad_request", f"the form is broken: {error.message}") from None
    except (ValueError, LookupError):
        raise Refusal("bad_request", "the form is broken") from None
    uploads: list[Upload] = []
    fields: list[tuple[str, str]] = []
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name not in FILE_FIELDS:
                    raise Refusal("unknown_parameter", f"there is no file field {name[:60]!r}; pictures stand in file")
                uploads.append(Upload(value.filename or "", value.file.read()))
            elif name in FILE_FIELDS and value:
                raise Refusal("no_picture", f"the field {name} holds text; send a file, with a file name")
            elif name not in FILE_FIELDS:
                fields.append((name, value))
    finally:
        await form.close()
    return uploads, fields


async def _limited(request: Request, limit: int, most_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body, unless it is too large: by its declared length at once, else as soon as it is seen."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(most_bytes)
    read = 0
    async for chunk in request.stream():
        read += len(chunk)
        if read > limit:
            raise _too_large(most_bytes)
        yield chunk


def _too_large(most_bytes: int) -> Refusal:
    return Refusal(
        "too_many_bytes",
        f"a picture's file is at most {most_bytes / 1e6:g} MB, all of a batch {TOGETHER} times that; make it smaller",
    )


def _too_many(most_files: int) -> Refusal:
    pictures = "one picture" if most_files == 1 else f"{most_files} pictures"
    return Refusal("too_many_files", f"there are more files than {pictures}; send several requests")
