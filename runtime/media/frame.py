"""One picture of a source: its pixels, its own transparency and its color profile."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Frame:
    """A picture of a source.

    Attributes:
        image: (H, W, 3) uint8 RGB, as a viewer shows it.
        alpha: (H, W) uint8, the picture's own transparency; None where it has none.
        profile: ICC profile of RGB colors; None where there is none.
    """

    image: np.ndarray
    alpha: np.ndarray | None = None
    profile: bytes | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[0], self.image.shape[1]


def usable_profile(profile: bytes | None) -> bytes | None:
    """An ICC profile, if it is whole and of RGB colors.

    A CMYK or grey file has become RGB, so its profile no longer describes the pixels. ICC.1:2022, section 7.2: the
    profile begins with its size, the color space stands at byte 16, and "acsp" at byte 36.
    """
    if profile is None or len(profile) < 132 or int.from_bytes(profile[:4], "big") != len(profile):
        return None
    return profile if profile[16:20] == b"RGB " and profile[36:40] == b"acsp" else None
