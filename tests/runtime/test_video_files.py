"""Videos read and written: times, sound, rotation, colors, sizes, and files that are broken."""

import os
import re
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from video_content import av, content, save_clip, square

from sodeploy.errors import UserError
from sodeploy.runtime.video.color import Color, Converter, Matrix, Range
from sodeploy.runtime.video.read_ahead import read_ahead
from sodeploy.runtime.video.reader import VideoReader
from sodeploy.runtime.video.writer import CONTAINERS, VideoFormat, VideoWriter, _Sound, codec_for


def copy(source: Path, target: Path, alpha: bool = False) -> str | None:
    """Read a video and write its own frames; returns the failure of the reader."""
    with VideoReader(source) as reader, VideoWriter(target, reader, target.suffix[1:]) as writer:
        for frame in reader.frames():
            image = frame.image
            writer.write(frame, np.dstack([image, image[..., 0]]) if alpha else image)
    return reader.failure


def again(source: Path, target: Any, options: dict[str, str]) -> Any:
    """Write the packets of a video into another file, by a muxer with options; returns `target`."""
    if isinstance(target, Path):
        target.parent.mkdir(exist_ok=True)
    suffix = Path(source).suffix[1:]
    with (
        av.open(str(source)) as clip,
        av.open(
            str(target) if isinstance(target, Path) else target,
            "w",
            format={"mkv": "matroska"}.get(suffix, suffix),
            options=options,
        ) as out,
    ):
        streams = {stream.index: out.add_stream_from_template(stream) for stream in clip.streams}
        mux(clip, out, streams)
    return target


def mux(source: Any, out: Any, streams: dict[int, Any]) -> None:
    """Copy the packets of the streams, by their index, to those of another container."""
    for packet in source.demux():
        if packet.size and packet.stream.index in streams:
            packet.stream = streams[packet.stream.index]
            out.mux(packet)


def failure_of(path: Path) -> tuple[str | None, int]:
    """Why reading a video ended early, and the frames before."""
    with VideoReader(path) as reader:
        count = sum(1 for _ in reader.frames())
    return reader.failure, count


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b).mean())


@pytest.mark.parametrize(
    ("name", "codec", "sound"),
    [
        ("a.mp4", "libx264", "aac"),
        ("a.mov", "libx264", "pcm_s16le"),
        ("a.mkv", "libx264", "flac"),
        ("a.avi", "mpeg4", "mp3"),
        ("a.webm", "libvpx-vp9", "libopus"),
    ],
)
@pytest.mark.parametrize("format", CONTAINERS)
def test_times_pictures_and_sound_are_kept(
    tmp_path: Path, name: str, codec: str, sound: str, format: VideoFormat
) -> None:
    source = content(save_clip(tmp_path / name, codec=codec, sound=sound))
    assert copy(tmp_path / name, tmp_path / f"out.{format}") is None
    made = content(tmp_path / f"out.{format}")
    assert made.codec == ("vp9" if format == "webm" else "h264")
    assert made.pixels == "yuv420p"
    assert np.diff(made.times) == pytest.approx(np.diff(source.times), abs=0.0011)  # mkv and webm count milliseconds
    assert len(made.images) == len(source.images)
    assert all(distance(a, b) < 6 for a, b in zip(made.images, source.images, strict=True))
    kept = source.sound in CONTAINERS[format].copied
    assert made.sound == (source.sound if kept else {"libopus": "opus"}.get(CONTAINERS[format].sound, "aac"))
    # In step: sound and pictures begin as far from one another as they did, but for what a codec's frame is long.
    assert made.sound_from - made.times[0] == pytest.approx(source.sound_from - source.times[0], abs=0.027)
    assert made.sound_till - made.times[0] == pytest.approx(source.sound_till - source.times[0], abs=0.05)


