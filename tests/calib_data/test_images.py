"""Every variety of image file comes out as the picture a viewer shows; a broken one is named."""

import os
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from sodeploy.artifacts import require_file
from sodeploy.calib_data.images import decode_image, read_image, write_picture
from sodeploy.calib_data.mask_reading import read_map, read_mask
from sodeploy.errors import UserError

Reader = Callable[[Path], np.ndarray]

# Left half orange, right half blue, a dark bar on top: tells every flip, rotation and channel swap.
PICTURE = np.zeros((48, 64, 3), np.uint8)
PICTURE[:, :32], PICTURE[:, 32:], PICTURE[:8] = (240, 120, 20), (20, 60, 200), (30, 30, 30)

# What is stored so that a viewer, obeying the orientation, shows the picture (EXIF 2.32, table "Orientation").
ORIENTATIONS = {
    1: PICTURE,
    2: PICTURE[:, ::-1],
    3: PICTURE[::-1, ::-1],
    4: PICTURE[::-1],
    5: PICTURE.transpose(1, 0, 2),
    6: np.rot90(PICTURE, 1),
    7: PICTURE[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(PICTURE, -1),
}


def encode(path: Path, image: np.ndarray, *options: int) -> Path:
    """Write with OpenCV, from RGB(A) or grey."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR)
    assert cv2.imwrite(str(path), image, options)
    return path


def exif(orientation: int) -> bytes:
    """A TIFF block with nothing but the orientation tag."""
    return b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + b"\0\0\0\0"


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp", ".jpg"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    options = [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == ".webp" else []
    image = read_image(encode(tmp_path / f"a{suffix}", PICTURE, *options))
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    # JPEG blurs colour at the picture's edges; what it must not do is to swap channels.
    inner = np.abs(image.astype(int) - PICTURE)[12:, 4:28]
    assert inner.max() <= (6 if suffix == ".jpg" else 0)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_the_bytes_are_opencv_s_in_rgb(tmp_path: Path, suffix: str) -> None:
    path = encode(tmp_path / f"a{suffix}", PICTURE)
    np.testing.assert_array_equal(read_image(path), cv2.imread(str(path))[..., ::-1])


def test_grey_becomes_rgb(tmp_path: Path) -> None:
    grey = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64).astype(np.uint8)
    image = read_image(encode(tmp_path / "grey.png", grey))
    np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, axis=2))


def test_alpha_is_dropped(tmp_path: Path) -> None:
    alpha = np.random.default_rng(0).integers(0, 256, (48, 64, 1), dtype=np.uint8)
    image = read_image(encode(tmp_path / "rgba.png", np.concatenate([PICTURE, alpha], axis=2)))
    np.testing.assert_array_equal(image, PICTURE)


def test_palette(tmp_path: Path) -> None:
    index = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    colours = bytes([10, 20, 30, 200, 100, 0, 0, 255, 9])
    rows = b"".join(b"\0" + row.tobytes() for row in index)
    data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 8, 3, 0, 0, 0))
    data += png_chunk(b"PLTE", colours) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    (tmp_path / "palette.png").write_bytes(data)
    expected = np.frombuffer(colours, np.uint8).reshape(3, 3)[index]
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), expected)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_scaled_not_cut(tmp_path: Path, suffix: str) -> None:
    deep = PICTURE.astype(np.uint16) * 257
    np.testing.assert_array_equal(read_image(encode(tmp_path / f"deep{suffix}", deep)), PICTURE)
    nearly = np.minimum(deep.astype(np.int64) + 120, 65535).astype(np.uint16)  # rounds to the same 8 bits
    np.testing.assert_array_equal(read_image(encode(tmp_path / f"nearly{suffix}", nearly)), PICTURE)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation_of_jpeg(tmp_path: Path, orientation: int) -> None:
    path = encode(tmp_path / "turned.jpg", ORIENTATIONS[orientation], cv2.IMWRITE_JPEG_QUALITY, 98)
    segment = b"Exif\0\0" + exif(orientation)
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:])
    image = read_image(path)
    assert image.shape == PICTURE.shape
    assert np.abs(image.astype(int) - PICTURE).mean() < 4


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation_of_png(tmp_path: Path, orientation: int) -> None:
    path = encode(tmp_path / "turned.png", ORIENTATIONS[orientation])
    data = path.read_bytes()
    head = 8 + 12 + 13  # signature, IHDR
    path.write_bytes(data[:head] + png_chunk(b"eXIf", exif(orientation)) + data[head:])
    np.testing.assert_array_equal(read_image(path), PICTURE)


@pytest.mark.parametrize("read", [read_image, read_mask, read_map])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
@pytest.mark.parametrize("share", [0.3, 0.8, 0.97])
def test_truncated_file_is_named(tmp_path: Path, read: Reader, suffix: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = encode(tmp_path / f"cut{suffix}", noise)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=f"cut\\{suffix} is broken"):
        read(path)


def test_truncated_jpeg_with_a_whole_thumbnail_is_named(tmp_path: Path) -> None:
    whole = encode(tmp_path / "a.jpg", PICTURE).read_bytes()
    segment = b"Exif\0\0" + exif(1) + whole
    data = whole[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + whole[2:]
    path = tmp_path / "a.jpg"
    path.write_bytes(data + b"a phone's video after the picture's end")
    assert read_image(path).shape == PICTURE.shape
    path.write_bytes(data[:-40])
    with pytest.raises(UserError, match=r"a\.jpg is broken"):
        read_image(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
@pytest.mark.parametrize("read", [read_image, read_mask, read_map, partial(require_file, remedy="give another")])
def test_a_pipe_among_the_files_is_refused_not_waited_for(tmp_path: Path, read: Reader) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png is a pipe or a device, not a file; "):
        read(tmp_path / "pipe.png")


@pytest.mark.parametrize("read", [read_image, read_mask, read_map])
def test_what_is_no_image_is_named(tmp_path: Path, read: Reader) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("<html>404</html>")
    encode(tmp_path / "float.tif", PICTURE[..., 0].astype(np.float32))
    for name, complaint in {
        "empty.jpg": "is an empty file",
        "text.png": "is broken",
        "float.tif": "has values of float32; save it with 8 or 16 bits|is broken or not an 8 or 16 bit image",
        "missing.jpg": "does not exist",
    }.items():
        with pytest.raises(UserError, match=complaint) as error:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path)


def bomb(width: int, height: int) -> bytes:
    """A PNG that declares its size and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")


def test_the_declared_size_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    (tmp_path / "bomb.png").write_bytes(bomb(20000, 20000))
    with pytest.raises(UserError, match=r"bomb.png is 20000 x 20000 pixels, 400 megapixels; the limit is 179"):
        read_image(tmp_path / "bomb.png")
    with pytest.raises(UserError, match=r"bomb.png is 20000 x 20000 pixels"):
        read_mask(tmp_path / "bomb.png")


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp", ".jpg", ".pnm", ".jp2"])
def test_the_size_is_known_of_every_format(tmp_path: Path, suffix: str) -> None:
    path = encode(tmp_path / f"a{suffix}", PICTURE)
    assert read_image(path, most_pixels=64 * 48).shape == PICTURE.shape
    with pytest.raises(UserError, match="is 64 x 48 pixels"):
        read_image(path, most_pixels=64 * 48 - 1)


def test_an_animation_is_refused(tmp_path: Path) -> None:
    plain = encode(tmp_path / "a.png", PICTURE).read_bytes()
    animated = plain[:33] + png_chunk(b"acTL", struct.pack(">II", 3, 0)) + plain[33:]
    (tmp_path / "a.png").write_bytes(animated)
    with pytest.raises(UserError, match=r"a.png is an animated PNG"):
        read_image(tmp_path / "a.png")


def test_a_full_disk_leaves_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"a.png"):
        write_picture(tmp_path / "a.png", PICTURE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("suffix", "order"), [(".jpg", ">H"), (".bmp", "<I"), (".tif", "<H"), (".pgm", "")])
def test_more_pixels_than_the_bytes_can_hold_are_refused(suffix: str, order: str) -> None:
    encoded = cv2.imencode(suffix, np.zeros((203, 207), np.uint8), [cv2.IMWRITE_TIFF_COMPRESSION, 1])[1].tobytes()
    for value in (203, 207):
        old, new = (struct.pack(order, number) if order else b"%d" % number for number in (value, 9000))
        encoded = encoded.replace(old, new)
    with pytest.raises(UserError, match=r"declares 9000 x 9000 pixels, more than \d+ bytes can hold"):
        decode_image(encoded, "bomb")
