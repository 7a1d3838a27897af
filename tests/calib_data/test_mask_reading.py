"""Masks and maps as people store them come out as the masks meant, or are refused by name."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from test_images import encode, png_chunk

from sodeploy.calib_data import open_dataset, open_photographs
from sodeploy.calib_data.mask_reading import read_map, read_mask, understand_mask
from sodeploy.calib_data.mask_sets import check_masks
from sodeploy.errors import UserError

MASK = np.zeros((48, 64), np.uint8)
MASK[10:30, 20:50] = 255
OBJECT = MASK > 0
NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 4), dtype=np.uint8)


def grey_alpha(grey: np.ndarray, alpha: np.ndarray) -> bytes:
    """A PNG of grey and alpha, which OpenCV does not write."""
    return png(np.dstack([grey, alpha]), bits=8, colour=4)


def palette(indices: np.ndarray, colours: list[tuple[int, int, int]], transparent: int | None = None) -> bytes:
    extra = png_chunk(b"PLTE", bytes(sum(colours, ())))
    if transparent is not None:
        extra += png_chunk(b"tRNS", bytes([255] * transparent + [0]))
    return png(indices, 8, 3, extra)


def png(samples: np.ndarray, bits: int, colour: int, extra: bytes = b"") -> bytes:
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + extra + pixels + png_chunk(b"IEND", b"")


def shades(depth: int) -> np.ndarray:
    """A soft mask of so many bits in 16, its full scale reached."""
    soft = np.zeros((48, 64), np.uint16)
    soft[10:30, 20:50] = np.linspace(0, 2**depth - 1, 600, dtype=np.uint16).reshape(20, 30)
    return soft


def rgb(mask: np.ndarray) -> np.ndarray:
    return np.repeat(mask[..., None], 3, axis=2)


VOC = np.where(OBJECT, 15, 0).astype(np.uint8)
VOC[9:11, 20:50] = 255  # a thin void
NOT_VOID = np.where(VOC == 15, 255, 0).astype(np.uint8)

ARRAYS = {
    "grey": MASK,
    "rgb": rgb(MASK),
    "opaque rgba": np.dstack([rgb(MASK), np.full((48, 64), 255, np.uint8)]),
    "16 bit": MASK.astype(np.uint16) * 257,
    "8 bit in 16": MASK.astype(np.uint16),
    "12 bit in 16": OBJECT.astype(np.uint16) * 4095,
    "10 bit in 16": OBJECT.astype(np.uint16) * 1023,
    "zero-one": MASK // 255,
    "zero-one in 16": (MASK // 255).astype(np.uint16),
    "zero-two": (MASK // 255) * 2,
    "zero-128": (MASK // 255) * 128,
    "zero-300": OBJECT.astype(np.uint16) * 300,
    "zero-two as rgb": rgb((MASK // 255) * 2),
    "flat colour": np.where(OBJECT[..., None], np.uint8([200, 30, 10]), np.uint8(0)),
    "photograph with alpha": np.dstack([NOISE[..., :3], MASK]),
    "white with alpha": np.dstack([np.full((48, 64, 3), 255, np.uint8), MASK]),
    "mask with itself as alpha": np.dstack([rgb(MASK), MASK]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_masks(tmp_path: Path, name: str) -> None:
    mask = read_mask(encode(tmp_path / "mask.png", ARRAYS[name]))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, MASK)


RED_ON_BLACK = [(0, 0, 0), (128, 0, 0)]
FILES = {
    "one bit": lambda: cv2.imencode(".png", MASK, [cv2.IMWRITE_PNG_BILEVEL, 1])[1].tobytes(),
    "grey and alpha": lambda: grey_alpha(NOISE[..., 0], MASK),
    "palette of VOC": lambda: palette(MASK // 255, RED_ON_BLACK),
    "palette of one colour": lambda: palette(MASK // 255, [(0, 0, 0)] * 2),
    "palette of grey labels": lambda: palette(MASK // 255, [(0, 0, 0), (1, 1, 1)]),
    "palette without black": lambda: palette(MASK // 255, [(255, 255, 255), (200, 0, 0)]),
    "palette with a transparent background": lambda: palette(MASK // 255, RED_ON_BLACK, transparent=0),
}


@pytest.mark.parametrize("name", FILES)
def test_mask_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "mask.png").write_bytes(FILES[name]())
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), MASK)


def test_a_void_border_is_background(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_mask(encode(tmp_path / "grey.png", VOC)), NOT_VOID)
    index = (VOC == 15).astype(np.uint8) + 2 * (VOC == 255).astype(np.uint8)
    (tmp_path / "palette.png").write_bytes(palette(index, [*RED_ON_BLACK, (224, 224, 192)]))
    np.testing.assert_array_equal(read_mask(tmp_path / "palette.png"), NOT_VOID)


def test_several_labels_are_the_object(tmp_path: Path) -> None:
    labels = (MASK // 255) * 3
    labels[10:20, 20:50] = 7
    reading = understand_mask(encode(tmp_path / "mask.png", labels))
    np.testing.assert_array_equal(reading.mask, MASK)
    assert "labels" in reading.rule


@pytest.mark.parametrize("depth", [10, 12, 14, 16])
def test_a_soft_mask_of_more_bits_is_scaled(tmp_path: Path, depth: int) -> None:
    soft = shades(depth)
    expected = np.rint(soft.astype(float) * 255 / (2**depth - 1)).astype(int)
    assert np.abs(read_mask(encode(tmp_path / "mask.png", soft)) - expected).max() <= 0


def test_ordinary_masks_keep_their_values(tmp_path: Path) -> None:
    """Soft edges, a level of few annotators, JPEG's noise: above 128 is object, as PySODMetrics has it."""
    soft = cv2.GaussianBlur(MASK, (9, 9), 0)
    np.testing.assert_array_equal(read_mask(encode(tmp_path / "soft.png", soft)), soft)
    annotators = np.where(OBJECT, 255, 21).astype(np.uint8)
    annotators[:5] = 0
    np.testing.assert_array_equal(read_mask(encode(tmp_path / "few.png", annotators)), annotators)
    noisy = np.where(OBJECT, 254, 1).astype(np.uint8)
    np.testing.assert_array_equal(read_mask(encode(tmp_path / "noise.png", noisy)), noisy)
    assert not read_mask(encode(tmp_path / "empty.png", MASK * 0)).any()
    assert (read_mask(encode(tmp_path / "full.png", MASK * 0 + 1)) == 255).all()


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (NOISE[..., :3], "picture in colour"),
        (NOISE[..., 0] // 2, "none is above half of the scale"),
        ((MASK // 255) + 1, "none is above half of the scale"),
        (np.where(OBJECT[..., None], np.uint8([200, 30, 10]), np.uint8(255)), "none of which is black"),
        (np.dstack([rgb(MASK), np.roll(MASK, 9, axis=1)]), "two different masks"),
        (shades(14) // 3, "none is above half of the scale"),
    ],
    ids=["photograph", "faint", "labels from 1", "colours without black", "two masks", "half of the scale"],
)
def test_what_cannot_be_understood_is_named(tmp_path: Path, stored: np.ndarray, reason: str) -> None:
    path = encode(tmp_path / "odd.png", stored)
    with pytest.raises(UserError, match=rf"mask .*odd.png cannot be understood: .*{reason}"):
        read_mask(path)


def test_maps(tmp_path: Path) -> None:
    saliency = cv2.GaussianBlur(MASK, (9, 9), 0)
    for name, stored in {
        "grey": saliency,
        "rgb": rgb(saliency),
        "cut-out": np.dstack([NOISE[..., :3], saliency]),
        "nothing found": np.dstack([NOISE[..., :3], MASK * 0]),
        "faint": saliency // 9,
    }.items():
        found = read_map(encode(tmp_path / "map.png", stored))
        expected = {"nothing found": MASK * 0, "faint": saliency // 9}.get(name, saliency)
        np.testing.assert_array_equal(found, expected, err_msg=name)
    with pytest.raises(UserError, match=r"map .*photo.png cannot be understood: it is a picture in colour"):
        read_map(encode(tmp_path / "photo.png", NOISE[..., :3]))


@pytest.mark.parametrize(("value", "kind"), [(0, "no object"), (255, "no background")])
def test_a_set_of_masks_that_say_nothing_is_refused(tmp_path: Path, value: int, kind: str) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(3):
        encode(tmp_path / "images" / f"{number}.png", NOISE[..., :3])
        encode(tmp_path / "masks" / f"{number}.png", np.full((48, 64), value, np.uint8))
    with pytest.raises(UserError, match=rf"all 3 masks have {kind} .*2.png"):
        check_masks(open_dataset(tmp_path), "any")
    encode(tmp_path / "masks" / "1.png", MASK)
    check_masks(open_dataset(tmp_path), "any")


def test_each_way_of_storing_masks_is_told_with_its_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = [MASK, MASK // 255 * 2, MASK, MASK // 255 * 3, MASK // 255 * 2]
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number, mask in enumerate(stored):
        encode(tmp_path / "images" / f"{number}.jpg", NOISE[..., :3])
        encode(tmp_path / "masks" / f"{number}.png", mask)
    check_masks(open_dataset(tmp_path), "any")
    told = " ".join(capsys.readouterr().err.split())
    assert "2 of 5 masks of any: value 2 is the object" in told
    assert "1 of 5 masks of any: value 3 is the object" in told
    encode(tmp_path / "masks" / "3.png", np.full((48, 64), 7, np.uint8) + NOISE[..., 0] // 4)
    with pytest.raises(UserError, match=r"masks/3.png cannot be understood"):
        check_masks(open_dataset(tmp_path), "any")


def data_set(folder: Path, masks: list[np.ndarray]) -> Path:
    for place in ("images", "masks"):
        (folder / "d" / place).mkdir(parents=True)
    for index, mask in enumerate(masks):
        cv2.imwrite(str(folder / "d" / "images" / f"{index}.png"), np.zeros((*MASK.shape, 3), np.uint8))
        encode(folder / "d" / "masks" / f"{index}.png", mask)
    return folder / "d"


@pytest.mark.parametrize(
    ("masks", "told"),
    [
        ([255 - MASK, 255 - MASK, MASK], "in 2 of 3 masks the border of the picture is object"),
        ([1 - MASK // 255, 1 - MASK // 255], "in 2 of 2 masks the border of the picture is object"),
        ([255 - MASK, MASK], ""),
        ([MASK], ""),
    ],
)
def test_inverted_masks_are_told(
    tmp_path: Path, masks: list[np.ndarray], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check_masks(open_dataset(data_set(tmp_path, masks)), "d")
    said = " ".join(capsys.readouterr().err.split())
    assert ("are they inverted?" in said) == bool(told)
    assert told in said


def test_a_turned_mask_is_told(tmp_path: Path) -> None:
    sample = open_dataset(data_set(tmp_path, [MASK.T]))[0]
    with pytest.raises(UserError, match=r"is 48x64 but its image .* is 64x48 .*: height and width are swapped"):
        sample.mask()


def test_masks_in_gif_files_are_found(tmp_path: Path) -> None:
    folder = data_set(tmp_path, [MASK])
    (folder / "masks" / "0.png").unlink()
    Image.fromarray(MASK).save(folder / "masks" / "0.gif")
    np.testing.assert_array_equal(open_dataset(folder)[0].mask(), MASK)


def test_masks_of_float_numbers_are_named(tmp_path: Path) -> None:
    file = encode(tmp_path / "m.tiff", OBJECT.astype(np.float32))
    with pytest.raises(UserError, match="has values of float32; save it with 8 or 16 bits per channel"):
        read_mask(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"<!doctype html><html>", "it is a web page"), (b"version https://git-lfs.github.com/spec/v1", "of Git LFS")],
)
def test_masks_that_are_something_else(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.png").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_mask(tmp_path / "m.png")


def test_pictures_of_one_color_are_no_masks(tmp_path: Path) -> None:
    for name, level in (("black", 0), ("white", 255)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((20, 20, 3), level, np.uint8))
    assert len(open_photographs(tmp_path)) == 2
    cv2.imwrite(str(tmp_path / "mask.png"), np.eye(20, dtype=np.uint8) * 255)
    with pytest.raises(UserError, match="black and white alone"):
        open_photographs(tmp_path)
