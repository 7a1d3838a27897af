"""Writing the outputs of a run, and counting them and the failures."""

import errno
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from sodeploy import terminal
from sodeploy.errors import UserError
from sodeploy.runtime.composition import Style
from sodeploy.runtime.errors import DeviceLost
from sodeploy.runtime.media.conversion import MotionOptions, conversion
from sodeploy.runtime.media.items import Item
from sodeploy.runtime.media.kinds import MOVING
from sodeploy.runtime.media.mapping import Mapped, Mapper
from sodeploy.runtime.media.pictures import Look, finish_picture
from sodeploy.runtime.media.still import write_still
from sodeploy.workers import usable_cores

_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # no later output would fare better


@dataclass
class Outcome:
    """The result of a run of `sodeploy.runtime.infer`.

    Attributes:
        written: pictures and videos.
        skipped: outputs that stood there already.
        failed: source -> why it has no output; one line each.
        stopped: why the run ended before all was done, and what to do; empty if it did not.
    """

    written: int = 0
    skipped: int = 0
    failed: dict[Path, str] = field(default_factory=dict)
    stopped: str = ""

    def fail(self, source: Item | Path, reason: str) -> None:
        """Note a failure, and warn of it."""
        path = source if isinstance(source, Path) else source.path or Path(source.name)
        self.failed[path] = reason if str(path) in reason else f"{path}: {reason}"
        terminal.warn(self.failed[path])

    def fail_to_write(self, source: Item, error: OSError) -> None:
        """Note an output that the system refuses; where no later one would fare better, the run is to stop."""
        reason = f"{error.filename or 'output'}: {error.strerror}"
        self.fail(source, reason)
        if error.errno in _HOPELESS:
            self.stopped = f"{reason}; make room or choose another output"


def write_all(
    made: Iterator[Mapped[Item]],
    targets: dict[Item, Path],
    write: Callable[[Mapped[Item], Path], None],
    outcome: Outcome,
) -> None:
    """Finish and write pictures as they come, beside the making of the next."""
    with ThreadPoolExecutor(usable_cores(), "writer") as writers:
        writing: deque[tuple[Item, Future[None]]] = deque()
        try:
            for one in _until_lost(terminal.progress(made, "images", len(targets), remark=_rate(outcome)), outcome):
                if isinstance(one.result, UserError):
                    outcome.fail(one.source, str(one.result))
                else:
                    writing.append((one.source, writers.submit(write, one, targets[one.source])))
                while writing and (writing[0][1].done() or len(writing) > 4 * usable_cores()):
                    _await(*writing.popleft(), outcome)
                if outcome.stopped:
                    break
            while writing:
                _await(*writing.popleft(), outcome)
        except BaseException:
            writers.shutdown(cancel_futures=True)
            raise


def _until_lost(made: Iterator[Mapped[Item]], outcome: Outcome) -> Iterator[Mapped[Item]]:
    """The maps up to the loss of the GPU, which ends the run; those that were made are still written."""
    try:
        yield from made
    except DeviceLost as error:
        outcome.stopped = str(error)


def _rate(outcome: Outcome) -> Callable[[], str]:
    """Tells how many pictures are written in a second, from now on."""
    began, before = time.monotonic(), outcome.written

    def rate() -> str:
        written = outcome.written - before
        return f"{written / (time.monotonic() - began):.1f} a second" if written else ""

    return rate


def write_one(one: Mapped[Item], target: Path, style: Style, look: Look, suffix: str) -> None:
    """Finish the picture of one image and write it; see `finish_picture` and `write_still`."""
    assert one.frame is not None
    assert not isinstance(one.result, UserError)
    picture = finish_picture(one.frame, one.result, style, look)
    write_still(target, picture, suffix, one.frame.profile if look.channels > 1 else None)


def _await(item: Item, writing: "Future[None]", outcome: Outcome) -> None:
    """Count a picture that a writer has finished, or its failure."""
    try:
        writing.result()
        outcome.written += 1
    except BrokenPipeError:  # the reader of our standard output left
        raise
    except UserError as error:
        outcome.fail(item, str(error))
    except MemoryError:
        outcome.fail(item, "its picture needs more memory than there is; make the image smaller or remove it")
    except OSError as error:
        outcome.fail_to_write(item, error)


def convert_one(item: Item, target: Path, mapper: Mapper, look: Look, motion: MotionOptions, outcome: Outcome) -> None:
    """Convert a moving source, such as a video, and count it or its failure."""
    try:
        for note in conversion(item.kind).convert(item, target, mapper, look, motion):
            terminal.note(note)
        outcome.written += not MOVING[item.kind].live
    except UserError as error:
        outcome.fail(item, str(error))
        if isinstance(error, DeviceLost):
            outcome.stopped = str(error)
    except OSError as error:
        outcome.fail_to_write(item, error)