def test_the_same_video_gives_the_same_bytes(tmp_path: Path) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    scene = cv2.resize(coarse, (320, 240), interpolation=cv2.INTER_CUBIC)
    squares = [square(4 * n, 240, 320) for n in range(60)]
    save_clip(tmp_path / "a.mkv", 60, image=lambda n: np.roll(scene, 2 * n, axis=1) // 2 + squares[n] // 2)
    script = (
        "import sys; from pathlib import Path; from sodeploy.runtime.video.reader import VideoReader; "
        "from sodeploy.runtime.video.writer import VideoWriter\n"
        "with VideoReader(sys.argv[1]) as r, VideoWriter(Path(sys.argv[2]), r, 'mp4') as w:\n"
        "    for frame in r.frames(): w.write(frame, frame.image)"
    )
    made = []
    for fill in ("85", "170"):  # what memory holds that nobody has written to
        words = [sys.executable, "-c", script, str(tmp_path / "a.mkv"), str(tmp_path / f"{fill}.mp4")]
        subprocess.run(words, check=True, env={**os.environ, "MALLOC_PERTURB_": fill})
        made.append((tmp_path / f"{fill}.mp4").read_bytes())
    assert made[0] == made[1]


def test_every_sound_that_is_copied_can_be(tmp_path: Path) -> None:
    encoders = {"opus": "libopus", "mp3": "libmp3lame", "dts": None, "vorbis": None}
    for format, container in CONTAINERS.items():
        for codec in sorted(container.copied):
            encoder = encoders.get(codec, codec)
            if encoder is None:  # this FFmpeg has no encoder that is finished
                continue
            source = save_clip(tmp_path / f"{codec}.mkv" if codec != "pcm_s32le" else tmp_path / "a.mov", sound=encoder)
            copy(source, tmp_path / f"out.{format}")
            assert content(tmp_path / f"out.{format}").sound == codec, (format, codec)


@pytest.mark.parametrize(
    ("name", "sound", "layout", "format", "made_of"),
    [
        ("a.mkv", "ac3", "5.1(side)", "webm", "opus"),  # Opus knows 5.1 with other places of the speakers only
        ("a.avi", "adpcm_ms", "mono", "mp4", "aac"),  # a number of channels, and not which
        ("a.avi", "pcm_s16le", "stereo", "webm", "opus"),
    ],
)
def test_sound_that_is_encoded_anew(
    tmp_path: Path, name: str, sound: str, layout: str, format: VideoFormat, made_of: str
) -> None:
    source = content(save_clip(tmp_path / name, 50, codec="mpeg4", sound=sound, layout=layout))
    copy(tmp_path / name, tmp_path / f"out.{format}")
    made = content(tmp_path / f"out.{format}")
    assert made.sound == made_of
    assert made.sound_till - made.times[0] == pytest.approx(source.sound_till - source.times[0], abs=0.1)
    with av.open(str(tmp_path / f"out.{format}")) as container:
        assert container.streams.audio[0].codec_context.layout.nb_channels == len(av.AudioLayout(layout).channels)


def test_coarse_times_of_sound_become_samples_and_gaps_stay() -> None:
    begins: list[int] = []
    stream = SimpleNamespace(encode=lambda frame: begins.append(frame.pts) or [])
    sound = _Sound(stream, copied=False)
    clock = Fraction(1, 1000)
    for milliseconds in (21, 64, 107, 150, None, 400, 300):  # a frame is 43.07 ms long
        sound.encode(SimpleNamespace(pts=milliseconds, time_base=clock, sample_rate=48000, samples=2048))
    assert begins == [1008, 3056, 5104, 7152, 9200, 19200, 21248]


def test_a_variable_frame_rate_is_kept(tmp_path: Path) -> None:
    times = [0, 40, 55, 120, 121, 400, 433]
    save_clip(tmp_path / "a.mp4", len(times), times_ms=times, sound=None)
    copy(tmp_path / "a.mp4", tmp_path / "out.mp4")
    assert content(tmp_path / "out.mp4").times == pytest.approx([time / 1000 for time in times])


def test_a_video_that_begins_late_begins_at_once(tmp_path: Path) -> None:
    save_clip(tmp_path / "a.mkv", 4, times_ms=[5000, 5040, 5080, 5120], sound=None)
    copy(tmp_path / "a.mkv", tmp_path / "out.mp4")
    assert content(tmp_path / "out.mp4").times == pytest.approx([0, 0.04, 0.08, 0.12])


# tkhd's matrix a, b, c, d as 16.16 numbers, and the same turn by numpy
_TURNS = {
    "90": ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
    "180": ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
    "270": ((0, -1, 1, 0), np.rot90),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "transposed": ((0, 1, 1, 0), lambda x: x.transpose(1, 0, 2)),
}


@pytest.mark.parametrize("turn", _TURNS)
def test_a_turned_video_is_upright(tmp_path: Path, turn: str) -> None:
    path = save_clip(tmp_path / "a.mp4", 3, sound=None, sample_aspect_ratio=Fraction(4, 3))
    numbers, by_numpy = _TURNS[turn]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # of version 0: the matrix follows 40 bytes
    a, b, c, d = (value * 65536 for value in numbers)
    data[at : at + 36] = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes()
    path.write_bytes(data)
    with VideoReader(path) as reader:
        images = [frame.image for frame in reader.frames()]
        assert reader.aspect == (Fraction(4, 3) if by_numpy(square(0)).shape == square(0).shape else Fraction(3, 4))
    assert images[1].shape == by_numpy(square(1)).shape
    assert distance(images[1], by_numpy(square(1))) < 6
    copy(path, tmp_path / "out.mp4")
    assert content(tmp_path / "out.mp4").aspect == reader.aspect
    assert distance(content(tmp_path / "out.mp4").images[1], images[1]) < 6


@pytest.mark.parametrize("format", CONTAINERS)
@pytest.mark.parametrize("size", [(47, 64), (48, 63), (47, 63)])
def test_odd_sizes(
    tmp_path: Path, format: VideoFormat, size: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sodeploy")
    save_clip(tmp_path / "a.mkv", 3, codec="ffv1", pixels="bgr0", sound=None, image=lambda n: square(n, *size))
    copy(tmp_path / "a.mkv", tmp_path / f"out.{format}")
    made = content(tmp_path / f"out.{format}").images[2]
    padded = (size[0] + size[0] % 2, size[1] + size[1] % 2) if codec_for(format, False).multiple == 2 else size
    assert made.shape[:2] == padded
    told = [f"{tmp_path / 'a.mkv'} is {size[1]} x {size[0]}, its output {padded[1]} x {padded[0]}"]
    assert [text.partition(":")[0] for text in caplog.messages] == (told if padded != size else [])
    assert distance(made[: size[0], : size[1]], square(2, *size)) < 6
    if padded[0] > size[0]:
        assert distance(made[-1:], made[-2:-1]) < 4  # repeated, not black


@pytest.mark.parametrize("format", ["webm", "mkv", "mov"])
@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_transparency(tmp_path: Path, format: VideoFormat, size: tuple[int, int]) -> None:
    save_clip(tmp_path / "a.mkv", 3, codec="ffv1", pixels="bgr0", sound=None, image=lambda n: square(n, *size))
    copy(tmp_path / "a.mkv", tmp_path / f"out.{format}", alpha=True)
    with av.open(str(tmp_path / f"out.{format}")) as container:
        stream = container.streams.video[0]
        name = stream.codec_context.codec.canonical_name
        assert name == ("prores" if format == "mov" else "vp9")
        if name == "prores":
            frames = [frame for packet in container.demux(stream) for frame in packet.decode()]
        else:  # FFmpeg's own decoder of VP9 leaves alpha out
            decoder = av.CodecContext.create("libvpx-vp9", "r")
            frames = [frame for packet in container.demux(stream) if packet.size for frame in decoder.decode(packet)]
    made = frames[1].to_ndarray(format="rgba") if name == "vp9" else frames[1].reformat(format="rgba").to_ndarray()
    assert made.shape == (*size, 4)
    assert distance(made[..., 3], square(1, *size)[..., 0]) < 3
    assert distance(made[..., :3], square(1, *size)) < 6


def test_mp4_holds_no_transparency() -> None:
    with pytest.raises(UserError, match="mp4 holds no transparency; choose one of mov, mkv, webm"):
        codec_for("mp4", alpha=True)


# Luma weights of red and blue, ITU-R BT.601-7, BT.709-6, BT.2020-2
_WEIGHTS = {Matrix.BT601_525: (0.299, 0.114), Matrix.BT709: (0.2126, 0.0722), Matrix.BT2020: (0.2627, 0.0593)}


@pytest.mark.parametrize("matrix", _WEIGHTS)
@pytest.mark.parametrize("range", [Range.LIMITED, Range.FULL])
def test_colors_follow_the_standards(matrix: Matrix, range: Range) -> None:
    colors = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40), (0, 0, 0), (255, 255, 255)], np.uint8)
    red, blue = _WEIGHTS[matrix]
    for color in colors:
        r, g, b = color / 255
        luma = red * r + (1 - red - blue) * g + blue * b
        chroma = np.array([(b - luma) / (2 - 2 * blue), (r - luma) / (2 - 2 * red)])
        whole = [255 * luma, *(255 * chroma + 128)] if range is Range.FULL else [16 + 219 * luma, *(224 * chroma + 128)]
        frame = Converter().from_rgb(np.broadcast_to(color, (16, 16, 3)), "yuv420p", Color(matrix, range))
        stored = [np.frombuffer(plane, np.uint8)[0] for plane in frame.planes]
        assert stored == pytest.approx(np.clip(whole, 0, 255), abs=1)
        assert Color.of(frame)[:2] == (matrix, range)
        assert Converter().to_rgb(frame, Color.of(frame))[5, 5].astype(int) == pytest.approx(color.astype(int), abs=2)


