"""The built-in data set: scenes drawn on the fly, so that the whole way can be walked with nothing downloaded.

What is salient is what stands in focus: one to three objects of seven families (animals, vessels, furniture, plants,
wheels, polygons, blobs) with thin parts and holes, textured, over a textured background of one or two regions.
Out-of-focus objects, wires that cross the whole image, shadows, uneven light and noise distract, and in every tenth
scene the objects nearly have the background's colour. Neither a brightness threshold nor a guess at the centre finds
them (S-measure about .5), a small network learns to within minutes.

Sample i of a split depends on nothing but the split, i and SIZE; splits share no scene.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

from sodeploy.calib_data.dataset import Dataset, array_digest
from sodeploy.calib_data.shapes import Shape, draw_shape, place, rasterize
from sodeploy.calib_data.textures import draw_colours, draw_texture
from sodeploy.errors import UserError

PREFIX = "synthetic:"
SYNTAX = "synthetic:train|val|calib|eval[:COUNT[:SIZE]]"

_COUNTS = {"train": 2000, "val": 100, "calib": 100, "eval": 200}
_SEEDS = {"train": 1, "val": 2, "calib": 3, "eval": 4}
_SIDES = (160, 321)  # of an image whose SIZE is not given
_SMALLEST, _LARGEST = 32, 4096


def open_synthetic(source: str) -> Dataset:
    """The data set that `synthetic:train|val|calib|eval[:COUNT[:SIZE]]` means.

    COUNT is how many images there are, by default 2000 to train, 200 to evaluate, 100 else. SIZE makes them all squares
    of so many pixels; by default each side is drawn from 160 to 320.

    Raises:
        UserError: the source has another form.
    """
    parts = source.removeprefix(PREFIX).split(":")
    split, numbers = parts[0], parts[1:]
    if split not in _SEEDS or len(numbers) > 2 or not all(part.isascii() and part.isdigit() for part in numbers):
        raise UserError(f"{source} is no synthetic data set; write {SYNTAX}, for example synthetic:eval:100")
    count = int(numbers[0]) if numbers else _COUNTS[split]
    side = int(numbers[1]) if len(numbers) > 1 else None
    if count < 1:
        raise UserError(f"{source} has no images; give a COUNT of 1 or more ({SYNTAX})")
    if side is not None and not _SMALLEST <= side <= _LARGEST:
        raise UserError(f"{source}: a SIZE of {side} is not within {_SMALLEST} to {_LARGEST} ({SYNTAX})")
    name = ":".join([f"{PREFIX}{split}:{count}", *numbers[1:]])
    return Dataset(name, [SyntheticSample(split, index, side) for index in range(count)])


@dataclass
class SyntheticSample:
    """One scene, drawn anew on each call."""

    split: str
    index: int
    side: int | None = None
    _digest: str = field(default="", init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        """For example `eval-00007`."""
        return f"{self.split}-{self.index:05}"

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return _draw_image(self._random(1), self._objects())

    def mask(self) -> np.ndarray:
        """(H, W) uint8, 255 where an object is, in between along its edges: exactly its share of each pixel."""
        background = np.ones(self._size(), np.float32)
        for coverage in self._objects():
            background *= 1 - coverage
        return np.rint(255 * (1 - background)).astype(np.uint8)

    def digest(self) -> str:
        """Hex sha256 of the image's pixels."""
        if not self._digest:
            self._digest = array_digest(self.image())
        return self._digest

    def _random(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([_SEEDS[self.split], self.index, stream])

    def _size(self) -> tuple[int, int]:
        if self.side is not None:
            return self.side, self.side
        height, width = self._random(2).integers(*_SIDES, size=2)
        return int(height), int(width)

    def _objects(self) -> list[np.ndarray]:
        """Each object's coverage, (H, W) float32 in [0, 1], back to front."""
        rng, size = self._random(0), self._size()
        count = int(rng.choice([1, 2, 3], p=[0.65, 0.25, 0.1]))
        smallest, largest = (0.3, 0.55) if count == 1 else (0.18, 0.34)
        wander, quarters = (
            (0.16 if count == 1 else 0.08),
            rng.permutation(4)[:count],
        )  # several stand in several quarters
        centres = [(0.5, 0.5)] if count == 1 else [(0.28 + 0.44 * (q % 2), 0.28 + 0.44 * (q // 2)) for q in quarters]
        shapes = [_scatter(rng, size, centre, wander, rng.uniform(smallest, largest)) for centre in centres]
        return [_coverage(shape, size) for shape in shapes]


def _scatter(
    rng: np.random.Generator, size: tuple[int, int], centre: tuple[float, float], wander: float, radius: float
) -> Shape:
    """A random shape near a place; place, wander and radius are shares of the image's sides."""
    height, width = size
    at = np.clip(np.array(centre) + rng.uniform(-wander, wander, 2), 0.05, 0.95) * (width, height)
    return place(draw_shape(rng), at, radius * min(size), rng.normal(0, 0.4))


def _draw_image(rng: np.random.Generator, objects: list[np.ndarray]) -> np.ndarray:
    """The scene around the objects (their coverages), (H, W, 3) uint8 RGB."""
    size = (objects[0].shape[0], objects[0].shape[1])
    ground = draw_colours(rng, spread=14)
    canvas = _draw_background(rng, size, ground)
    contrast = rng.uniform(20, 40) if rng.random() < 0.1 else rng.uniform(80, 170)
    for coverage in objects:
        canvas = _dim(canvas, 1 - rng.uniform(0, 0.4) * _shadow(rng, coverage))
        colours = draw_colours(rng, spread=rng.uniform(8, 30), unlike=ground.mean(axis=0), by=contrast)
        surface = draw_texture(rng, size, colours).astype(np.float32)
        roundness = 0.55 + 0.45 * _soften(coverage, 0.03)  # darker towards its edges, as if it were round
        canvas = _lay(_dim(surface, _light(rng, size, 0.75, 1.2) * roundness), coverage, canvas)
    canvas = _dim(canvas, _light(rng, size, 0.6, 1.25))
    noise = np.float32(rng.uniform(1, 8)) * rng.standard_normal(size, np.float32)
    return np.clip(canvas + cv2.merge([noise] * 3), 0, 255).astype(np.uint8)


def _draw_background(rng: np.random.Generator, size: tuple[int, int], ground: np.ndarray) -> np.ndarray:
    """Two regions, things out of focus, wires: (H, W, 3) float32."""
    canvas = draw_texture(rng, size, ground).astype(np.float32)
    if rng.random() < 0.6:
        related = draw_colours(rng, spread=14, unlike=ground.mean(axis=0), by=rng.uniform(15, 60))
        other = draw_texture(rng, size, related).astype(np.float32)
        canvas = _lay(other, _region(rng, size), canvas)
    for _ in range(int(rng.integers(0, 3))):
        shape = _scatter(rng, size, (0.5, 0.5), 0.5, rng.uniform(0.1, 0.35))
        blurred = _soften(_coverage(shape, size), rng.uniform(0.04, 0.07))
        canvas = _lay(_flat(rng, size), blurred, canvas)
    if rng.random() < 0.4:
        canvas = _lay(_flat(rng, size), _wire(rng, size), canvas)
    return canvas


def _region(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Coverage of all that lies to one side of a line across the image: a table's edge, a horizon, a wall's corner."""
    height, width = size
    angle = rng.choice([0.0, np.pi / 2]) + rng.normal(0, 0.2)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    start, far = rng.uniform(0.25, 0.75, 2) * (width, height), 2.0 * max(size)
    corners = [start - far * along, start + far * along, start + far * (along + across), start + far * (across - along)]
    return _coverage(([np.array(corners)], []), size)


def _wire(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Coverage of a thin line from one side of the image to the opposite one."""
    height, width = size
    start, end = rng.uniform(-0.2, 1.2, 2)
    ends = [(-0.1, start), (1.1, end)] if rng.random() < 0.5 else [(start, -0.1), (end, 1.1)]
    line = np.array(ends) * (width, height)
    across = (line[1] - line[0])[::-1] * (-1, 1) / np.linalg.norm(line[1] - line[0])
    half = rng.uniform(0.003, 0.012) * min(size) * across
    return _coverage(([np.array([line[0] - half, line[0] + half, line[1] + half, line[1] - half])], []), size)


def _shadow(rng: np.random.Generator, coverage: np.ndarray) -> np.ndarray:
    """A soft shadow that an object casts beside and below itself, (H, W) float32 in [0, 1]."""
    height, width = coverage.shape
    dx, dy = rng.uniform(-0.06, 0.06) * width, rng.uniform(0.0, 0.06) * height
    return _soften(cv2.warpAffine(coverage, np.array([[1, 0, dx], [0, 1, dy]]), (width, height)), 0.03)


def _light(rng: np.random.Generator, size: tuple[int, int], darkest: float, brightest: float) -> np.ndarray:
    """A smooth field of brightness factors, (H, W) float32."""
    corners = rng.uniform(darkest, brightest, (2, 2)).astype(np.float32)
    return cv2.resize(corners, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def _flat(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return np.full((*size, 3), draw_colours(rng, spread=0)[0], np.float32)


def _coverage(shape: Shape, size: tuple[int, int]) -> np.ndarray:
    """(H, W) float32 in [0, 1]."""
    return rasterize(shape, size).astype(np.float32) / np.float32(255)


def _soften(coverage: np.ndarray, sigma: float) -> np.ndarray:
    """Blur by a share of the shorter side, at a quarter of the resolution, which is enough and much cheaper."""
    height, width = coverage.shape
    small = cv2.resize(coverage, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(small, (0, 0), sigma * min(small.shape))
    return cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR)


def _lay(surface: np.ndarray, coverage: np.ndarray, canvas: np.ndarray) -> np.ndarray:
    """The canvas with a surface over it where the coverage says so."""
    return cv2.blendLinear(surface, canvas, coverage, 1 - coverage)


def _dim(canvas: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return canvas * cv2.merge([factor.astype(np.float32, copy=False)] * 3)
