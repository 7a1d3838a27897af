"""Video files read frame by frame: upright RGB images with their times, and the packets of sound between them.

PyAV, the binding of FFmpeg, decodes. Only the frames under way are in memory, however long the video is.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from sodeploy.artifacts import one_line, require_file
from sodeploy.calib_data.images import MOST_PIXELS, megapixels
from sodeploy.errors import UserError
from sodeploy.runtime.video.color import Color, Converter
from sodeploy.runtime.video.tail import missing_bytes
from sodeploy.terminal import warn

if TYPE_CHECKING:
    import av

_MISSING_TAIL_S = 0.5  # a file without sizes is cut off if it ends so much before the duration in its header


@dataclass(frozen=True)
class TimedFrame:
    """One frame.

    Attributes:
        image: (H, W, 3) uint8 RGB, upright.
        time: when it is shown, in units of the video's `clock` since the start of the file.
        duration: how long, in units of `clock`; 0 where the file does not tell.
        sound: packets of sound that lie before the frame in the file.
    """

    image: np.ndarray
    time: int
    duration: int
    sound: "list[av.Packet]" = field(default_factory=list)


class VideoReader:
    """An open video file; a context manager that closes it.

    Attributes:
        path: the file.
        clock: the unit of times, in seconds.
        rate: frames per second on average.
        count: frames, from the header or estimated from the duration; None where the file does not tell.
        aspect: width / height of a pixel of the upright image.
        color: matrix, primaries and transfer function of the first frame; None before it is read.
        failure: why reading ended before the end of the video; None if it did not.
        rest: packets of sound behind the last frame.
    """

    def __init__(self, path: str | Path, most_pixels: int = MOST_PIXELS) -> None:
        """
        Args:
            most_pixels: the largest width x height of a frame that is decoded.

        Raises:
            UserError: the file is missing, broken, has no video, its frames are too large, or PyAV is not installed.
        """
        try:
            import av
        except ImportError:
            raise UserError(
                f"{path} needs PyAV, which reads videos; install it: pip install 'sodeploy[video]' "
                "(with Python 3.11 or newer)"
            ) from None

        self.path = require_file(path, "give the path of a video")
        try:
            try:
                self._container = av.open(str(path))
            except av.InvalidDataError:  # a fragment of an MP4 that is cut spoils the index of those before it
                self._container = av.open(str(path), options={"fflags": "+ignidx"})
        except (av.FFmpegError, OSError) as error:
            raise UserError(f"{path} is broken or no video ({_reason(error)}); replace or remove it") from None
        try:
            self._open(most_pixels)
        except BaseException:
            self._container.close()
            raise

    def _open(self, most_pixels: int) -> None:
        import av

        cover = av.stream.Disposition.attached_pic  # the picture of a song is no video
        streams = [stream for stream in self._container.streams.video if not stream.disposition & cover]
        if not streams:
            raise UserError(f"{self.path} has no video, only {_kinds(self._container)}; remove it")
        stream = self._stream = streams[0]
        if stream.codec_context is None:
            raise UserError(f"{self.path}: its codec is unknown to FFmpeg; convert the video, for example to H.264")
        pixels = stream.codec_context.width * stream.codec_context.height
        if pixels > most_pixels:
            raise UserError(
                f"{self.path}: frames are {stream.codec_context.width} x {stream.codec_context.height} pixels, "
                f"{megapixels(pixels)} megapixels; the limit is {megapixels(most_pixels)}: make the video smaller or "
                "raise --max-megapixels"
            )
        stream.thread_type = "AUTO"
        self.sounds = [sound for sound in self._container.streams.audio if sound.codec_context is not None]
        self.clock: Fraction = stream.time_base or Fraction(1, 90000)
        self.rate: Fraction = stream.average_rate or stream.guessed_rate or Fraction(25)
        self.count = stream.frames or self._estimated_count()
        self.aspect: Fraction = stream.codec_context.sample_aspect_ratio or Fraction(1)
        self.color: Color | None = None
        self._converter = Converter()
        self._turn = _UPRIGHT
        self.failure: str | None = None
        self.rest: list[av.Packet] = []
        self._start = Fraction(self._container.start_time or 0, 1_000_000)
        self._end = Fraction(0)  # of the last packet, since the start

    def frames(self) -> Iterator[TimedFrame]:
        """Yield each frame in the order of showing; once for each reader.

        A broken or missing tail ends it early and is told in `failure`; a frame that cannot be decoded is left out, as
        a player does, and told there as well.
        """
        import av

        sound: list[av.Packet] = []
        last = -1
        shape: tuple[int, ...] | None = None
        for found in self._decoded():
            if not isinstance(found, av.VideoFrame):
                sound.append(found)
                continue
            image = self._upright(found)
            if shape is not None and image.shape != shape:
                self.failure = (
                    f"its size changes from {shape[1]} x {shape[0]} to {image.shape[1]} x {image.shape[0]}; "
                    "cut it there, and give both parts"
                )
                break
            shape = image.shape
            last = max(self._time(found.pts, found.time_base, last), last + 1)
            yield TimedFrame(image, last, found.duration or 0, sound)
            sound = []
        self.rest = sound
        if shape is None and self.failure is None:
            self.failure = "it has no frames"

    def in_stream_time(self, packet: "av.Packet") -> "av.Packet":
        """The packet of sound with its times since the start of the file."""
        shift = int(self._start / packet.time_base)
        if packet.pts is not None:
            packet.pts -= shift
        if packet.dts is not None:
            packet.dts -= shift
        return packet

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decoded(self) -> Iterator[Any]:
        """Frames and packets of sound as they come, until the end or a failure."""
        import av

        broken = 0
        packets = self._container.demux([self._stream, *self.sounds])
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except (av.FFmpegError, OSError) as error:
                self.failure = f"it is broken after {float(self._end):.1f} s ({_reason(error)})"
                yield from self._flushed()
                return
            moment = packet.dts if packet.pts is None else packet.pts  # Matroska has no dts for some
            if moment is not None and packet.time_base:
                after = moment + (packet.duration or 0)
                self._end = max(self._end, after * packet.time_base - self._start)
            if packet.stream is not self._stream:
                if packet.dts is not None:  # else it is the end of the stream
                    yield packet
                continue
            try:
                yield from packet.decode()
            except av.FFmpegError:
                broken += 1
        if (failure := self._missing_tail()) is not None:
            self.failure = failure
        elif broken:
            self.failure = f"{broken} of its frames are broken and left out"

    def _missing_tail(self) -> str | None:
        """The tail that the file lacks, in words; None if it lacks none, as far as the file tells."""
        count = missing_bytes(self.path, self._container, [self._stream, *self.sounds])
        if count is not None:
            return f"it is cut off: its last {count} bytes are missing" if count else None
        if self._container.format.name == "avi":  # its duration is guessed from the size of the file
            return None
        missing = Fraction(self._container.duration or 0, 1_000_000) - self._end
        return f"its last {float(missing):.1f} s are missing" if missing > _MISSING_TAIL_S else None

    def _flushed(self) -> Iterator[Any]:
        """The frames that the decoder still holds after a failure."""
        import av

        try:
            yield from self._stream.codec_context.decode(None)
        except av.FFmpegError:
            return

    def _upright(self, frame: "av.VideoFrame") -> np.ndarray:
        if self.color is None:
            self.color = Color.of(frame)
            if self.color.is_high_dynamic_range:
                warn(
                    f"{self.path} is HDR; its colors are taken as they are, so pictures look flat: convert it to SDR "
                    "first"
                )
            # Only once: a frame that was asked for its side data waits for Python's collector of circles.
            self._turn = _turn(frame)
            if self._turn[0][0] == 0:
                self.aspect = 1 / self.aspect
        image = self._converter.to_rgb(frame, self.color)
        (a, b), (c, d) = self._turn
        if a == 0:  # x' = c y, y' = b x
            return np.ascontiguousarray(image.transpose(1, 0, 2)[:: b or 1, :: c or 1])
        return image if a == d == 1 else np.ascontiguousarray(image[::d, ::a])

    def _time(self, pts: int | None, clock: Fraction | None, last: int) -> int:
        """A frame's time since the start; without a time stamp, one frame after the one before."""
        if pts is None:
            return last + max(round(1 / self.rate / self.clock), 1) if last >= 0 else 0
        since_start = pts * (clock or self.clock) - self._start
        return max(round(since_start / self.clock), 0)

    def _estimated_count(self) -> int | None:
        if not self._container.duration:
            return None
        return round(Fraction(self._container.duration, 1_000_000) * self.rate)


_UPRIGHT = ((1, 0), (0, 1))


def _turn(frame: "av.VideoFrame") -> tuple[tuple[int, int], tuple[int, int]]:
    """How the frame is turned and mirrored to be upright, in quarters: x' = a x + c y, y' = b x + d y.

    From the display matrix of ISO/IEC 14496-12, nine numbers ((a, b, u), (c, d, v), (x, y, w)).
    """
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return _UPRIGHT
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].astype(float)
    if max(abs(a), abs(d)) >= max(abs(b), abs(c)):
        return ((int(np.sign(a)) or 1, 0), (0, int(np.sign(d)) or 1))
    return ((0, int(np.sign(b)) or 1), (int(np.sign(c)) or 1, 0))


def _kinds(container: Any) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"


def _reason(error: BaseException) -> str:
    return one_line(getattr(error, "strerror", None) or error)