def test_all_shades_of_a_map_survive() -> None:
    shades = np.tile(np.arange(256, dtype=np.uint8), (16, 1))
    color = Color(Matrix.BT709, Range.LIMITED)
    back = Converter().to_rgb(Converter().from_rgb(shades, "yuv420p", color), color)
    assert np.abs(back.astype(int) - shades[..., None]).max() <= 1  # 219 steps hold 256 shades


@pytest.mark.parametrize(
    ("told", "height", "expected"),
    [
        ((2, 0), 48, (6, 1)),  # nothing: BT.601 below 720 lines
        ((2, 0), 720, (1, 1)),  # and BT.709 from there on
        ((5, 1), 720, (5, 1)),
        ((1, 2), 48, (1, 1)),  # full range becomes limited
    ],
)
def test_an_output_says_its_colors(
    tmp_path: Path, told: tuple[int, int], height: int, expected: tuple[int, int]
) -> None:
    image = np.full((height, 2 * height, 3), (200, 120, 40), np.uint8)
    frame = Converter().from_rgb(
        image, "yuv420p", Color(Matrix(expected[0]), Range.FULL if told[1] == 2 else Range.LIMITED)
    )
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 2 * height, height, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = told
        frame.colorspace, frame.color_range = told
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    copy(tmp_path / "a.mkv", tmp_path / "out.mp4")
    with VideoReader(tmp_path / "out.mp4") as reader:
        (made,) = reader.frames()
    assert reader.color is not None
    assert reader.color[:2] == expected
    assert made.image[5, 5].astype(int) == pytest.approx([200, 120, 40], abs=3)


