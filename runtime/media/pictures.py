"""The pictures that a user can ask for, made of a frame and its saliency map.

`TYPES` is the table of them: a new type costs one entry. `sodeploy.runtime.composition` puts the pixels together.
"""

import importlib.util
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np

from sodeploy import terminal
from sodeploy.errors import UserError
from sodeploy.runtime.composition import Style, compose, defocused, over
from sodeploy.runtime.media.frame import Frame
from sodeploy.runtime.media.reading import read_frame

_AROUND = 32  # pixels of the background around an object that the estimate of its colors sees
_estimating = threading.Lock()  # it uses all cores, and one of numba's ways to do so ends the process if two threads do
_COLOR = re.compile(r"#?([0-9a-fA-F]{6}|[0-9a-fA-F]{3})")


@dataclass(frozen=True)
class Look:
    """The look of a picture; `parse_look` makes one.

    Attributes:
        type: a key of `TYPES`.
        color: RGB of the new background; of the types "green", "white" and "color".
        backdrop: (H, W, 3) uint8 RGB, the new background of the type "image".
        threshold: the map becomes 255 from this value in [0, 1] on, else 0; None keeps its shades.
        estimated: the colors of a cut-out's edge are estimated, so that nothing of the old background stays in them.
    """

    type: str = "map"
    color: tuple[int, int, int] | None = None
    backdrop: np.ndarray | None = field(default=None, repr=False, compare=False)
    threshold: float | None = None
    estimated: bool = False

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB, 4 for RGBA."""
        return TYPES[self.type].channels

    @property
    def kernel(self) -> Style:
        """The style that a GPU makes for this look: the picture itself, or the map that the CPU makes it from."""
        return TYPES[self.type].kernel if self.threshold is None and not self.estimated else "map"

    @property
    def whole_frame(self) -> bool:
        """Whether the picture needs the frame's own transparency and profile."""
        return self.type != "map"


class _Cut(NamedTuple):
    """An object cut out.

    Attributes:
        frame: the picture that it was cut from.
        colors: (H, W, 3) uint8 RGB, the object's own colors where alpha is above 0.
        alpha: (H, W) uint8.
    """

    frame: Frame
    colors: np.ndarray
    alpha: np.ndarray


class PictureType(NamedTuple):
    """A type of picture.

    Attributes:
        does: a line of help.
        channels: 1 for grey, 3 for RGB, 4 for RGBA.
        make: the picture of a cut-out.
        cutout: the object stands before something new, so the colors of its edge matter.
        takes: the argument behind a colon, for example "#RRGGBB"; empty for none.
        kernel: the style that a GPU has a kernel for; "map" where the CPU makes the picture from the map.
    """

    does: str
    channels: int
    make: Callable[[_Cut, Look], np.ndarray]
    cutout: bool = True
    takes: str = ""
    kernel: Style = "map"


