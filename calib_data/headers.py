"""An image file's header: its size and its number of pictures, known before any memory is taken for pixels."""

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DEFLATED = 8 * 1032  # pixels of one bit, at the greatest compression that deflate has
_PNG_NEEDED = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_BMP_PLAIN, _BMP_BIT_FIELDS = 0, 3
_SUBFILE, _WIDTH, _HEIGHT, _COMPRESSION, _SAMPLES = 254, 256, 257, 259, 277  # tags of a TIFF
_EXTRA, _PROFILE = 338, 34675
_NO_PAGE = 0b101  # bits of the tag "subfile": a smaller copy, a mask
_MOST_PREVIEWS = 64
GREY, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 3, 4, 6  # colour types of a PNG's header


@dataclass(frozen=True)
class Header:
    """The facts that an encoded image declares.

    Attributes:
        kind: the format's name.
        width, height: pixels, before an EXIF orientation is applied.
        animated: the file holds more than one picture to be shown in turn.
        paged: the file holds more than one page.
        alpha: the file may have an alpha channel.
        densest: the most pixels that one byte of the file can hold; None where its coding sets no bound.
        associated: a TIFF stores its colors multiplied by alpha; None where the file does not say.
        profile: the ICC profile of a TIFF or an AVIF; None where there is none, and of other formats.
    """

    kind: str
    width: int
    height: int
    animated: bool = False
    alpha: bool = False
    densest: int | None = None
    paged: bool = False
    associated: bool | None = None
    profile: bytes | None = None

    @property
    def pixels(self) -> int:
        return self.width * self.height


def read_header(data: bytes) -> Header:
    """The header of an encoded image.

    Raises:
        ValueError: the format is not one of `FORMATS`, or its header is cut short or makes no sense.
    """
    for kind, begins, read in _READERS:
        if begins.match(data):
            try:
                header = read(data)
            except (struct.error, LookupError):
                raise ValueError(f"its {kind} header is cut short") from None
            if header.width < 1 or header.height < 1:
                raise ValueError(f"its {kind} header says {header.width} x {header.height} pixels")
            return header
    raise ValueError(f"it is none of {FORMATS}")


def _png(data: bytes) -> Header:
    if data[12:16] != b"IHDR":
        raise IndexError
    width, height, _, colour = struct.unpack(">IIBB", data[16:26])
    animated, alpha = False, colour in (GREY_ALPHA, RGB_ALPHA)
    chunks = png_chunks(data)
    for kind, content in chunks:
        if kind == b"IDAT":
            break
        alpha |= kind == b"tRNS"
        animated |= kind == b"acTL" and struct.unpack(">I", content[:4])[0] > 1
    # OpenCV takes memory for the length that a chunk declares, whatever the file's own length.
    if chunks[-1][0] != b"IEND":
        raise ValueError("it is cut short, or a part of it declares a wrong length")
    if sum(kind == b"IHDR" for kind, _ in chunks) > 1:
        raise ValueError("it has two headers")
    return Header("PNG", width, height, animated, alpha, _DEFLATED)


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and content of each chunk of a PNG file, up to the end of the picture or to the first that is cut short.

    Raises:
        ValueError: a chunk that every reader needs differs from its check sum.
    """
    chunks, position = [], len(PNG_SIGNATURE)
    while len(head := data[position : position + 8]) == 8:
        (length,) = struct.unpack(">I", head[:4])
        if position + 12 + length > len(data):
            break
        end = position + 8 + length
        kind, content = head[4:], data[position + 8 : end]
        if kind in _PNG_NEEDED and zlib.crc32(kind + content).to_bytes(4, "big") != data[end : end + 4]:
            raise ValueError(f"its part {kind.decode()} is damaged")
        chunks.append((kind, content))
        if kind == b"IEND":
            break
        position = end + 4
    return chunks


def _jpeg(data: bytes) -> Header:
    position = 2
    while True:
        marker, code = data[position], data[position + 1]
        if marker != 0xFF:
            raise IndexError
        if code == 0xFF:  # padding
            position += 1
        elif 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
            huffman = code in (0xC0, 0xC1, 0xC2)
            return Header("JPEG", width, height, densest=8 * 64 if huffman else None)  # a bit or more per 8 x 8 block
        elif code in (0x01, *range(0xD0, 0xD8)):  # markers without a length
            position += 2
        else:
            position += 2 + max(2, struct.unpack(">H", data[position + 2 : position + 4])[0])


def _bmp(data: bytes) -> Header:
    (size,) = struct.unpack("<I", data[14:18])
    if size == 12:
        width, height = struct.unpack("<HH", data[18:22])
        return Header("BMP", width, height, densest=8)
    width, height, _, bits, compression = struct.unpack("<iiHHI", data[18:34])
    densest = 8 // min(8, bits or 8) if compression in (_BMP_PLAIN, _BMP_BIT_FIELDS) else None
    return Header("BMP", width, abs(height), alpha=True, densest=densest)


def _gif(data: bytes) -> Header:
    width, height, packed = struct.unpack("<HHB", data[6:11])
    return Header("GIF", width, height, _gif_frames(data, packed) > 1, alpha=True)


def _gif_frames(data: bytes, packed: int) -> int:
    """How many pictures a GIF holds; 2 stands for any more than one."""
    position = 13 + (3 << ((packed & 7) + 1) if packed & 0x80 else 0)
    frames = 0
    while position < len(data) and frames < 2 and data[position] in (0x21, 0x2C):
        if data[position] == 0x2C:
            frames += 1
            local = data[position + 9]
            position += 11 + (3 << ((local & 7) + 1) if local & 0x80 else 0)
        else:
            position += 2
        while data[position]:  # sub-blocks, each behind its length
            position += 1 + data[position]
        position += 1
    return frames


def _webp(data: bytes) -> Header:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        if len(data) < 30:
            raise IndexError
        return Header("WebP", width, height, bool(data[20] & 0x02), bool(data[20] & 0x10))
    if kind == b"VP8L":
        bits = struct.unpack("<I", data[21:25])[0]
        return Header("WebP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, alpha=bool(bits >> 28 & 1))
    width, height = struct.unpack("<HH", data[26:30])
    return Header("WebP", width & 0x3FFF, height & 0x3FFF)


def _tiff(data: bytes) -> Header:
    """The first page's size, and whether there are more pages."""
    order: Literal["<", ">"] = "<" if data[:2] == b"II" else ">"
    (offset,) = struct.unpack(f"{order}I", data[4:8])
    found, sizes, following = _tiff_page(data, order, offset)
    densest = {1: 8, 8: _DEFLATED, 32946: _DEFLATED}.get(found.get(_COMPRESSION, 1))
    alpha = found.get(_SAMPLES, 1) in (2, 4)
    paged = _has_page(data, order, following)
    profile = data[found[_PROFILE] :][: sizes[_PROFILE]] if _PROFILE in found else None
    associated = {1: True, 2: False}.get(found.get(_EXTRA, 0)) if alpha else None
    return Header("TIFF", found[_WIDTH], found[_HEIGHT], False, alpha, densest, paged, associated, profile)


