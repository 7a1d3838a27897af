"""A video into a video of its maps, or of pictures made with them.

Three threads overlap: one decodes, one runs the network, one makes pictures and encodes them.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import numpy as np

from sodeploy import terminal
from sodeploy.artifacts import atomic_write, one_line
from sodeploy.errors import UserError
from sodeploy.runtime.media.conversion import MotionOptions, Smoothing, VideoFormat
from sodeploy.runtime.media.frame import Frame
from sodeploy.runtime.media.items import Item
from sodeploy.runtime.media.mapping import Mapped, Mapper
from sodeploy.runtime.media.pictures import Look, make_picture
from sodeploy.runtime.video.flicker import Flicker
from sodeploy.runtime.video.read_ahead import read_ahead
from sodeploy.runtime.video.reader import TimedFrame, VideoReader
from sodeploy.runtime.video.smoothing import smoothed
from sodeploy.runtime.video.writer import VideoWriter, codec_for, default_format

P = ParamSpec("P")
Source = TypeVar("Source")
_WAITING = 4  # frames between two of the threads


def output_suffix(look: Look, options: MotionOptions) -> str:
    """The suffix of a video's output.

    Raises:
        UserError: the format cannot hold such pictures.
    """
    alpha = look.channels == 4
    format = options.format or default_format(alpha)
    codec_for(format, alpha)
    return f".{format}"


def convert(item: Item, target: Path, mapper: Mapper, look: Look, options: MotionOptions) -> list[str]:
    """Convert a video file; the output has its times and its sound.

    Args:
        target: the file, whole or absent; its suffix tells the format.
        mapper: makes maps.

    Returns:
        The flicker of the maps, one line; with smoothing before and after it.

    Raises:
        UserError: the file is no video, has no frames, or a frame cannot be processed; then there is no output. Or its
            tail is broken or missing; then the output ends there.
        OSError: the output cannot be written, for example for want of space.
    """
    assert item.path is not None
    with VideoReader(item.path, options.most_pixels) as reader, _failures_named(item.path, target):
        raw, final = Flicker(), Flicker()
        with (
            atomic_write(target) as temporary,
            VideoWriter(temporary, reader, cast(VideoFormat, target.suffix[1:].lower())) as writer,
        ):

            def append(one: Mapped[TimedFrame], saliency: np.ndarray) -> None:
                frame, unsmoothed = _of(one)
                final.add(frame.image, saliency)
                if options.smoothing != "none":
                    raw.add(frame.image, unsmoothed)
                writer.write(one.source, make_picture(frame, saliency, look))

            count, began = 0, time.monotonic()

            def rate() -> str:
                return f"{count / (time.monotonic() - began):.1f} frames/s" if count else ""

            with (
                _in_turn(append) as submit,
                read_ahead(reader.frames(), _WAITING) as frames,
                contextlib.closing(mapper.maps(frames, lambda frame: Frame(frame.image))) as made,
            ):
                maps = frames_with_maps(made, options.smoothing)
                for one, saliency in terminal.progress(maps, item.path.name, reader.count, remark=rate):
                    submit(one, saliency)
                    count += 1
            if not count:
                raise UserError(f"{item.path}: {reader.failure}; replace or remove it")
        if reader.failure:
            raise UserError(f"{item.path}: {reader.failure}; {target} holds the {count} frames that could be read")
        return [f"{item.path}: {final}{f' (without smoothing {raw.value:.5f})' if raw.frames else ''}"]


@contextlib.contextmanager
def _failures_named(source: Path, target: Path) -> Iterator[None]:
    """FFmpeg's errors at writing, as ours; those of the system, such as a full disk, stay."""
    import av

    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        reason = one_line(error.strerror or error)
        raise UserError(f"{source}: FFmpeg cannot write {target} ({reason}); choose another --video-format") from None


def frames_with_maps(
    made: Iterator[Mapped[Source]], smoothing: Smoothing
) -> Iterator[tuple[Mapped[Source], np.ndarray]]:
    """Each frame that a mapper has made a map of, with its map, smoothed in time.

    Raises:
        UserError: a frame has no map.
    """
    maps = ((one, _of(one)[1]) for one in made)
    return smoothed(maps, smoothing, lambda one: _of(one)[0].image)


def _of(one: Mapped[Source]) -> tuple[Frame, np.ndarray]:
    """The picture of a frame and its map.

    Raises:
        UserError: the frame has no map.
    """
    if isinstance(one.result, UserError):
        raise one.result
    assert one.frame is not None
    return one.frame, one.result


@contextlib.contextmanager
def _in_turn(work: Callable[P, None]) -> Iterator[Callable[P, None]]:
    """Give a function that does `work` in another thread, one call after another; it waits where many calls wait.

    An error of one call is raised by a later call, or at the end of the block.
    """
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1, "encoder") as worker:

        def submit(*arguments: P.args, **named: P.kwargs) -> None:
            waiting.append(worker.submit(work, *arguments, **named))
            while waiting[0].done() or len(waiting) > _WAITING:
                waiting.popleft().result()
                if not waiting:
                    break

        try:
            yield submit
            while waiting:
                waiting.popleft().result()
        except BaseException:
            worker.shutdown(cancel_futures=True)
            raise
