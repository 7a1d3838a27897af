"""Smoothing in time and the flicker figure, by values computed by hand."""

import math

import numpy as np
import pytest

from sodeploy.runtime.video.flicker import Flicker
from sodeploy.runtime.video.smoothing import SMOOTHERS, SMOOTHINGS, Smoothing, smoothed


def frame(*values: int) -> np.ndarray:
    """(1, W, 3) with all channels of one value."""
    return np.repeat(np.array([values], np.uint8)[..., None], 3, axis=2)


def saliency(*values: int) -> np.ndarray:
    return np.array([values], np.uint8)


class TestFlicker:
    def test_by_hand(self) -> None:
        flicker = Flicker()
        flicker.add(frame(10, 10, 10), saliency(0, 100, 200))
        # Pixels 0 and 1 hardly change (4 and 0 levels), pixel 2 does (5): |51 - 0| + |49 - 100| = 102 over 2 pixels
        flicker.add(frame(14, 10, 15), saliency(51, 49, 0))
        assert flicker.value == pytest.approx(102 / 255 / 2)
        # Pixels 1 and 2: |49 - 49| + |255 - 0| = 255; altogether 357 over 4 pixels of 6
        flicker.add(frame(30, 10, 15), saliency(255, 49, 255))
        assert flicker.value == pytest.approx(357 / 255 / 4)
        assert flicker.still_share == pytest.approx(4 / 6)
        assert str(flicker) == "flicker 0.35000 on the 67% of pixels that hardly change between frames"

    @pytest.mark.parametrize("channel", [0, 1, 2])
    def test_one_channel_is_enough_to_change(self, channel: int) -> None:
        flicker, changed = Flicker(), frame(100)
        changed[..., channel] = 105
        flicker.add(frame(100), saliency(0))
        flicker.add(changed, saliency(255))
        assert math.isnan(flicker.value)

    def test_darker_counts_as_brighter_does(self) -> None:
        flicker = Flicker()
        flicker.add(frame(100, 100), saliency(200, 200))
        flicker.add(frame(96, 95), saliency(149, 0))
        assert flicker.value == pytest.approx(51 / 255)

    def test_without_a_still_pixel_there_is_no_figure(self) -> None:
        flicker = Flicker()
        assert math.isnan(flicker.value)
        assert math.isnan(flicker.still_share)
        flicker.add(frame(0), saliency(0))
        assert math.isnan(flicker.value)
        flicker.add(frame(200), saliency(200))
        assert math.isnan(flicker.value)
        assert flicker.still_share == 0
        assert str(flicker) == "no flicker figure, for no pixel stays still from one frame to the next"


def run(smoothing: Smoothing, values: list[int], images: list[int] | None = None) -> list[int]:
    """The smoothed maps of one pixel, in order; checks that each frame comes back once, in order."""
    shown = images or [50] * len(values)
    maps = ((n, saliency(value)) for n, value in enumerate(values))
    result = list(smoothed(maps, smoothing, lambda n: frame(shown[n])))
    assert [n for n, _ in result] == list(range(len(values)))
    assert all(made.dtype == np.uint8 and made.shape == (1, 1) for _, made in result)
    return [int(made[0, 0]) for _, made in result]


class TestSmoothing:
    def test_the_table_is_whole(self) -> None:
        assert tuple(SMOOTHERS) == SMOOTHINGS

    def test_none(self) -> None:
        assert run("none", [0, 255, 0, 7]) == [0, 255, 0, 7]

    def test_median(self) -> None:
        # A flash of one frame goes, a step stays where it is; both ends are kept.
        assert run("median", [10, 255, 12, 14, 200, 210, 205]) == [10, 12, 14, 14, 200, 205, 205]

    @pytest.mark.parametrize("length", [0, 1, 2])
    def test_median_of_few(self, length: int) -> None:
        assert run("median", [9, 200][:length]) == [9, 200][:length]

    def test_exponential(self) -> None:
        # 0, then 100 / 2 = 50, (50 + 100) / 2 = 75, (75 + 0) / 2 = 37.5 -> 38, 18.75 -> 19
        assert run("exponential", [0, 100, 100, 0, 0]) == [0, 50, 75, 38, 19]

    def test_exponential_reaches_a_map_that_stays(self) -> None:
        assert run("exponential", [0, *[255] * 20])[-1] == 255

    @pytest.mark.parametrize(
        ("smoothing", "expected"), [("median", [10, 10, 200, 200, 200]), ("exponential", [10, 10, 200, 228, 214])]
    )
    def test_not_across_a_cut(self, smoothing: Smoothing, expected: list[int]) -> None:
        # The picture jumps by 31 levels before the third frame: 200, (200 + 255) / 2 = 227.5 -> 228, 213.75 -> 214
        assert run(smoothing, [10, 10, 200, 255, 200], images=[50, 50, 81, 81, 81]) == expected

    def test_a_picture_that_changes_less_is_no_cut(self) -> None:
        assert run("exponential", [0, 100], images=[50, 80]) == [0, 50]
        assert run("exponential", [0, 100], images=[80, 50]) == [0, 50]

    def test_maps_are_not_changed(self) -> None:
        first, second = saliency(0), saliency(100)
        list(smoothed([(0, first), (1, second)], "exponential", lambda n: frame(50)))
        assert first[0, 0] == 0
        assert second[0, 0] == 100

    @pytest.mark.parametrize("smoothing", ["median", "exponential"])
    def test_it_lowers_the_flicker(self, smoothing: Smoothing) -> None:
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        maps = [(n, rng.integers(90, 110, (20, 30)).astype(np.uint8)) for n in range(20)]
        raw, final = Flicker(), Flicker()
        for _, one in maps:
            raw.add(image, one)
        for _, one in smoothed(maps, smoothing, lambda _: image):
            final.add(image, one)
        assert final.value < 0.75 * raw.value
