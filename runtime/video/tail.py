"""Whether the tail of a video file is missing, by the sizes that the file itself holds.

A duration in a header is no proof: subtitles may last longer than the video, and a header may be wrong. Sizes are: a
file that says where its last part ends, and is shorter, has been cut off.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import av
    import av.container
    import av.stream

_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675  # of Matroska


def missing_bytes(
    path: Path, container: "av.container.InputContainer", streams: "Iterable[av.stream.Stream]"
) -> int | None:
    """Count the bytes that a file should have and lacks.

    Args:
        container: the file, read to its end.
        streams: MP4 and MOV: only bytes of these count. A cut that takes none of them does no harm.

    Returns:
        0 for a whole file; None where the file does not tell, as one that was written to a pipe.
    """
    rule = _RULES.get(container.format.name)
    size = path.stat().st_size
    if rule is None:
        return None
    with open(path, "rb") as file:
        end = rule(file, size, streams)
    return None if end is None else max(0, end - size)


def _end_of_mp4(file: BinaryIO, size: int, streams: "Iterable[av.stream.Stream]") -> int | None:
    """ISO/IEC 14496-12: the index has the place of each sample; a fragment (moof) that is cut adds none to it."""
    samples = (entry.pos + entry.size for stream in streams for entry in stream.index_entries)
    fragments = list(_ends_of_fragments(file))
    end = max([*samples, *fragments], default=None)
    if fragments and end is not None and end <= size:
        return None  # more fragments may have followed
    return end


def _ends_of_fragments(file: BinaryIO) -> Iterator[int]:
    at = 0
    while len(head := _bytes_at(file, at, 16)) >= 8:
        length, kind = struct.unpack(">I4s", head[:8])
        if length == 1 and len(head) == 16:
            (length,) = struct.unpack(">Q", head[8:])
        if length < 8 or not kind.isalnum():  # the last box, up to the end; or bytes that some cameras append
            return
        at += length
        if kind == b"moof":
            yield at


def _end_of_matroska(file: BinaryIO, size: int, streams: "Iterable[av.stream.Stream]") -> int | None:
    """RFC 9559: one segment holds all. Where a live recording gives no size for it, the parts in it have theirs."""
    at = 0
    while at < size:
        head = _bytes_at(file, at, 12)
        begin = _ebml_width(head)
        width = _ebml_width(head[begin:])
        if not begin or not width:  # zeros, or the end
            return None
        at += begin + width
        kind, unknown = int.from_bytes(head[:begin], "big"), (1 << 7 * width) - 1
        length = int.from_bytes(head[begin : begin + width], "big") & unknown
        if length == unknown:  # the next element is the first one in it
            if kind not in (_SEGMENT, _CLUSTER):
                return None
            continue
        at += length
        if kind == _SEGMENT:
            return at
    return at if at > size else None


def _ebml_width(data: bytes) -> int:
    """Bytes of the EBML number (RFC 8794) at the start: its first bit that is 1 tells; 0 if there is none."""
    return 9 - data[0].bit_length() if data and data[0] else 0


def _end_of_avi(file: BinaryIO, size: int, streams: "Iterable[av.stream.Stream]") -> int | None:
    """RIFF chunks one after another (OpenDML), each at an even place."""
    at, end = 0, None
    while len(head := _bytes_at(file, at, 8)) == 8 and head[:4] == b"RIFF":
        (length,) = struct.unpack("<I", head[4:])
        if length in (0, 0xFFFFFFFF):  # written to a pipe
            return None
        end = at + 8 + length
        at = end + end % 2
    return end


def _bytes_at(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)


_RULES: dict[str, Callable[[BinaryIO, int, "Iterable[av.stream.Stream]"], int | None]] = {
    "mov,mp4,m4a,3gp,3g2,mj2": _end_of_mp4,
    "matroska,webm": _end_of_matroska,
    "avi": _end_of_avi,
}
