"""The compiled loops of adaptive rounding. In numpy each would be several passes over memory, and new memory for each.

Of symmetric matrices only the lower half is read and written. No sum is reordered and no product is fused with a sum,
so numpy gives the same bits.
"""

import numba
import numpy as np

_TILE = 64  # rows or columns that stay in the first-level cache


@numba.njit(nogil=True, cache=True, error_model="numpy")
def add_share(total: np.ndarray, products: np.ndarray, divisor: int) -> None:
    """`total += products / divisor`, `(n, n)`."""
    for row in range(len(total)):
        for column in range(row + 1):
            total[row, column] += np.float64(products[row, column]) / divisor


@numba.njit(nogil=True, cache=True, error_model="numpy")
def arranged(covariance: np.ndarray, order: np.ndarray, damping: float, scale: float, out: np.ndarray) -> None:
    """A damped and scaled covariance with its rows and columns in another order.

    Args:
        covariance: `(n, n)`.
        order: `(n,)`, the old place of each row.
        damping: added to the diagonal, before `scale` multiplies everything.
        out: `(n, n)`; its upper half is written.
    """
    size = len(order)
    for row in range(size):
        old = order[row]
        out[row, row] = (covariance[old, old] + damping) * scale
        for column in range(row + 1, size):
            other = order[column]
            out[row, column] = covariance[max(old, other), min(old, other)] * scale


@numba.njit(nogil=True, cache=True)
def mirror(square: np.ndarray) -> None:
    """Copy the upper half of `(n, n)` to the lower half."""
    size = len(square)
    for top in range(0, size, _TILE):
        for left in range(0, top + 1, _TILE):
            for row in range(top, min(top + _TILE, size)):
                for column in range(left, min(left + _TILE, row)):
                    square[row, column] = square[column, row]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def round_block(
    left: np.ndarray,
    factor: np.ndarray,
    scales: np.ndarray,
    largest: np.ndarray,
    places: np.ndarray,
    steps: np.ndarray,
    errors: np.ndarray,
) -> None:
    """Round some columns of a weight, one after the other; each error moves the columns that are left of them.

    Args:
        left: `(columns, rows) float64`, the columns as those before have moved them; they are changed.
        factor: `(columns, columns)`, upper triangular.
        scales: `(rows,)`, the size of a step.
        largest: `(rows,)`, the largest magnitude in steps.
        places: `(columns,)`, where each column stands in `steps`.
        steps: `(rows, n) int8`, written.
        errors: `(columns, rows)`, written: what later columns must make up for.
    """
    columns, rows = left.shape
    for begin in range(0, rows, _TILE):
        end = min(begin + _TILE, rows)
        for column in range(columns):
            for row in range(begin, end):
                nearest = np.rint(left[column, row] / scales[row])
                errors[column, row] = min(max(nearest, -largest[row]), largest[row])
            for row in range(begin, end):
                steps[row, places[column]] = np.int8(errors[column, row])
            for row in range(begin, end):
                off = left[column, row] - errors[column, row] * scales[row]
                errors[column, row] = off / factor[column, column]
            for later in range(column + 1, columns):
                for row in range(begin, end):
                    left[later, row] -= errors[column, row] * factor[column, later]