def parse_look(text: str, threshold: float | None = None, estimated: bool = True) -> Look:
    """The look that a text such as "rgba" or "color:#FF8800" names.

    Args:
        threshold: see `Look`.
        estimated: estimate the colors of a cut-out's edge; no effect on types that are no cut-outs.

    Raises:
        UserError: there is no such type, its argument is missing or wrong, the threshold is not in [0, 1], or the
            package that estimates colors is missing.
    """
    name, colon, argument = text.partition(":")
    name = name.lower()
    if name not in TYPES:
        raise UserError(f"--type {text}: there is no such type; choose among {', '.join(SYNTAX)}")
    kind = TYPES[name]
    if bool(kind.takes) != bool(argument) or (colon and not argument):
        raise UserError(f"--type {text}: write it as {_syntax(name)}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"--threshold {threshold} is not within 0 to 1; take for example 0.5")
    color, backdrop = _COLORS.get(name), None
    if name == "color":
        if not (match := _COLOR.fullmatch(argument)):
            raise UserError(f"--type {text}: {argument} is no color; write it as #RRGGBB, for example color:#FF8800")
        digits = match[1] if len(match[1]) == 6 else "".join(digit * 2 for digit in match[1])  # #F80, as in CSS
        red, green, blue = bytes.fromhex(digits)
        color = red, green, blue
    if name == "image":
        backdrop = read_frame(argument, whole=False).image
    estimated = estimated and kind.cutout
    if estimated:
        require_estimation()
    return Look(name, color, backdrop, threshold, estimated)


def make_picture(frame: Frame, saliency: np.ndarray, look: Look) -> np.ndarray:
    """The picture of a frame.

    A cut-out keeps the frame's own transparency: it is multiplied into the alpha.

    Args:
        saliency: (H, W) uint8 saliency map.

    Returns:
        uint8, (H, W), (H, W, 3) RGB or (H, W, 4) RGBA, as the look's channels say.
    """
    kind = TYPES[look.type]
    alpha = saliency
    if look.threshold is not None:
        alpha = np.where(saliency >= look.threshold * 255, np.uint8(255), np.uint8(0))
    if kind.cutout and frame.alpha is not None:
        alpha = product(alpha, frame.alpha)
    colors = foreground(frame.image, alpha) if look.estimated else frame.image
    return kind.make(_Cut(frame, colors, alpha), look)


def finish_picture(frame: Frame, made: np.ndarray, style: Style, look: Look) -> np.ndarray:
    """The picture of a frame, from the one that a mapper made in a style: "map" or `look.kernel`."""
    if style == "map":
        return make_picture(frame, made, look)
    if frame.alpha is None or look.type == "overlay":
        return made
    if look.type == "rgba":
        return np.dstack([made[..., :3], product(made[..., 3], frame.alpha)])
    return over(made, np.broadcast_to(np.array(look.color, np.uint8), made.shape), frame.alpha)


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a * b / 255 of two opacities (H, W) uint8, rounded to nearest."""
    return ((a.astype(np.uint16) * b + 127) // 255).astype(np.uint8)


def foreground(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The object's own colors, without the light of the background that shines through at its edge.

    T. Germer et al., "Fast Multi-Level Foreground Estimation", 2020, by pymatting.

    Args:
        image: (H, W, 3) uint8 RGB.
        alpha: (H, W) uint8.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    soft = (alpha > 0) & (alpha < 255)
    if not soft.any() or soft.size == 1:  # pymatting takes no single pixel
        return image
    left, top, width, height = cv2.boundingRect((alpha > 0).astype(np.uint8))
    box = (
        slice(max(0, top - _AROUND), top + height + _AROUND),
        slice(max(0, left - _AROUND), left + width + _AROUND),
    )
    scale = np.float32(1 / 255)
    with _estimating:
        estimated = load_estimation()(image[box] * scale, alpha[box] * scale)
    colors = image.copy()
    np.copyto(colors[box], np.rint(np.clip(estimated, 0, 1) * 255).astype(np.uint8), where=soft[box][..., None])
    return colors


def require_estimation() -> None:
    """Refuse to estimate colors where the package is missing.

    Raises:
        UserError: that is so; the message is the pip command.
    """
    if importlib.util.find_spec("pymatting") is None:
        raise UserError(
            "clean edges of a cut-out need pymatting: pip install 'sodeploy[matting]'; or keep the image's own colors "
            "at the edge: --edges keep"
        )


def load_estimation() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The function that estimates colors. pymatting compiles itself when it is first imported, for about a minute."""
    if "pymatting" not in sys.modules:
        terminal.note("loading pymatting, which takes a minute the first time")
    from pymatting import estimate_foreground_ml

    estimate: Callable[[np.ndarray, np.ndarray], np.ndarray] = estimate_foreground_ml
    return estimate


def _on_color(cut: _Cut, look: Look) -> np.ndarray:
    color = np.array(look.color, np.uint8)
    return over(cut.colors, np.broadcast_to(color, cut.colors.shape), cut.alpha)


def _on_image(cut: _Cut, look: Look) -> np.ndarray:
    assert look.backdrop is not None
    return over(cut.colors, covering(look.backdrop, cut.frame.size), cut.alpha)


def covering(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image scaled to cover (height, width), aspect ratio kept, and cut at both sides alike."""
    height, width = size
    factor = max(height / image.shape[0], width / image.shape[1])
    scaled = max(height, round(image.shape[0] * factor)), max(width, round(image.shape[1] * factor))
    rule = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    enlarged = cv2.resize(image, scaled[::-1], interpolation=rule)
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    return np.ascontiguousarray(enlarged[top : top + height, left : left + width])


_COLORS = {"green": (0, 255, 0), "white": (255, 255, 255)}
TYPES: dict[str, PictureType] = {
    "map": PictureType("the saliency map, grey", 1, lambda cut, look: cut.alpha, cutout=False),
    "rgba": PictureType(
        "the object, transparent around it", 4, lambda cut, look: compose(cut.colors, cut.alpha, "rgba"), kernel="rgba"
    ),
    "green": PictureType("the object on green", 3, _on_color, kernel="green"),
    "white": PictureType("the object on white", 3, _on_color),
    "blur": PictureType(
        "the object before its blurred surroundings",
        3,
        lambda cut, look: over(cut.colors, defocused(cut.frame.image, cut.alpha), cut.alpha),
    ),
    "overlay": PictureType(
        "the image with the object tinted red",
        3,
        lambda cut, look: compose(cut.frame.image, cut.alpha, "overlay"),
        cutout=False,
        kernel="overlay",
    ),
    "color": PictureType("the object on a color", 3, _on_color, takes="#RRGGBB"),
    "image": PictureType("the object before another picture", 3, _on_image, takes="FILE"),
}


def _syntax(name: str) -> str:
    return f"{name}:{TYPES[name].takes}" if TYPES[name].takes else name


SYNTAX = tuple(map(_syntax, TYPES))