class TestBroken:
    def test_no_video(self, tmp_path: Path) -> None:
        (tmp_path / "text.mp4").write_text("no video")
        with pytest.raises(UserError, match=r"text.mp4 is broken or no video \(.*\); replace or remove it"):
            VideoReader(tmp_path / "text.mp4")
        (tmp_path / "empty.mp4").touch()
        with pytest.raises(UserError, match=r"empty.mp4 is broken or no video"):
            VideoReader(tmp_path / "empty.mp4")
        with pytest.raises(UserError, match=r"none.mp4 does not exist"):
            VideoReader(tmp_path / "none.mp4")

    def test_only_sound(self, tmp_path: Path) -> None:
        with av.open(str(tmp_path / "song.mp4"), "w") as container:
            stream = container.add_stream("aac", rate=48000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), format="s16", layout="mono")
            frame.sample_rate = 48000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        with pytest.raises(UserError, match=r"song.mp4 has no video, only audio; remove it"):
            VideoReader(tmp_path / "song.mp4")

    def test_too_large(self, tmp_path: Path) -> None:
        save_clip(tmp_path / "a.mp4", 2, sound=None)
        with pytest.raises(UserError, match=r"a.mp4: frames are 64 x 48 pixels, .*--max-megapixels"):
            VideoReader(tmp_path / "a.mp4", most_pixels=64 * 48 - 1)

    @pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
    def test_a_tail_that_is_missing(self, tmp_path: Path, name: str) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3), dtype=np.uint8)
        codec = "mpeg4" if name == "a.avi" else "libx264"
        path = save_clip(tmp_path / name, 60, codec=codec, sound=None, image=lambda n: noise[n])
        if name == "a.mp4":  # its index first, which a cut file still has
            copy(path, tmp_path / "first.mp4")
            path = tmp_path / "first.mp4"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        failure = copy(path, tmp_path / "out.mp4")
        assert failure is not None
        assert "missing" in failure or "broken after" in failure
        assert 5 < len(content(tmp_path / "out.mp4").images) < 55

    @pytest.mark.parametrize(
        ("name", "codec", "sound", "options"),
        [
            ("a.mp4", "libx264", "aac", {"movflags": "faststart"}),
            ("a.mp4", "libx264", None, {"movflags": "frag_keyframe+empty_moov"}),
            ("a.mp4", "libx264", None, {"movflags": "cmaf"}),
            ("a.mov", "mjpeg", "pcm_s16le", {"movflags": "faststart"}),
            ("a.mkv", "libx264", None, {}),
            ("a.mkv", "libx264", "flac", {"live": "1"}),
            ("a.webm", "libvpx-vp9", "libopus", {"cues_to_front": "1"}),
            ("a.avi", "mpeg4", "mp3", {}),
        ],
    )
    def test_a_tail_of_a_few_frames_that_is_missing(
        self, tmp_path: Path, name: str, codec: str, sound: str | None, options: dict[str, str]
    ) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), dtype=np.uint8)
        pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        clip = save_clip(tmp_path / name, 30, codec=codec, sound=sound, pixels=pixels, image=lambda n: noise[n])
        path = again(clip, tmp_path / "again" / name, options)
        whole, count = failure_of(path)
        assert whole is None
        size = path.stat().st_size
        for part in (0.9, 0.7):
            path.write_bytes(path.read_bytes()[: int(size * part)])
            failure, left = failure_of(path)
            assert failure is not None
            assert re.fullmatch(r"it is cut off: its last \d+ bytes are missing", failure)
            assert 0 < left <= count

    def test_a_fragment_whose_own_list_of_frames_is_cut(self, tmp_path: Path) -> None:
        options = {"movflags": "frag_keyframe+empty_moov"}
        path = again(save_clip(tmp_path / "a.mp4", 30, sound=None, gop_size=10), tmp_path / "b.mp4", options)
        data = path.read_bytes()
        path.write_bytes(data[: data.rindex(b"moof") + 40])
        failure, left = failure_of(path)
        assert failure is not None
        assert "it is cut off" in failure
        assert left == 20

    @pytest.mark.parametrize(
        ("name", "codec", "options"),
        [
            ("a.avi", "mpeg4", {}),  # no sizes, and a number of frames that is made up
            ("a.mkv", "libx264", {}),
            ("a.webm", "libvpx-vp9", {}),
            ("a.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        ],
    )
    def test_a_whole_file_that_went_through_a_pipe(
        self, tmp_path: Path, name: str, codec: str, options: dict[str, str]
    ) -> None:
        clip = save_clip(tmp_path / name, 30, codec=codec, sound=None)
        with open(tmp_path / f"piped_{name}", "wb") as file:
            sink = SimpleNamespace(write=file.write, name=name)
            again(clip, sink, options)
        assert failure_of(tmp_path / f"piped_{name}") == (None, 30)

    def test_subtitles_may_last_longer_than_the_video(self, tmp_path: Path) -> None:
        (tmp_path / "a.srt").write_text("1\n00:00:00,000 --> 00:00:20,000\nhello\n")
        save_clip(tmp_path / "a.mkv", 30)
        clip, text = av.open(str(tmp_path / "a.mkv")), av.open(str(tmp_path / "a.srt"))
        with clip, text, av.open(str(tmp_path / "b.mkv"), "w") as out:
            made = [(source, out.add_stream_from_template(source.streams[0])) for source in (clip, text)]
            for source, stream in made:
                mux(source, out, {0: stream})
        assert failure_of(tmp_path / "b.mkv") == (None, 30)

    def test_bytes_that_are_wrong(self, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), dtype=np.uint8)
        path = save_clip(tmp_path / "a.mkv", 40, codec="mjpeg", sound=None, image=lambda n: noise[n], pixels="yuvj420p")
        data = bytearray(path.read_bytes())
        for at in range(len(data) // 2, len(data) // 2 + 6000, 7):
            data[at] ^= 0xFF
        path.write_bytes(data)
        assert copy(path, tmp_path / "out.mp4") is not None
        assert len(content(tmp_path / "out.mp4").images) > 15


class TestReadAhead:
    def test_in_order_and_errors_come_in_their_turn(self) -> None:
        def numbers():
            yield from range(5)
            raise UserError("the sixth is broken")

        got: list[int] = []
        with pytest.raises(UserError, match="the sixth"), read_ahead(numbers(), 2) as items:
            got.extend(items)
        assert got == [0, 1, 2, 3, 4]

    def test_no_more_than_asked_for_wait(self) -> None:
        made = []

        def numbers():
            for number in range(100):
                made.append(number)
                yield number

        before = threading.active_count()
        with read_ahead(numbers(), 3) as items:
            assert next(items) == 0
            assert next(items) == 1
        assert len(made) <= 2 + 3 + 1
        assert threading.active_count() == before


def test_a_long_last_frame_is_no_missing_tail(tmp_path: Path) -> None:
    """Matroska tells no decoding time of frames that others are predicted from."""
    times = (0, 40, 400, 420, 1500)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(square(number))
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with VideoReader(tmp_path / "a.mkv") as reader:
        assert tuple(round(1000 * one.time * reader.clock) for one in reader.frames()) == times
        assert reader.failure is None
