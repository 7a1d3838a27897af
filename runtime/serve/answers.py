"""The answer to a batch: a zip archive, or multipart/mixed."""

import json
import re
import secrets
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import PurePosixPath
from typing import NamedTuple

from sodeploy.runtime.serve.refusals import Refusal
from sodeploy.runtime.serve.service import Made

RESULTS = "results.json"
ZIP, MIXED = "application/zip", "multipart/mixed"


class _Entry(NamedTuple):
    """One file of the answer."""

    name: str
    media_type: str
    data: bytes


def as_zip(names: Sequence[str], results: Sequence[Made | Refusal]) -> tuple[bytes, str]:
    """(bytes, media type) of an archive: the pictures, and `RESULTS`, which has one entry for every input, in order.

    Args:
        names: of the files that were sent.
    """
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:  # stored: pictures are compressed already
        for entry in _entries(names, results):
            writer.writestr(entry.name, entry.data)
    return archive.getvalue(), ZIP


def as_multipart(names: Sequence[str], results: Sequence[Made | Refusal]) -> tuple[bytes, str]:
    """(bytes, media type) of a message of several parts (RFC 2046): the same files as in `as_zip`, `RESULTS` first."""
    boundary = secrets.token_hex(16)
    *pictures, index = _entries(names, results)
    parts = [
        f"--{boundary}\r\nContent-Type: {entry.media_type}\r\n"
        f'Content-Disposition: attachment; filename="{entry.name}"\r\n\r\n'.encode()
        + entry.data
        for entry in (index, *pictures)
    ]
    body = b"\r\n".join([*parts, f"--{boundary}--\r\n".encode()])
    return body, f"{MIXED}; boundary={boundary}"


def _entries(names: Sequence[str], results: Sequence[Made | Refusal]) -> list[_Entry]:
    """The files of the pictures, then the index of all inputs."""
    found: list[_Entry] = []
    index: list[dict[str, object]] = []
    taken: set[str] = {RESULTS}
    for number, (name, result) in enumerate(zip(names, results, strict=True), 1):
        if isinstance(result, Refusal):
            index.append({"input": number, **result.body})
            continue
        file = _free_name(_stem(name) or f"{number}", result.suffix, taken)
        taken.add(file.lower())
        index.append({"input": number, "file": file, "model": result.model})
        found.append(_Entry(file, result.media_type, result.data))
    found.append(_Entry(RESULTS, "application/json", json.dumps(index, indent=1).encode()))
    return found


def _stem(name: str) -> str:
    """The sender's file name without folders and ending, harmless in an archive and in a header."""
    stem = PurePosixPath(name.replace("\\", "/")).stem
    return re.sub(r"[^A-Za-z0-9._ -]", "_", stem).strip(". ")[:100]


def _free_name(stem: str, suffix: str, taken: set[str]) -> str:
    name, number = f"{stem}{suffix}", 1
    while name.lower() in taken:
        number += 1
        name = f"{stem}-{number}{suffix}"
    return name
