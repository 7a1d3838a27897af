"""Files that are either whole or absent, and the manifest that says how each came to be."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sodeploy.errors import UserError

# The packages that shape our artifacts.
_PACKAGES = (
    "sodeploy",
    "numpy",
    "opencv-python-headless",
    "torch",
    "onnx",
    "onnxsim",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "pysodmetrics",
)


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces `path` when the block ends well.

    If the block raises, or the process dies, whatever stood at `path` before is untouched. Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffixes stay at the end: cv2 and numpy choose a format, or append one, by what the name ends with.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=f".partial{path.suffix}")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole text file, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def require_file(path: str | Path, remedy: str) -> Path:
    """`path`, if it is an existing file.

    Raises:
        UserError: it is missing or a folder; the message ends with `remedy`.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file; {remedy}")
    if not path.is_file():
        raise UserError(f"{path} does not exist; {remedy}")
    return path


def manifest_path(artifact: str | Path) -> Path:
    """Where the manifest of `artifact` lies: `u2netp.onnx` -> `u2netp.onnx.json`."""
    return Path(f"{artifact}.json")


def write_manifest(artifact: str | Path, inputs: Mapping[str, str | Path], **facts: Any) -> None:
    """Write the manifest of a finished artifact beside it.

    Args:
        inputs: role -> file that the artifact was made from; recorded with its sha256.
        facts: whatever else identifies the artifact (method, seed, GPU name, ...); JSON values.
    """
    record = {
        "artifact": Path(artifact).name,
        "sha256": sha256(artifact),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": versions(),
        "inputs": {role: {"path": str(path), "sha256": sha256(path)} for role, path in inputs.items()},
        **facts,
    }
    write_text(manifest_path(artifact), json.dumps(record, indent=2) + "\n")


def read_manifest(artifact: str | Path) -> dict[str, Any]:
    """The manifest beside `artifact`, or {} where there is none.

    Raises:
        UserError: the manifest is not JSON.
    """
    path = manifest_path(artifact)
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path} is not a manifest ({error}); make {Path(artifact).name} again") from None
    return record


def versions() -> dict[str, str]:
    """Python's version and that of each package that shapes our artifacts, where installed."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