def _tiff_page(data: bytes, order: Literal["<", ">"], offset: int) -> tuple[dict[int, int], dict[int, int], int]:
    """The page at `offset`.

    Returns:
        The first value of each tag, or the place of values that take more than four bytes; the number of values of each
        tag; and the offset of the next page, 0 for none.
    """
    (count,) = struct.unpack(f"{order}H", data[offset : offset + 2])
    found, sizes = {}, {}
    for entry in range(min(count, 512)):
        at = offset + 2 + 12 * entry
        tag, kind, sizes[tag] = struct.unpack(f"{order}HHI", data[at : at + 8])
        found[tag] = struct.unpack(
            f"{order}H" if kind == 3 else f"{order}I", data[at + 8 : at + (10 if kind == 3 else 12)]
        )[0]
    end = offset + 2 + 12 * count
    following = data[end : end + 4]
    return found, sizes, struct.unpack(f"{order}I", following)[0] if len(following) == 4 else 0


def _has_page(data: bytes, order: Literal["<", ">"], offset: int) -> bool:
    """Whether a page follows from `offset` on. A preview or a mask of the first page is none."""
    for _ in range(_MOST_PREVIEWS):
        if not 0 < offset < len(data):
            return False
        found, _, offset = _tiff_page(data, order, offset)
        if not found.get(_SUBFILE, 0) & _NO_PAGE:
            return True
    return False


def _avif(data: bytes) -> Header:
    """The largest picture of the file's property boxes (ISO/IEC 23008-12, `ispe`)."""
    sizes = [struct.unpack(">II", data[at.end() + 4 : at.end() + 12]) for at in re.finditer(b"ispe", data[:65536])]
    width, height = max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))
    box = re.search(rb"(.{4})colr(?:prof|rICC)", data[:65536], re.DOTALL)
    profile = data[box.end() : box.start() + int.from_bytes(box[1], "big")] if box else None
    return Header("AVIF", width, height, data[8:12] == b"avis", alpha=True, profile=profile)


def _jpeg2000(data: bytes) -> Header:
    at = data.index(b"\xff\x4f\xff\x51") if b"\xff\x4f\xff\x51" in data else len(data)
    right, lower, left, upper = struct.unpack(">IIII", data[at + 8 : at + 24])
    return Header("JPEG 2000", right - left, lower - upper, alpha=True)


def _netpbm(data: bytes) -> Header:
    text = re.sub(rb"#[^\n]*\n", b" ", data[:4096])
    match = re.match(rb"P[1-6]\s+(\d{1,9})\s+(\d{1,9})\s", text)
    if not match:
        raise IndexError
    return Header("PNM", int(match[1]), int(match[2]), densest=8)


_READERS: list[tuple[str, re.Pattern[bytes], Callable[[bytes], Header]]] = [
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n"), _png),
    ("JPEG", re.compile(rb"\xff\xd8\xff"), _jpeg),
    ("BMP", re.compile(rb"BM"), _bmp),
    ("GIF", re.compile(rb"GIF8[79]a"), _gif),
    ("WebP", re.compile(rb"RIFF.{4}WEBP", re.DOTALL), _webp),
    ("TIFF", re.compile(rb"II\*\0|MM\0\*"), _tiff),
    ("AVIF", re.compile(rb".{4}ftypavi[fs]", re.DOTALL), _avif),
    ("JPEG 2000", re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), _jpeg2000),
    ("PNM", re.compile(rb"P[1-6]\s"), _netpbm),
]
FORMATS = ", ".join(kind for kind, _, _ in _READERS)
