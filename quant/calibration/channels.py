"""The mean of each channel of a tensor."""

from math import prod

import numpy as np

_SUMS = 64  # of a row at least, where one channel has many: vector instructions add to several of them at once


class Channels:
    """A tensor as rows, each with the same number of channels, position by position; and the sums of the rows.

    A channel has several sums. They are of float64, so that neither the layout nor the order of additions matters.

    Attributes:
        rows: `(rows, values) float32`.
        sums: `(rows, n) float64`, zeros until `add_up` or `count` fills them; n is a multiple of a row's channels.
    """

    def __init__(self, values: np.ndarray, axis: int, rank: int) -> None:
        """Lay out a tensor.

        Args:
            values: float32, contiguous; in blocks, as of `in_blocks`, if it has one axis more than `rank`.
            axis: the axis of channels, 1 or -1.
            rank: the number of axes of the tensor in the network.
        """
        in_row = values.shape[-1] if axis == -1 or values.ndim > rank else 1
        self.rows = values.reshape(1 if axis == -1 else prod(values.shape[:2]), -1)
        self.sums = np.zeros((len(self.rows), in_row * max(_SUMS // in_row, 1)))
        self._in_row = in_row
        self._channels = in_row if axis == -1 else values.shape[1] * in_row

    def means(self) -> np.ndarray:
        """`(C,) float64`."""
        in_rows = self.sums.reshape(len(self.rows), -1, self._in_row).sum(axis=1)
        return in_rows.reshape(-1, self._channels).sum(axis=0) / (self.rows.size // self._channels)
