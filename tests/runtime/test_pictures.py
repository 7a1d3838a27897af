"""The types of pictures: colors at the edge, transparency, blur, and the files they become."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from sodeploy.errors import UserError
from sodeploy.runtime.composition import compose, defocused
from sodeploy.runtime.media.frame import Frame
from sodeploy.runtime.media.pictures import TYPES, covering, finish_picture, make_picture, parse_look
from sodeploy.runtime.media.still import encode_still, still_suffix, write_still

ImageCms = pytest.importorskip("PIL.ImageCms")
OBJECT, BEHIND = np.array([[200, 40, 30], [20, 120, 60]], np.uint8)


def soft_disc(side: int = 96) -> np.ndarray:
    """The alpha of a disc with a soft edge."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return (np.clip(0.5 + (side / 4 - np.hypot(x, y)) / 8, 0, 1) * 255).astype(np.uint8)


def mixed(alpha: np.ndarray) -> np.ndarray:
    """The image of an object over a background, each of one color."""
    weight = alpha[..., None] / 255
    return np.rint(OBJECT * weight + BEHIND * (1 - weight)).astype(np.uint8)


def test_the_edge_of_a_cut_out_keeps_nothing_of_the_background() -> None:
    alpha = soft_disc()
    frame = Frame(mixed(alpha))
    clean = make_picture(frame, alpha, parse_look("rgba"))
    kept = make_picture(frame, alpha, parse_look("rgba", estimated=False))
    edge = (alpha > 30) & (alpha < 225)
    error = {
        name: np.abs(p[..., :3][edge].astype(int) - OBJECT).mean() for name, p in [("clean", clean), ("kept", kept)]
    }
    assert error["clean"] < 5 < 20 < error["kept"]
    np.testing.assert_array_equal(clean[..., 3], alpha)
    white = make_picture(frame, alpha, parse_look("white")).astype(float)
    ideal = OBJECT * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255)
    assert np.abs(white - ideal).max() < 12


def test_without_the_package_clean_edges_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymatting", None)
    with pytest.raises(UserError, match=r"pip install 'sodeploy\[matting\]'; or keep .*--edges keep"):
        parse_look("rgba")
    assert parse_look("rgba", estimated=False) == parse_look("rgba", estimated=False)
    parse_look("map")
    parse_look("overlay")


