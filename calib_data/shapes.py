"""Silhouettes of the synthetic set's objects, drawn with exact anti-aliasing."""

import cv2
import numpy as np

_SUPERSAMPLING = 4  # a mask's pixel is the mean of 4 x 4 drawn ones
_SHIFT = 6  # OpenCV's fixed point: coordinates to 1/64 of a drawn pixel

Polygon = np.ndarray  # (N, 2) float, x and y
Shape = tuple[list[Polygon], list[Polygon]]  # parts that are filled, then holes that are cut


def rasterize(shape: Shape, size: tuple[int, int]) -> np.ndarray:
    """The shape's coverage of each pixel.

    Args:
        shape: polygons in pixels of the image.
        size: (H, W) of the image.

    Returns:
        (H, W) uint8, 255 where a pixel lies wholly inside.
    """
    coverage = np.zeros(size, np.uint8)
    outline = np.concatenate(shape[0])
    left, top = np.floor(outline.min(axis=0)).clip(0).astype(int)
    right, bottom = np.ceil(outline.max(axis=0) + 1).clip(None, size[::-1]).astype(int)
    if left >= right or top >= bottom:  # wholly outside the image
        return coverage
    canvas = np.zeros(((bottom - top) * _SUPERSAMPLING, (right - left) * _SUPERSAMPLING), np.uint8)
    scale = _SUPERSAMPLING * (1 << _SHIFT)
    for polygons, value in zip(shape, (255, 0), strict=True):
        for polygon in polygons:
            corners = np.round((polygon - (left, top)) * scale).astype(np.int32)
            cv2.fillPoly(canvas, [corners], value, cv2.LINE_8, _SHIFT)
    box = (int(right - left), int(bottom - top))
    coverage[top:bottom, left:right] = cv2.resize(canvas, box, interpolation=cv2.INTER_AREA)
    return coverage


def draw_shape(rng: np.random.Generator) -> Shape:
    """A random silhouette around the origin, of a radius of about 1."""
    families = (_blob, _polygon, _animal, _vessel, _ring, _plant, _furniture)
    return families[int(rng.integers(len(families)))](rng)


def place(shape: Shape, centre: np.ndarray, radius: float, angle: float) -> Shape:
    """The shape turned by `angle` (radians), scaled by `radius` and moved to `centre` (x, y in pixels)."""
    turn = radius * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    filled, cut = ([polygon @ turn + centre for polygon in polygons] for polygons in shape)
    return filled, cut


def _ellipse(x: float, y: float, a: float, b: float, angle: float = 0.0, corners: int = 40) -> Polygon:
    t = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    points = np.stack([a * np.cos(t), b * np.sin(t)], axis=1)
    return points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + (x, y)


def _limb(start: Polygon, bend: Polygon, end: Polygon, thick: float, thin: float) -> Polygon:
    """A tapered, bent stroke: a quadratic Bézier curve with a width."""
    t = np.linspace(0, 1, 12)[:, None]
    line = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
    tangent = np.gradient(line, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1) / (np.linalg.norm(tangent, axis=1)[:, None] + 1e-9)
    width = thick + (thin - thick) * t
    return np.concatenate([line + normal * width, (line - normal * width)[::-1]])


def _beside(point: np.ndarray, dx: float, dy: float) -> np.ndarray:
    return np.array([point[0] + dx, point[1] + dy])


def _blob(rng: np.random.Generator) -> Shape:
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    radius = np.ones_like(t)
    for order in range(2, 7):
        radius += rng.normal() * 0.35 / order * np.cos(order * t + rng.uniform(0, 2 * np.pi))
    radius = np.clip(radius, 0.25, None) / radius.max()
    stretch = rng.uniform(0.5, 1.0)
    return [np.stack([radius * np.cos(t), stretch * radius * np.sin(t)], axis=1)], []


def _polygon(rng: np.random.Generator) -> Shape:
    corners = int(rng.integers(3, 9))
    t = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * 2 * np.pi / corners
    radius = rng.uniform(0.75, 1.0, corners)
    if rng.random() < 0.4:  # a star
        t = np.arange(2 * corners) * np.pi / corners
        radius = np.where(np.arange(2 * corners) % 2, rng.uniform(0.35, 0.6), 1.0)
    return [np.stack([radius * np.cos(t), radius * np.sin(t)], axis=1)], []


