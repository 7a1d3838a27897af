"""The settings of the service, as the command line gives them."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sodeploy.artifacts import require_file
from sodeploy.errors import UserError
from sodeploy.runtime.session import EngineName

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # prometheus-client's variable; set where several workers share one port
LEAST_KEY = 16  # characters; a shorter key can be found by trying


@dataclass(frozen=True)
class Settings:
    """The settings of one service.

    Attributes:
        models: name -> file; the first is the one that a request without `model` gets.
        gpu: index of the GPU; None for the CPU.
        engine: the runtime of ONNX models on a CPU.
        threads: CPU threads within one operator of an ONNX model; one per core by default.
        batch: pictures in one run of a network, at most.
        window_s: seconds that a run waits for more pictures.
        queue: pictures that are accepted and not answered yet, at most, in one process.
        deadline_s: seconds from the end of a request's head to its answer, and for the head itself, at most.
        most_pixels: the largest width x height of a picture that is decoded.
        most_bytes: the largest file of a picture.
        keys: SHA-256 digests of the API keys; empty: no key is asked for.
        workers: processes that share the port.
        drain_s: seconds after SIGTERM in which new connections are still served; then the port closes.
        failure_file: where a worker writes why it cannot serve, for the process that started it.
    """

    models: Mapping[str, Path]
    gpu: int | None = None
    engine: EngineName = "onnxruntime"
    threads: int | None = None
    batch: int = 8
    window_s: float = 0.004
    queue: int = 64
    deadline_s: float = 30.0
    most_pixels: int = 50_000_000
    most_bytes: int = 32_000_000
    keys: tuple[bytes, ...] = field(default=(), repr=False)
    workers: int = 1
    drain_s: float = 1.0
    failure_file: Path | None = None

    @property
    def device(self) -> str:
        """ "cpu", or "cuda:0" for the first GPU."""
        return "cpu" if self.gpu is None else f"cuda:{self.gpu}"


def parse_models(texts: Sequence[str]) -> dict[str, Path]:
    """Name -> file, of texts such as "out/u2netp.onnx" (its name is u2netp) or "fp32=out/u2netp.onnx".

    Raises:
        UserError: a file is missing, a name stands twice, or it is no name.
    """
    models: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name, path = "", text
        file = require_file(Path(path), "give --model FILE or --model NAME=FILE")
        name = name or re.sub(r"[^A-Za-z0-9._-]", "-", file.stem).lstrip("._-")
        if not _NAME.fullmatch(name):
            raise UserError(f"--model {text}: {name!r} is no name; take letters, digits, '.', '_' and '-'")
        if name in models:
            raise UserError(f"--model {text}: the name {name} stands twice; give one as NAME={file}")
        models[name] = file
    return models


def read_keys(path: Path) -> tuple[bytes, ...]:
    """The SHA-256 digests of the API keys in a file, one key a line; the keys themselves are not kept.

    Raises:
        UserError: the file is missing, is no text, or holds no key or one that is too short.
    """
    try:
        lines = require_file(path, "write a key into it").read_text().splitlines()
    except (UnicodeDecodeError, OSError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"--api-key-file {path} cannot be read: {reason}; write one key a line") from None
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise UserError(f"--api-key-file {path} holds no key; write one key a line")
    if any(len(key) < LEAST_KEY or not key.isascii() for key in keys):
        raise UserError(
            f"--api-key-file {path}: a key has {LEAST_KEY} ASCII characters or more; make one, for example by "
            "openssl rand -hex 24"
        )
    return tuple(digest(key) for key in keys)


def digest(key: str) -> bytes:
    """The SHA-256 digest of a key. Digests have one length, so comparing them tells nothing of a key's length."""
    return hashlib.sha256(key.encode()).digest()
