"""How much the maps of a video flicker."""

import cv2
import numpy as np

STILL = 4  # grey levels: a pixel whose channels change by no more between two frames hardly changes


class Flicker:
    """The mean change of the map from one frame to the next, where the picture hardly changes.

        flicker = sum over t, p in S(t) of |m(t, p) - m(t-1, p)|  /  sum over t of |S(t)|
        S(t)    = pixels p with max over R, G, B of |x(t, p) - x(t-1, p)| <= 4 grey levels

    for the maps m in [0, 1] and the frames x in 0..255, over all frames t but the first. 0: the map is as still as the
    picture. 0.01: where nothing moves, the map changes by 1 % of its range from frame to frame. A still picture still
    changes a little, by the noise of the camera and the loss of the codec. The figure needs no masks, and says nothing
    about whether a map is right.

    Attributes:
        frames: frames that were added.
    """

    def __init__(self) -> None:
        self._before: tuple[np.ndarray, np.ndarray] | None = None
        self._change = 0  # sum of the changes of still pixels, in grey levels of the map
        self._still = 0
        self._pixels = 0
        self.frames = 0

    def add(self, image: np.ndarray, saliency: np.ndarray) -> None:
        """Take the next frame.

        Args:
            image: (H, W, 3) uint8 RGB; not changed afterwards.
            saliency: (H, W) uint8, its map; not changed afterwards.
        """
        if self._before is not None:
            image_before, saliency_before = self._before
            red, green, blue = cv2.split(cv2.absdiff(image, image_before))
            still = cv2.max(cv2.max(red, green), blue) <= STILL
            change = cv2.absdiff(saliency, saliency_before)
            self._change += int(change.sum(where=still, dtype=np.int64))
            self._still += int(np.count_nonzero(still))
            self._pixels += still.size
        self._before = image, saliency
        self.frames += 1

    @property
    def value(self) -> float:
        """The flicker in [0, 1]; NaN where no pixel was still, or there are fewer than two frames."""
        return self._change / 255 / self._still if self._still else float("nan")

    @property
    def still_share(self) -> float:
        """The share of pixels that hardly change, in [0, 1]; NaN with fewer than two frames."""
        return self._still / self._pixels if self._pixels else float("nan")

    def __str__(self) -> str:
        if not self._still:
            return "no flicker figure, for no pixel stays still from one frame to the next"
        return f"flicker {self.value:.5f} on the {self.still_share:.0%} of pixels that hardly change between frames"
