"""One run at a time in an output folder."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from sodeploy.artifacts import check_output_folder
from sodeploy.errors import UserError


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold `folder` for this run alone, so that two runs do not mix their files in it; the folder is made.

    The system frees the lock when the process ends, however it ends. Nothing is left in the folder, and a folder that
    was made for nothing, because the run failed, is removed.

    Raises:
        UserError: another run holds the folder.
    """
    folder = Path(folder)
    check_output_folder(folder)
    with _made(folder):
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        handle = os.open(folder, os.O_RDONLY)
        _held.add(handle)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another run{_holder(handle)} is writing into {folder}; wait until it has ended, or choose "
                    "another output folder"
                ) from None
            yield
        finally:
            _held.discard(handle)
            os.close(handle)


_held: set[int] = set()  # handles of folders that this process holds


def _let_go() -> None:
    """Close them in a process that was forked: one that outlives its parent would keep the folder from the next run."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder; where the block fails and leaves nothing in it, a folder that was not there before goes again."""
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if not existed:
            with contextlib.suppress(OSError):  # not empty: finished files stay
                folder.rmdir()
        raise


def _holder(handle: int) -> str:
    """The process that holds the lock on an open folder, as " (process 123)"; "" where the system does not tell."""
    try:
        inode, locks = os.fstat(handle).st_ino, Path("/proc/locks").read_text()
    except OSError:
        return ""
    # Only the inode is compared: a layered file system, as containers have, reports another device there.
    held = re.search(rf"^\d+: FLOCK +\S+ +\S+ +(\d+) \S+:{inode} ", locks, re.MULTILINE)
    return f" (process {held[1]})" if held else ""
