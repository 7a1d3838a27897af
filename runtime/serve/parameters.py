"""The parameters of a request, under our names, rembg's and remove.bg's.

`OWN` and `OTHERS` are the tables of them; a new name costs one entry. A name stands in the query or in a form's fields.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, cast

from sodeploy.errors import UserError
from sodeploy.runtime.media.pictures import SYNTAX, Look, parse_look
from sodeploy.runtime.media.still import FORMATS, Format, still_suffix
from sodeploy.runtime.serve.refusals import Refusal

TYPES = tuple(name for name in SYNTAX if not name.startswith("image"))  # image:FILE would read a file of the server
_FLAGS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
_HEX = re.compile(r"#?(?:[0-9a-fA-F]{3,4}|[0-9a-fA-F]{6}|[0-9a-fA-F]{8})")


class Wanted(NamedTuple):
    """The picture that a request wants.

    Attributes:
        look: see `sodeploy.runtime.media.pictures`.
        suffix: of its format, such as ".png".
        model: the name of a model; "" for the first.
        ignored: parameters of the request that change nothing here.
    """

    look: Look
    suffix: str
    model: str
    ignored: tuple[str, ...]


class Parameter(NamedTuple):
    """One parameter: its meaning, and its JSON schema."""

    does: str
    schema: dict[str, object]


OWN = {
    "model": Parameter("name of a model (GET /v1/models); the first by default", {"type": "string"}),
    "type": Parameter(f"picture: {', '.join(TYPES)}; rgba by default", {"type": "string"}),
    "format": Parameter("format of the picture; png by default", {"type": "string", "enum": list(FORMATS)}),
    "threshold": Parameter(
        "make the map 255 from this value on, else 0", {"type": "number", "minimum": 0, "maximum": 1}
    ),
    "bgcolor": Parameter("the object on this color, as RRGGBB", {"type": "string", "pattern": "^#?[0-9a-fA-F]{6}$"}),
    "edges": Parameter(
        "colors of a cut-out's edge: estimated without the old background, or kept",
        {"type": "string", "enum": ["estimate", "keep"]},
    ),
}
ONLY_CUTOUT = ("type", "bgcolor", "edges")


def parse_parameters(given: Sequence[tuple[str, str]], default_type: str) -> Wanted:
    """The picture that a request wants.

    Args:
        given: names and values, of the query and of the form.
        default_type: "map" for a mask, which has no further types; "rgba" for a cut-out.

    Raises:
        Refusal: a name is unknown, a value is wrong, or two contradict each other.
    """
    refuse_urls([name for name, _ in given])
    own: dict[str, str] = {}
    ignored = []
    for name, value in given:
        if name not in OWN and name not in OTHERS:
            known = ", ".join(sorted({*OWN, *OTHERS}))
            raise Refusal("unknown_parameter", f"there is no parameter {_short(name)}; there are {known}")
        meant = OTHERS[name](value) if name in OTHERS else {} if (name, value) in _AUTO else {name: value}
        if meant is None:
            raise Refusal("bad_parameter", f"{name}={_short(value)} is not supported; see /openapi.json")
        if not meant:
            ignored.append(name)
        for key, text in meant.items():
            if own.setdefault(key, text) != text:
                raise Refusal("bad_parameter", f"{name}={_short(value)} contradicts another parameter; leave one out")
    if default_type == "map":
        if own.get("type", "map") != "map" or own.get("bgcolor"):
            raise Refusal("bad_parameter", "a mask has no type and no background; ask /v1/cutout for a cut-out")
        own["type"] = "map"
    return _wanted({key: text for key, text in own.items() if text}, default_type, tuple(ignored))


def refuse_urls(names: Iterable[str]) -> None:
    """Refuse a request that wants a URL to be fetched.

    Raises:
        Refusal: that is so.
    """
    for name in _URLS.intersection(names):
        raise Refusal("url_refused", f"{name}: no URL is ever fetched; send the picture itself in the field file")


def _wanted(own: Mapping[str, str], default_type: str, ignored: tuple[str, ...]) -> Wanted:
    kind = own.get("type", default_type)
    if kind.partition(":")[0].lower() == "image":
        raise Refusal("bad_parameter", "type=image would read a file of the server; lay the cut-out over it yourself")
    if color := own.get("bgcolor"):
        if kind not in ("rgba", "color"):
            raise Refusal("bad_parameter", f"bgcolor makes a picture on a color; leave type={_short(kind)} out")
        kind = f"color:{_rgb(color)}"
    threshold = None
    if "threshold" in own:
        try:
            threshold = float(own["threshold"])
        except ValueError:
            raise Refusal("bad_parameter", f"threshold={_short(own['threshold'])} is no number in 0 to 1") from None
    edges = own.get("edges", "estimate")
    if edges not in ("estimate", "keep"):
        raise Refusal("bad_parameter", f"edges={_short(edges)}: choose estimate or keep")
    try:
        look = parse_look(kind, threshold, edges == "estimate")
        suffix = still_suffix(cast(Format, own.get("format", "png")), look.channels)  # which checks it
    except UserError as error:
        text = re.sub(r"--(\w+) ", r"\1=", str(error))[:300]
        raise Refusal("bad_parameter", text) from None
    return Wanted(look, suffix, own.get("model", ""), ignored)


def _rgb(color: str) -> str:
    """#RRGGBB of a color in hexadecimal digits that is opaque."""
    if not _HEX.fullmatch(color):
        raise Refusal("bad_parameter", f"bgcolor={_short(color)} is no color; write it as RRGGBB, for example FF8800")
    digits = color.lstrip("#")
    if len(digits) < 5:
        digits = "".join(2 * digit for digit in digits)
    if digits[6:].lower() not in ("", "ff"):
        raise Refusal("bad_parameter", f"bgcolor={_short(color)} is not opaque; leave its opacity out")
    return f"#{digits[:6]}"


