"""The covariance of a layer's inputs, of one image after another.

Matrices of products are symmetric. Only their lower halves are computed and kept: the memory of the other halves is
reserved, but never touched.
"""

from typing import NamedTuple

import numpy as np
from scipy.linalg.blas import get_blas_funcs


class Moments(NamedTuple):
    """Of a layer's sampled inputs in one image: their mean, the sum of their products about it, and their number."""

    mean: np.ndarray
    products: np.ndarray
    positions: int

    @classmethod
    def of(cls, x: np.ndarray) -> "Moments":
        """
        Args:
            x: `(groups, positions, n)`; it is changed.
        """
        mean = x.mean(axis=1, keepdims=True)
        x -= mean
        return cls(mean[:, 0].astype(np.float64), _products(x), x.shape[1])


class Covariance:
    """Sums up the images.

    Within each image about its own mean, then between the means: exact in float32 also where means are large. Of a
    layer with large windows the inputs are kept until the end: they take less memory than their products.
    """

    def __init__(self, images: int, keeps_inputs: bool) -> None:
        self._images = images
        self._keeps_inputs = keeps_inputs
        self._inputs: list[np.ndarray] = []
        self._means: list[np.ndarray] = []
        self._within: np.ndarray | None = None

    def read(self, x: np.ndarray) -> Moments | np.ndarray:
        """The form in which `include` takes the sampled inputs of an image; any thread may make it."""
        return x if self._keeps_inputs else Moments.of(x)

    def include(self, image: Moments | np.ndarray) -> None:
        """Add an image; their order decides the last bits."""
        if isinstance(image, Moments):
            self._add(image)
        else:
            self._inputs.append(image)

    def take(self) -> np.ndarray:
        """`(groups, n, n) float64`, of which the lower halves are filled; nothing is left here."""
        while self._inputs:
            self._add(Moments.of(self._inputs.pop(0)))
        assert self._within is not None
        covariance, self._within = self._within, None
        between = np.stack(self._means, axis=1)  # (groups, images, n)
        between -= between.mean(axis=1, keepdims=True)
        _add_shares(covariance, _products(between), self._images)
        return covariance

    def _add(self, image: Moments) -> None:
        self._means.append(image.mean)
        if self._within is None:
            self._within = np.zeros(image.products.shape)
        _add_shares(self._within, image.products, image.positions * self._images)


def _products(x: np.ndarray) -> np.ndarray:
    """`x.T @ x` of each `(positions, n)` in x, `(groups, n, n)`, of which the lower halves are filled."""
    symmetric_product = get_blas_funcs("syrk", (x,))
    found = np.empty((len(x), x.shape[2], x.shape[2]), x.dtype)
    for one, square in zip(x, found, strict=True):  # BLAS counts rows and columns the other way round
        symmetric_product(1, one.T, c=square.T, overwrite_c=1)
    return found


def _add_shares(totals: np.ndarray, products: np.ndarray, divisor: int) -> None:
    """`totals += products / divisor`, in the lower halves."""
    from sodeploy.quant.planning import gptq_loops  # here: compiled code takes long to import

    for total, square in zip(totals, products, strict=True):
        gptq_loops.add_share(total, square, divisor)
