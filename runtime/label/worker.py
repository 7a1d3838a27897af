"""A worker: it opens the network once and labels one part after another. Ray starts it, and another where it dies."""

import contextlib
import time
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sodeploy.errors import UserError
from sodeploy.runtime.composition import Style
from sodeploy.runtime.label.parts import Part
from sodeploy.runtime.media.items import Found, Item
from sodeploy.runtime.media.kinds import MOVING
from sodeploy.runtime.media.opening import ModelFile, open_mappers
from sodeploy.runtime.media.outcome import Outcome, write_all, write_one
from sodeploy.runtime.media.pictures import Look
from sodeploy.runtime.media.targets import plan_targets


@dataclass(frozen=True)
class Job:
    """The work that all workers share.

    Attributes:
        model: as every worker opens it; its `threads` are the cores of a worker.
        output: the folder of the pictures.
        look: of the pictures.
        suffix: of the pictures' files.
        most_pixels: of an image that is decoded.
        batch: images in one run of the network on cuda.
    """

    model: ModelFile
    output: Path
    look: Look
    suffix: str
    most_pixels: int
    batch: int | None


class Worker:
    """Labels parts. What it returns for each is a row of a table."""

    def __init__(self, job: Job) -> None:
        """
        Raises:
            UserError: the model is unfit.
        """
        began = time.monotonic()
        self._job = job
        self._name = uuid.uuid4().hex
        with contextlib.ExitStack() as resources:
            self._opened = resources.enter_context(open_mappers(job.model, job.batch, None))
            self._resources = resources.pop_all()
        self._ready_s = time.monotonic() - began

    def __call__(self, part: Part) -> dict[str, Any]:
        """Label one part.

        A picture that stands there is left as it is: a worker that died may have made it.
        """
        began = time.time()
        outcome = Outcome()
        read = written = 0
        try:
            with part.opened() as found:
                read, written = self._label(found, outcome)
                read += part.size
        except UserError as error:
            outcome.fail(Path(getattr(part, "path", "")), str(error))
        except OSError as error:
            outcome.stopped = f"{error.filename or self._job.output}: {error.strerror}; correct it"
        return {
            "worker": self._name,
            "ready_s": self._ready_s,
            "began": began,
            "ended": time.time(),
            "written": outcome.written,
            "skipped": outcome.skipped,
            "bytes_read": read,
            "bytes_written": written,
            "failed": outcome.failed,
            "stopped": outcome.stopped,
        }

    def _label(self, found: Found, outcome: Outcome) -> tuple[int, int]:
        """Make the pictures of a part; the bytes of files that were read, and the bytes that were written."""
        job = self._job
        for source, reason in found.failed.items():
            outcome.fail(Path(source), reason)
        safe = Found([item for item in found.items if _is_safe(item, outcome)])
        targets = plan_targets(safe, job.output, {"image": job.suffix})
        outcome.skipped = len(targets.skipped)
        for item, reason in targets.failed.items():
            outcome.fail(item, reason)
        todo = targets.todo
        kernel: Style = job.look.kernel if job.model.on_device else "map"
        made = self._opened.mapper(kernel).maps(
            todo, partial(Item.read, most_pixels=job.most_pixels, whole=job.look.whole_frame)
        )
        with contextlib.closing(made):
            write_all(made, todo, partial(write_one, style=kernel, look=job.look, suffix=job.suffix), outcome)
        read = sum(item.path.stat().st_size for item in todo if item.path is not None and item.path.is_file())
        return read, sum(target.stat().st_size for target in todo.values() if target.is_file())


def _is_safe(item: Item, outcome: Outcome) -> bool:
    """Whether an item can become a picture; one that cannot is noted."""
    if item.kind in MOVING:
        outcome.fail(item, f"{item} is a {item.kind}; make its pictures with infer")
        return False
    if ".." in Path(item.name).parts or Path(item.name).is_absolute():
        outcome.fail(item, f"{item} leads out of the destination; rename it")
        return False
    return True