def _animal(rng: np.random.Generator) -> Shape:
    """A body, a head with ears, thin legs, a tail."""
    length, girth = rng.uniform(0.5, 0.7), rng.uniform(0.22, 0.36)
    parts = [_ellipse(0, 0, length, girth)]
    head = np.array([length * rng.uniform(0.95, 1.15), -girth * rng.uniform(0.8, 1.8)])
    parts += [_ellipse(head[0], head[1], rng.uniform(0.18, 0.28), rng.uniform(0.14, 0.22), rng.uniform(-0.5, 0.5))]
    parts += [_limb(np.array([length * 0.6, 0.0]), head * 0.8, head, girth * 0.6, 0.1)]
    for side in (-0.08, 0.08):
        parts += [_limb(head, _beside(head, side, -0.15), _beside(head, side * 1.8, -0.35), 0.06, 0.015)]
    reach = 0.7 * girth + rng.uniform(0.35, 0.6)
    for x in (-0.8, -0.55, 0.5, 0.75):
        hip = np.array([x * length, girth * 0.3])
        foot = _beside(hip, rng.uniform(-0.2, 0.2), reach)
        knee = _beside(hip, rng.uniform(-0.1, 0.1), 0.3)
        parts += [_limb(hip, knee, foot, rng.uniform(0.06, 0.1), rng.uniform(0.025, 0.045))]
    rump = np.array([-length * 0.9, -girth * 0.2])
    parts += [
        _limb(
            rump, _beside(rump, -0.3, rng.uniform(-0.5, 0.2)), _beside(rump, -0.35, rng.uniform(-0.7, 0.3)), 0.05, 0.02
        )
    ]
    return parts, []


def _vessel(rng: np.random.Generator) -> Shape:
    """A cup, jug or bottle: a profile of revolution, mostly with an open handle."""
    y = np.linspace(-0.85, 0.85, 25)
    belly = rng.uniform(0.05, 0.16) * np.sin(rng.uniform(2, 5) * y + rng.uniform(0, 2 * np.pi))
    widths = np.clip(rng.uniform(0.35, 0.55) + rng.uniform(-0.25, 0.25) * y + belly, 0.12, 0.7)
    if rng.random() < 0.3:  # a bottle's neck
        widths[:8] = np.minimum(widths[:8], rng.uniform(0.1, 0.16))
    body = np.concatenate([np.stack([widths, y], axis=1), np.stack([-widths, y], axis=1)[::-1]])
    parts, holes = [body], []
    if rng.random() < 0.8:
        x, reach, height = float(widths[5:20].max()), rng.uniform(0.25, 0.42), rng.uniform(0.3, 0.5)
        rim = rng.uniform(0.06, 0.1)
        parts = [_ellipse(x, 0, reach, height), body]
        holes = [_half(_ellipse(x, 0, reach - rim, height - rim), x + 0.02)]
    return parts, holes


def _half(polygon: Polygon, x: float) -> Polygon:
    """The part of a polygon right of x."""
    return np.stack([np.maximum(polygon[:, 0], x), polygon[:, 1]], axis=1)


def _ring(rng: np.random.Generator) -> Shape:
    """A wheel: a rim with a hole, perhaps spokes."""
    squeeze, rim = rng.uniform(0.55, 1.0), rng.uniform(0.16, 0.45)
    hole = _ellipse(0, 0, 1 - rim, squeeze - rim * squeeze)
    spokes = int(rng.choice([0, 0, 3, 4, 6]))
    if not spokes:
        return [_ellipse(0, 0, 1, squeeze)], [hole]
    # Spokes divide the hole into sectors.
    gap = rng.uniform(0.05, 0.09)
    sectors = []
    for k in range(spokes):
        t = np.linspace(k + gap * spokes / 6, k + 1 - gap * spokes / 6, 16) * 2 * np.pi / spokes
        arc = np.stack([np.cos(t), squeeze * np.sin(t)], axis=1) * (1 - rim)
        sectors.append(np.concatenate([arc, 0.2 * arc[::-1]]))
    return [_ellipse(0, 0, 1, squeeze)], sectors


def _plant(rng: np.random.Generator) -> Shape:
    """Thin stems from one root, each with a leaf or blossom."""
    root = np.array([0.0, 0.9])
    parts = [np.array([[-0.3, 0.55], [0.3, 0.55], [0.22, 1.0], [-0.22, 1.0]])]  # its pot
    for _ in range(int(rng.integers(3, 7))):
        tip = np.array([rng.uniform(-0.8, 0.8), rng.uniform(-0.9, 0.0)])
        parts.append(_limb(root, np.array([tip[0] * 0.2, 0.1]), tip, 0.04, 0.025))
        parts.append(_ellipse(tip[0], tip[1], rng.uniform(0.16, 0.34), rng.uniform(0.09, 0.2), rng.uniform(0, np.pi)))
    return parts, []


def _furniture(rng: np.random.Generator) -> Shape:
    """A chair or table: boards on thin legs."""
    seat, width = rng.uniform(-0.1, 0.25), rng.uniform(0.5, 0.8)
    leg, board = rng.uniform(0.04, 0.08), rng.uniform(0.1, 0.2)
    bars = [(-width, seat, width, seat + board)]
    bars += [(x, seat, x + 2 * leg, 0.95) for x in (-width, -0.5 * width, 0.45 * width, width - 2 * leg)]
    if rng.random() < 0.6:  # a back
        bars += [(-width, -0.95, -width + 2 * leg, seat), (width - 2 * leg, -0.95, width, seat)]
        bars += [(-width, y, width, y + board) for y in (-0.95, -0.5)]
    return [np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]) for x0, y0, x1, y1 in bars], []