@pytest.mark.parametrize(("side", "most"), [(96, 8), (384, 2)])  # the disc's edge is as wide in both
def test_the_blur_has_no_halo_and_grows_with_the_image(side: int, most: int) -> None:
    alpha = soft_disc(side)
    background = defocused(mixed(alpha), alpha)
    seen = 1 - alpha[..., None] / 255  # how much of the background shows
    assert (np.abs(background.astype(int) - BEHIND) * seen).max() <= most
    stripes = np.zeros((side, side, 3), np.uint8)
    stripes[:, side // 2 :] = 255
    ramp = defocused(stripes, np.zeros((side, side), np.uint8))[side // 2, :, 0]
    assert abs(int(((ramp > 20) & (ramp < 235)).sum()) / side - 0.07) < 0.02


def test_the_frames_own_transparency_is_multiplied() -> None:
    alpha = soft_disc()
    own = np.full_like(alpha, 128)
    own[:48] = 255
    frame = Frame(mixed(alpha), own)
    look = parse_look("rgba", estimated=False)
    made = make_picture(frame, alpha, look)
    np.testing.assert_array_equal(made[..., 3], np.rint(alpha.astype(float) * own / 255))
    from_gpu = finish_picture(frame, compose(frame.image, alpha, "rgba"), "rgba", look)
    np.testing.assert_array_equal(from_gpu, made)
    green = parse_look("green", estimated=False)
    from_gpu = finish_picture(frame, compose(frame.image, alpha, "green"), "green", green)
    assert np.abs(from_gpu.astype(int) - make_picture(frame, alpha, green)).max() <= 1
    assert (make_picture(frame, alpha, parse_look("map")) == alpha).all()


def test_a_picture_of_one_pixel() -> None:
    for kind in ("rgba", "blur"):
        made = make_picture(Frame(np.full((1, 1, 3), 90, np.uint8)), np.full((1, 1), 128, np.uint8), parse_look(kind))
        assert made.shape[:2] == (1, 1)


def test_threshold() -> None:
    alpha = soft_disc()
    assert set(np.unique(make_picture(Frame(mixed(alpha)), alpha, parse_look("map", 0.5)))) == {0, 255}
    made = make_picture(Frame(mixed(alpha)), alpha, parse_look("map", 0.5))
    np.testing.assert_array_equal(made == 255, alpha >= 127.5)


def test_a_color_and_a_picture_behind(tmp_path: Path) -> None:
    nothing = np.zeros((20, 30), np.uint8)
    frame = Frame(np.zeros((20, 30, 3), np.uint8))
    assert (make_picture(frame, nothing, parse_look("color:#102030")) == [16, 32, 48]).all()
    assert parse_look("color:#Fa0").color == (255, 170, 0)  # the short form of CSS
    cv2.imwrite(str(tmp_path / "b.png"), np.full((10, 10, 3), (3, 2, 1), np.uint8))
    assert (make_picture(frame, nothing, parse_look(f"image:{tmp_path / 'b.png'}")) == [1, 2, 3]).all()
    wide = np.arange(100, dtype=np.uint8)[None, :, None].repeat(10, 0).repeat(3, 2)
    np.testing.assert_array_equal(covering(wide, (10, 50))[0, :, 0], range(25, 75))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "rgb",
            "there is no such type; choose among map, rgba, green, white, blur, overlay, color:#RRGGBB, image:FILE",
        ),
        ("color", "write it as color:#RRGGBB"),
        ("color:orange", "orange is no color; write it as #RRGGBB"),
        ("white:3", "write it as white"),
        ("image:", "write it as image:FILE"),
        ("image:absent.png", "absent.png does not exist"),
    ],
)
def test_types_that_are_wrong(text: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        parse_look(text, estimated=False)


def test_every_type_makes_the_channels_it_says() -> None:
    alpha = soft_disc(24)
    for name, kind in TYPES.items():
        if not kind.takes:
            made = make_picture(Frame(mixed(alpha)), alpha, parse_look(name, estimated=False))
            assert (made.shape[2] if made.ndim == 3 else 1) == kind.channels


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
def test_files_keep_profiles(suffix: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encode_still(mixed(soft_disc()), suffix, profile)
    image, _, blobs = cv2.imdecodeWithMetadata(np.frombuffer(data, np.uint8), flags=cv2.IMREAD_COLOR_RGB)
    assert np.abs(image.astype(int) - mixed(soft_disc())).mean() < 3
    assert [np.asarray(blob).tobytes() for blob in blobs] == [profile]
    exact = encode_still(soft_disc(), suffix)
    difference = cv2.imdecode(np.frombuffer(exact, np.uint8), cv2.IMREAD_GRAYSCALE).astype(int) - soft_disc()
    assert np.abs(difference).max() <= (0 if suffix != ".jpg" else 12)


def test_formats_that_cannot_hold_a_picture() -> None:
    with pytest.raises(UserError, match=r"JPEG has no transparency; choose --format png or webp, or --type white"):
        still_suffix("jpg", 4)
    with pytest.raises(UserError, match=r"a picture of 70000 x 1 does not fit into (webp|jpg); choose --format png"):
        encode_still(np.zeros((1, 70000), np.uint8), ".webp")


def test_standard_output_gets_the_bytes_alone(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    write_still(Path("-"), soft_disc(), ".png")
    written = capfdbinary.readouterr().out
    assert (cv2.imdecode(np.frombuffer(written, np.uint8), cv2.IMREAD_UNCHANGED) == soft_disc()).all()
