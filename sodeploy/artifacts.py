"""Files that are either whole or absent, and the manifest that says how each came to be."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sodeploy import terminal
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


_BLOCK = 2**18  # bytes that are read at once; a new block of MiBs takes longer to get than to fill


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces `path` when the block ends well.

    If the block raises, or the process dies, the former content of `path` is untouched. The content is on the disk
    before it gets its name. Missing folders are made. A link is written through: its target is replaced. A device or a
    pipe is not replaced: the content is copied into it. Temporary files that killed runs left here are removed.

    Raises:
        UserError: `path` is a folder, or one of the folders above it is a file.
        OSError: for example no space is left; names `path`.
    """
    path = Path(path)
    check_output(path)
    streams = _is_stream(path)
    target = Path(os.path.realpath(path)) if path.is_symlink() and not streams else path
    folder = Path(tempfile.gettempdir()) if streams else target.parent
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    # The suffix stays at the end: cv2 and numpy choose a format, or append one, by the name's end.
    begin = f".{target.stem[:40]}.{_PLACE}-{os.getpid()}-"
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=begin, suffix=f".partial{target.suffix}")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    os.close(handle)
    temporary = Path(name)
    try:
        try:
            yield temporary
            _flush(temporary)
            if streams:
                with open(temporary, "rb") as content, open(path, "ab") as stream:
                    shutil.copyfileobj(content, stream)
            else:
                os.chmod(temporary, 0o666 & ~_umask())
                temporary.replace(target)
            terminal.debug(f"wrote {path}")
        except OSError as error:
            if error.filename not in (None, str(temporary)):
                raise
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole text file, atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a whole file, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def check_output(path: str | Path) -> None:
    """Refuse a place where no file can be written, before any work is done for it.

    Raises:
        UserError: `path` is a folder, one of the folders above it is a file, or this user may not write there.
    """
    path = Path(path)
    if _is_stream(path) and not path.is_dir():
        if not path.exists():
            raise UserError(f"{path} cannot be written: there is no such device; choose another output")
        return
    if path.is_dir():
        raise UserError(f"{path} is a folder, and a file is to be written there; give the name of a file")
    check_output_folder(path.parent, path)


def check_output_folder(folder: str | Path, output: str | Path | None = None) -> None:
    """Refuse a folder that cannot be made or written: it or a folder above it is a file, or is not ours to write.

    Raises:
        UserError: that is so; `output`, the folder itself by default, is named.
    """
    folder = Path(folder)
    for place in (folder, *folder.parents):
        kind = _kind(place)  # asked once: another thread may make the folder meanwhile
        if kind == "a folder":
            if not os.access(place, os.W_OK | os.X_OK):
                raise UserError(
                    f"{output or folder} cannot be written: {place} is read-only for this user; choose another output"
                )
            return
        if kind:
            raise UserError(
                f"{output or folder} cannot be written: {place} is {kind}, not a folder; choose another output"
            )


def _kind(path: Path) -> str:
    """The kind of a path, as a text such as "a file"; empty where there is nothing."""
    try:
        return "a folder" if stat.S_ISDIR(path.stat().st_mode) else "a file"
    except OSError:
        return "a link that leads nowhere" if path.is_symlink() else ""


def check_apart(outputs: Iterable[str | Path], inputs: Iterable[str | Path]) -> None:
    """Refuse an output that would overwrite an input, whatever links, spellings or hard links lead there.

    Raises:
        UserError: both are one file, or their names differ in case alone, in one folder.
    """
    known: dict[object, str | Path] = {}
    for file in inputs:
        known.update(dict.fromkeys(_identities(Path(file)), file))
    for file in outputs:
        if same := next((known[key] for key in _identities(Path(file)) if key in known), None):
            raise UserError(f"{file} would overwrite the input {same}; choose another output")


def _identities(file: Path) -> list[object]:
    """The keys by which two spellings of one file agree."""
    folder = os.path.realpath(file.parent)
    keys: list[object] = [os.path.join(folder, file.name).casefold(), os.path.realpath(file)]
    with contextlib.suppress(OSError):
        status = file.stat()
        if stat.S_ISREG(status.st_mode):
            keys.append((status.st_dev, status.st_ino))
    return keys


def _is_stream(path: Path) -> bool:
    """Whether `path` is a device, a pipe, or another file that cannot be replaced."""
    if path.is_absolute() and path.parts[1:2] in (("dev",), ("proc",)) and path.parts[:3] != ("/", "dev", "shm"):
        return True
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _flush(path: Path) -> None:
    """Wait until a file's content is on the disk; some systems say only then that there was no space."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _place() -> str:
    """Where this process's number means something: the host, and on Linux the container."""
    name = platform.node()
    with contextlib.suppress(OSError):
        name += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(name.encode()).hexdigest()[:8]


_PLACE = _place()
_LEFTOVER = re.compile(rf"\..*\.{_PLACE}-(\d+)-\w+\.partial(\..*)?")


@functools.lru_cache(maxsize=1024)
def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of runs on this machine that were killed; once per folder and process."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            match = _LEFTOVER.fullmatch(entry.name)
            if match and not _is_running(int(match[1])):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it runs, as another user
        return True
    return True


def sha256(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    return digest(path, "sha256")


def digest(path: str | Path, kind: str) -> str:
    """Hex digest of a file's bytes, of a kind that hashlib has, such as "md5"."""
    total = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            total.update(block)
    return total.hexdigest()


def require_file(path: str | Path, remedy: str) -> Path:
    """`path`, if it is an existing file.

    Raises:
        UserError: it is missing, a folder, a pipe or a device; the message ends with `remedy`.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file; {remedy}")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a pipe or a device, not a file; {remedy}")
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
        UserError: the manifest is not a JSON object.
    """
    path = manifest_path(artifact)
    return read_json(path, f"make {Path(artifact).name} again") if path.exists() else {}


def read_json(path: str | Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: missing, larger than 1 GiB, or no JSON object; the message ends with `remedy`.
    """
    return parse_json(read_bytes(path, remedy), path, remedy)


def parse_json(text: str | bytes, source: str | Path, remedy: str) -> dict[str, Any]:
    """The JSON object in `text`.

    Raises:
        UserError: it is none; the message names `source` and ends with `remedy`.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is not JSON ({one_line(error)}); {remedy}") from None
    if not isinstance(content, dict):
        raise UserError(f"{source} holds a JSON {type(content).__name__}, not an object with keys; {remedy}")
    return content


def read_bytes(path: str | Path, remedy: str, most: int = 1 << 30) -> bytes:
    """The content of a file of at most `most` bytes.

    Raises:
        UserError: missing, a folder, larger, or not readable; the message ends with `remedy`.
    """
    path = require_file(path, remedy)
    try:
        if (size := path.stat().st_size) > most:
            raise UserError(f"{path} has {size} bytes, more than such a file can have ({most}); {remedy}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {remedy}") from None


def one_line(text: object, most: int = 200) -> str:
    """A message of others on one line, without control characters, cut to `most` characters."""
    words = " ".join(str(text).split())
    escaped = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in words)
    return escaped if len(escaped) <= most else f"{escaped[: most - 3]}..."


def versions() -> dict[str, str]:
    """The version of Python, and of each installed package that shapes our artifacts."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