def _flag(value: str, meant: dict[str, str], otherwise: dict[str, str] | None = None) -> dict[str, str] | None:
    flag = _FLAGS.get(value.lower())
    return None if flag is None else meant if flag else otherwise or {}


def _rembg_color(value: str) -> dict[str, str] | None:
    """rembg's "R,G,B,A" in 0 to 255; without opacity it means a transparent background."""
    parts = [int(part) for part in value.split(",") if re.fullmatch(r"\s*\d{1,3}\s*", part)]
    if len(parts) != value.count(",") + 1 or len(parts) not in (3, 4) or max(parts) > 255:
        return None
    if parts[3:] == [0]:
        return {}
    return {"bgcolor": "".join(f"{part:02x}" for part in parts)}


def _one_of(values: Mapping[str, dict[str, str]]) -> Callable[[str], dict[str, str] | None]:
    return lambda value: values.get(value.lower())


_URLS = frozenset(("url", "image_url", "bg_image_url"))
_AUTO = (("type", "auto"), ("format", "auto"))  # remove.bg's
# Names of other services -> our parameters with their values; {}: it changes nothing here; None: it is not supported.
OTHERS: dict[str, Callable[[str], dict[str, str] | None]] = {
    "om": lambda value: _flag(value, {"type": "map"}),  # rembg: only the mask
    "ppm": lambda value: _flag(value, {"threshold": "0.5"}),  # rembg: a mask of black and white
    "a": lambda value: _flag(value, {"edges": "estimate"}, {"edges": "keep"}),  # rembg: alpha matting
    "af": lambda value: {},  # rembg: thresholds of its matting, which ours does without
    "ab": lambda value: {},
    "ae": lambda value: {},
    "bgc": _rembg_color,
    "bg_color": lambda value: {"bgcolor": value},  # remove.bg
    "size": _one_of({"auto": {}, "full": {}, "original": {}}),  # remove.bg; a picture always keeps its size
    "channels": _one_of({"rgba": {}, "alpha": {"type": "map"}}),  # remove.bg
}


def _short(text: str) -> str:
    """A user's text for a message."""
    return repr(text[:60])
