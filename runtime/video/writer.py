"""Video files written frame by frame, with the times and the sound of the video they are made from."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from sodeploy.errors import UserError
from sodeploy.runtime.media.conversion import VideoFormat
from sodeploy.runtime.video.color import Color, Converter, Matrix, Range
from sodeploy.runtime.video.reader import TimedFrame, VideoReader
from sodeploy.terminal import note, warn

if TYPE_CHECKING:
    import av


class Codec(NamedTuple):
    """An encoder of pictures.

    Attributes:
        name: FFmpeg's name of the encoder.
        pixels: FFmpeg's name of the pixel format.
        multiple: width and height are multiples of it.
        options: of the encoder.
    """

    name: str
    pixels: str
    multiple: int
    options: Mapping[str, str]


# The quality is constant, and high enough that a map keeps its edges. The x264 of PyAV 18 reads memory that it has not
# written for its tree of macroblocks: the same pictures then give other bytes each time.
_H264 = Codec("libx264", "yuv420p", 2, MappingProxyType({"crf": "18", "mbtree": "0"}))
_VP9_OPTIONS = {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}
_VP9 = Codec("libvpx-vp9", "yuv420p", 1, MappingProxyType(_VP9_OPTIONS))
# Frames that are never shown have no alpha of their own.
_VP9_ALPHA = Codec("libvpx-vp9", "yuva420p", 1, MappingProxyType({**_VP9_OPTIONS, "auto-alt-ref": "0"}))
_PRORES = Codec("prores_ks", "yuva444p10le", 1, MappingProxyType({"profile": "4444", "vendor": "apl0"}))


class Container(NamedTuple):
    """A file format.

    Attributes:
        opaque: the codec of pictures without alpha.
        alpha: the codec of pictures with alpha; None where the format has none.
        copied: FFmpeg's names of the codecs of sound that players expect in the format; such sound is copied.
        sound: FFmpeg's name of the encoder for all other sound.
        options: of FFmpeg's muxer.
    """

    opaque: Codec
    alpha: Codec | None
    copied: frozenset[str]
    sound: str
    options: Mapping[str, str] = MappingProxyType({})


_OPUS_RATE = 48000  # samples per second; Opus converts every other rate to it
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)  # ISO/IEC 14496-3
_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}  # of the encoders, by the number of channels

_INDEX_FIRST = MappingProxyType({"movflags": "+faststart"})  # a browser shows the video before it has all of it

_PCM = {"pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le"}
_MP4_SOUND = frozenset({"aac", "ac3", "alac", "eac3", "flac", "mp3", "opus"})
_MOV_SOUND = frozenset({"aac", "ac3", "alac", "eac3", "mp3", "pcm_s16be", "pcm_s24be", *_PCM})
_MKV_SOUND = frozenset({"aac", "ac3", "alac", "dts", "eac3", "flac", "mp2", "mp3", "opus", "vorbis", *_PCM})

CONTAINERS: dict[VideoFormat, Container] = {
    "mp4": Container(_H264, None, _MP4_SOUND, "aac", _INDEX_FIRST),
    "mov": Container(_H264, _PRORES, _MOV_SOUND, "aac", _INDEX_FIRST),
    "mkv": Container(_H264, _VP9_ALPHA, _MKV_SOUND, "aac"),
    "webm": Container(_VP9, _VP9_ALPHA, frozenset({"opus", "vorbis"}), "libopus"),
}


def default_format(alpha: bool) -> VideoFormat:
    """The format of a video whose pictures have alpha or none."""
    return "webm" if alpha else "mp4"


def codec_for(format: VideoFormat, alpha: bool) -> Codec:
    """The codec of pictures.

    Raises:
        UserError: the format has none for pictures with alpha.
    """
    codec = CONTAINERS[format].alpha if alpha else CONTAINERS[format].opaque
    if codec is None:
        fit = ", ".join(name for name, container in CONTAINERS.items() if container.alpha)
        raise UserError(f"{format} holds no transparency; choose one of {fit}")
    return codec


@dataclass
class _Sound:
    """One track of sound on its way: copied, or encoded anew.

    Attributes:
        last: the time of the last packet that was copied, or the end of the last frame that was encoded; in units of
            their own.
    """

    stream: Any
    copied: bool
    last: int | None = None

    def encode(self, frame: Any) -> "list[av.Packet]":
        """Encode a decoded frame right behind the one before: times in a file are coarse, and encoders count samples.

        A gap of a tenth of a second or more stays a gap.
        """
        rate = frame.sample_rate
        told = None if frame.pts is None else round(frame.pts * frame.time_base * rate)
        begin = self.last if self.last is not None else told or 0
        if told is not None and told - begin > rate // 10:
            begin = told
        frame.pts, frame.time_base = begin, Fraction(1, rate)
        self.last = begin + frame.samples
        packets: list[av.Packet] = self.stream.encode(frame)
        return packets


class VideoWriter:
    """A video file under way; a context manager that finishes it.

    The file is opened with the first picture. Write to a temporary path (`sodeploy.artifacts.atomic_write`): a file
    that was not finished is not playable.
    """

    def __init__(self, path: Path, source: VideoReader, format: VideoFormat) -> None:
        """
        Args:
            path: the file.
            source: the video whose clock, colors and sound it gets.
        """
        self._path, self._source, self._format = path, source, format
        self._container: av.container.OutputContainer | None = None
        self._video: Any = None
        self._sounds: dict[int, _Sound] = {}
        self._converter = Converter()

    def write(self, frame: TimedFrame, picture: np.ndarray) -> None:
        """Append a picture at the time of the frame it is made from, and the frame's sound.

        Args:
            picture: uint8, (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA; all of one shape.

        Raises:
            OSError: for example no space is left.
        """
        if self._container is None:
            self._open(picture)
        encoded = self._converter.from_rgb(_padded(picture, self._codec.multiple), self._codec.pixels, self._color)
        encoded.pts, encoded.time_base, encoded.duration = frame.time, self._source.clock, frame.duration
        self.write_sound(frame.sound)
        self._mux(self._video.encode(encoded))

    def write_sound(self, packets: "list[av.Packet]") -> None:
        """Append packets of the source's sound, in the order in which the source has them."""
        import av

        if self._container is None:
            return
        for packet in packets:
            sound = self._sounds.get(packet.stream.index)
            if sound is None:
                continue
            packet = self._source.in_stream_time(packet)
            if not sound.copied:
                try:
                    for frame in packet.decode():
                        self._mux(sound.encode(frame))
                except av.error.InvalidDataError:
                    warn(f"{self._source.path}: a broken piece of its sound is left out")
            elif packet.dts is not None and (sound.last is None or packet.dts > sound.last):
                # A container refuses times that go back.
                sound.last = packet.dts
                packet.stream = sound.stream
                self._mux([packet])

    def finish(self) -> None:
        """Write the rest of the sound and the file's index; without a picture there is no file."""
        if self._container is None:
            return
        self.write_sound(self._source.rest)
        for sound in self._sounds.values():
            if not sound.copied:
                self._mux(sound.stream.encode(None))
        self._mux(self._video.encode(None))
        self._container.close()
        self._container = None

    def _open(self, picture: np.ndarray) -> None:
        import av

        alpha = picture.ndim == 3 and picture.shape[2] == 4
        self._codec = codec_for(self._format, alpha)
        color = self._source.color or Color(Matrix.BT709, Range.LIMITED)
        self._color = color._replace(range=Range.LIMITED)  # which every player understands
        kind = "matroska" if self._format == "mkv" else self._format
        options = {**CONTAINERS[self._format].options, "fflags": "+bitexact"}  # no time of day in the file
        self._container = av.open(str(self._path), "w", format=kind, container_options=options)
        stream: Any = self._container.add_stream(
            self._codec.name, rate=self._source.rate, options=dict(self._codec.options)
        )
        height, width = _padded(picture, self._codec.multiple).shape[:2]
        stream.width, stream.height, stream.pix_fmt = width, height, self._codec.pixels
        context = stream.codec_context
        context.time_base = self._source.clock
        context.sample_aspect_ratio = self._source.aspect
        context.colorspace, context.color_range = self._color.matrix, self._color.range
        context.color_primaries, context.color_trc = self._color.primaries, self._color.transfer
        self._video = stream
        for source in self._source.sounds:
            copied = source.codec_context.codec.canonical_name in CONTAINERS[self._format].copied
            self._sounds[source.index] = _Sound(self._sound_stream(source, copied), copied)
        if picture.shape[:2] != (height, width):
            note(
                f"{self._source.path} is {picture.shape[1]} x {picture.shape[0]}, its output {width} x {height}: H.264 "
                "takes even sizes, so the edge is repeated"
            )

    def _sound_stream(self, source: Any, copied: bool) -> Any:
        assert self._container is not None
        if copied:
            return self._container.add_stream_from_template(source)
        encoder = CONTAINERS[self._format].sound
        note(
            f"{self._source.path}: its sound is {source.codec_context.codec.canonical_name}, which is not usual in "
            f"{self._format}; it is encoded anew, by {encoder}"
        )
        rate = source.codec_context.sample_rate if encoder == "aac" else _OPUS_RATE
        rate = rate if rate in _AAC_RATES else _OPUS_RATE
        stream: Any = self._container.add_stream(encoder, rate=rate)
        stream.layout = _LAYOUTS.get(source.codec_context.layout.nb_channels, "stereo")
        stream.codec_context.time_base = Fraction(1, rate)
        return stream

    def _mux(self, packets: "list[av.Packet]") -> None:
        assert self._container is not None
        self._container.mux(packets)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        elif self._container is not None:
            with contextlib.suppress(Exception):  # the first error counts; the file is given up
                self._container.close()
            self._container = None


def _padded(picture: np.ndarray, multiple: int) -> np.ndarray:
    """The picture with its last row and column repeated until its size is a multiple."""
    bottom, right = -picture.shape[0] % multiple, -picture.shape[1] % multiple
    if not bottom and not right:
        return picture
    return np.asarray(cv2.copyMakeBorder(picture, 0, bottom, 0, right, cv2.BORDER_REPLICATE))
