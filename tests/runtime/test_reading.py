"""Images as people have them: formats, transparency, profiles, and files that are no image."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from sodeploy.errors import UserError
from sodeploy.runtime.media.reading import decode_frame, read_frame

Image = pytest.importorskip("PIL.Image")
ImageCms = pytest.importorskip("PIL.ImageCms")
ImageOps = pytest.importorskip("PIL.ImageOps")

RED = (200, 30, 20)


def profile(colors: str = "sRGB") -> bytes:
    made: bytes = ImageCms.ImageCmsProfile(ImageCms.createProfile(colors)).tobytes()
    return made


def with_colors(space: bytes) -> bytes:
    """A profile that says it is for other colors."""
    return profile()[:16] + space + profile()[20:]


def saved(picture: "Image.Image", kind: str, **settings: object) -> bytes:
    data = io.BytesIO()
    picture.save(data, kind, **settings)
    return data.getvalue()


def red(mode: str = "RGB", size: tuple[int, int] = (60, 40)) -> "Image.Image":
    """Red, its right half half transparent where the mode has alpha."""
    picture = Image.new("RGBA", size, (*RED, 255))
    picture.paste((*RED, 128), (size[0] // 2, 0, *size))
    return picture.convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "PPM", "JPEG2000"])
def test_formats(kind: str) -> None:
    frame = decode_frame(saved(red(), kind), "x")
    assert frame.size == (40, 60)
    assert frame.alpha is None
    assert np.abs(frame.image[20, 30].astype(int) - RED).max() < 12


def test_heic() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    data = io.BytesIO()
    pillow_heif.from_pillow(red("RGBA")).save(data, quality=95)
    frame = decode_frame(data.getvalue(), "x.heic")
    assert np.abs(frame.image[20, 10].astype(int) - RED).max() < 12
    assert frame.alpha is not None
    assert abs(int(frame.alpha[20, 50]) - 128) < 4
    with pytest.raises(UserError, match=r"x.heic is broken \("):
        decode_frame(data.getvalue()[:200], "x.heic")
    with pytest.raises(UserError, match=r"x.heic is 60 x 40 pixels"):
        decode_frame(data.getvalue(), "x.heic", most_pixels=100)


def test_heic_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    with pytest.raises(
        UserError, match=r"x.heic is a HEIC picture: pip install 'sodeploy\[heif\]'; or save it as JPEG"
    ):
        decode_frame(b"\0\0\0\x1cftypheic" + bytes(100), "x.heic")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_transparency_is_turned_as_the_image_is(kind: str, orientation: int) -> None:
    picture = Image.new("RGBA", (60, 40), (*RED, 255))
    picture.paste((0, 0, 255, 100), (0, 0, 20, 10))  # blue and transparent in the corner
    exif = Image.Exif()
    exif[0x112] = orientation
    settings = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}.get(kind, {})
    data = saved(picture, kind, exif=exif, **settings)
    frame = decode_frame(data, "x")
    assert frame.alpha is not None
    assert frame.size == ((40, 60) if orientation < 5 else (60, 40))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    found = np.dstack([frame.image, frame.alpha])
    np.testing.assert_allclose(found.astype(int), expected, atol=3 if kind == "AVIF" else 0)


@pytest.mark.parametrize("stored", [0, 1, 2])  # not said, multiplied by alpha, not multiplied
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_colors_of_a_tiff_are_not_multiplied_by_its_transparency(stored: int, kind: type) -> None:
    full = np.iinfo(kind).max
    straight = np.array([200, 30, 100]) / 255
    colors = straight * 102 / 255 if stored == 1 else straight
    pixel = np.rint(np.append(colors, 102 / 255) * full).astype("<u2" if kind is np.uint16 else kind)
    bits, place = pixel.itemsize * 8, 8 + 2 + 12 * 10 + 4
    tags = [(256, 4, 1), (257, 4, 1), (258, 3, bits), (259, 3, 1), (262, 3, 2), (273, 4, place + 8), (277, 3, 4)]
    tags += [(278, 4, 1), (279, 4, 4 * pixel.itemsize), (338, 3, stored)]
    entries = [
        struct.pack("<HHII", tag, size, 4 if tag == 258 else 1, place if tag == 258 else value)
        for tag, size, value in tags
    ]
    page = struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4) + struct.pack("<4H", *[bits] * 4)
    frame = decode_frame(b"II*\0\x08\0\0\0" + page + pixel.tobytes(), "x")
    assert frame.alpha is not None
    assert frame.alpha[0, 0] == 102
    np.testing.assert_allclose(frame.image[0, 0], [200, 30, 100], atol=1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_profiles(kind: str) -> None:
    assert decode_frame(saved(red(), kind, icc_profile=profile()), "x").profile == profile()
    assert decode_frame(saved(red(), kind, icc_profile=profile("LAB")), "x").profile is None
    assert decode_frame(saved(red(), kind), "x").profile is None
    assert decode_frame(saved(red(), kind, icc_profile=profile()[:-9]), "x").profile is None  # cut short
    assert decode_frame(saved(red(), kind, icc_profile=profile()), "x", whole=False).profile is None


def test_cmyk_becomes_rgb_without_its_profile() -> None:
    frame = decode_frame(saved(red("CMYK"), "JPEG", quality=95, icc_profile=with_colors(b"CMYK")), "x")
    assert np.abs(frame.image[20, 30].astype(int) - RED).max() < 12
    assert frame.profile is None


def png_of(width: int, height: int) -> bytes:
    """A PNG that declares a size, with hardly any data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    begin = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return begin + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")


def test_files_that_are_no_image_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = saved(red(), "JPEG")
    frames = [red(), red("L").convert("RGB")]
    animated = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    pages = saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    for name, data, reason in [
        ("text.jpg", b"Dear reader,", "broken or no image"),
        ("empty.png", b"", "is an empty file"),
        ("huge.png", png_of(30000, 30000), "is 30000 x 30000 pixels, 900 megapixels; the limit is 179"),
        ("moving.gif", animated, "is an animated GIF; save the picture that counts as a file of its own"),
        ("pages.tif", pages, "is a TIFF of several pages; save the page that counts as a file of its own"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=rf"{name} {reason}|{name} is {reason}"):
            read_frame(tmp_path / name)
    monkeypatch.undo()
    (tmp_path / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    with pytest.raises(UserError, match=r"cut.jpg is broken"):
        read_frame(tmp_path / "cut.jpg")


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_preview_in_a_tiff_is_no_page(tmp_path: Path, compression: str) -> None:
    preview = red("RGB", (6, 4))
    preview.encoderinfo = {"tiffinfo": {254: 1}}  # the tag for a smaller copy of the page before
    data = saved(red(), "TIFF", save_all=True, append_images=[preview], compression=compression)
    (tmp_path / "a.tif").write_bytes(data)
    assert read_frame(tmp_path / "a.tif").size == (40, 60)
