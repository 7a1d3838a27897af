"""Blending of scales and merging of patches, compared with values of the published code."""

from itertools import product

import numpy as np
import pytest
import torch
from fill import golden_input
from golden_values import Golden

from sodeploy import terminal
from sodeploy.errors import UserError
from sodeploy.runtime import pyramid
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.large_images import LargeImages, cut_patches, patch_size, predict_large
from sodeploy.runtime.processing import predict
from sodeploy.runtime.pyramid import Levels, blend, dilate, levels_of, merge_patches, transition
from sodeploy.training.models.laplacian import GaussianPyramid


@pytest.fixture
def golden() -> Golden:
    return Golden("inspyrenet_res2net50")


@pytest.fixture
def merged_golden() -> Golden:
    return Golden("patch_merge")


def levels(golden: Golden, case: str) -> Levels:
    def maps(*names: str) -> list[np.ndarray]:
        return [golden[f"{case}.{name}"][0, 0] for name in names]

    return Levels(maps("d0", "d1", "d2", "d3"), maps("p0", "p1", "p2"))


def test_pyramid(golden: Golden) -> None:
    image = golden["pyr.input16x24_seed3"]
    planes = image.reshape(-1, *image.shape[-2:])
    assert len(planes) == 1
    golden.check("pyr.reduce", pyramid.reduce(planes[0])[None, None], atol=1e-6, rtol=1e-7)
    golden.check("pyr.expand", pyramid.expand(planes[0])[None, None], atol=1e-6, rtol=1e-7)
    levels = levels_of(planes[0], 1)
    golden.check("pyr.deconstruct_lap", levels.details[0][None, None], atol=1e-6, rtol=1e-7)
    rebuilt = pyramid.reconstruct(levels.saliency[1], levels.details[0])
    golden.check("pyr.reconstruct", rebuilt[None, None], atol=1e-6, rtol=1e-7)


def test_pyramid_of_the_network(golden: Golden) -> None:
    in_torch = GaussianPyramid()
    image = torch.from_numpy(golden["pyr.input16x24_seed3"])
    golden.check("pyramid_kernel", in_torch.kernel, atol=1e-7, rtol=1e-7)
    golden.check("pyr.reduce", in_torch.reduce(image), atol=1e-6, rtol=1e-7)
    golden.check("pyr.expand", in_torch.expand(image), atol=1e-6, rtol=1e-7)
    detail = torch.from_numpy(golden["pyr.deconstruct_lap"])
    rebuilt = in_torch.reconstruct(in_torch.reduce(image), detail)
    golden.check("pyr.reconstruct", rebuilt, atol=1e-6, rtol=1e-7)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_ellipses(golden: Golden, level: int) -> None:
    size = (17, 9, 5)[level]
    point = np.zeros((size, size), np.float32)
    point[size // 2, size // 2] = 1
    golden.check(f"ellipse_kernel{level}", dilate(point, size))


@pytest.mark.parametrize("case", ["blend", "blend2"])
def test_blending(golden: Golden, case: str) -> None:
    low, high = levels(golden, "C64x64"), levels(golden, "C64x128")
    if case == "blend2":
        low.saliency[0] = 12 * golden["C64x64.gt"][0, 0] - 6
    blended = blend(low, high)
    for level, saliency in enumerate(blended.saliency):
        golden.check(f"{case}.d{level}", saliency[None, None], atol=1e-5, rtol=1e-7)
    bands = [transition(blended.saliency[level + 1], diameter) for level, diameter in enumerate((17, 9, 5))]
    for level, band in enumerate(bands):
        golden.check(f"{case}.transition{level}", band[None, None])
    assert bands[0].any() or case == "blend"


def test_merging_of_patches(merged_golden: Golden) -> None:
    def of_patch(size: int, channel: int, patch: int) -> np.ndarray:
        return (3 * golden_input(size, size, 1, channel * 100 + patch))[0, 0].numpy()

    patches = [
        Levels(
            [of_patch(64 >> k, 10 + k, patch) for k in range(4)], [of_patch(64 >> k, 20 + k, patch) for k in range(3)]
        )
        for patch in range(6)
    ]
    merged = merge_patches(iter(patches), columns=3, size=(96, 128), stride=(32, 32))
    for level in range(4):
        merged_golden.check(f"head_reflect_pad.d{level}", merged.saliency[level][None, None], atol=1e-5, rtol=1e-7)
    for level in range(3):
        merged_golden.check(f"head_reflect_pad.p{level}", merged.details[level][None, None])


def test_patches_are_cut_row_by_row(merged_golden: Golden) -> None:
    patches = np.stack(list(cut_patches(golden_input(96, 128, seed=5)[0].numpy(), (64, 64))))
    assert patches.shape == (6, 3, 64, 64)
    merged_golden.check("patches_sum", patches.sum((1, 2, 3), dtype=np.float64), atol=1e-2, rtol=1e-7)
    merged_golden.check("patch_last_head", patches[-1, :, 0, :8])


def contract(**fields: object) -> Contract:
    defaults: dict[str, object] = {"network": "grey", "height": 64, "width": 48, "mean": (0, 0, 0), "std": (1, 1, 1)}
    return Contract.model_validate(defaults | fields)


def grey(batch: np.ndarray) -> np.ndarray:
    """A network whose map is the mean of the channels."""
    return batch.mean(1, keepdims=True)


def photograph(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("output", "stretch"), list(product(["probability", "logit"], [False, True])))
def test_one_patch_is_the_whole_image(output: str, stretch: bool) -> None:
    agreed, image = contract(output=output, stretch=stretch), photograph(64, 48)
    whole = predict(image, agreed, grey).astype(int)
    assert np.abs(predict_large(image, agreed, grey, LargeImages(patches=True)) - whole).max() <= 1


def test_a_network_that_sees_each_pixel_alone_gives_the_same_map_in_patches() -> None:
    """But for what a patch's mirrored border changes in its pyramid."""
    image = np.full((160, 120, 3), 60, np.uint8)
    image[50:90, 30:70] = 200
    steps: list[terminal.Step] = []
    before = terminal.on_progress(steps.append)
    made = predict_large(image, contract(), grey, LargeImages(patches=True))
    terminal.on_progress(before)
    assert (steps[0].label, steps[-1].done, steps[-1].total) == ("patches", steps[0].total, steps[0].total)
    assert np.abs(made.astype(int) - image[..., 0]).mean() < 2


@pytest.mark.parametrize("way", [LargeImages(patches=True, two_scales=True), LargeImages(two_scales=True)])
def test_two_scales(way: LargeImages) -> None:
    agreed = contract(dynamic_size=True)
    image = photograph(200, 300)
    made = predict_large(image, agreed, grey, way)
    assert made.shape == (200, 300)
    # Where the small scale changes nothing by a half, no detail is taken from the large one: it stays smooth.
    assert made.astype(float).std() < predict(image, agreed, grey).astype(float).std() + 1


def test_two_scales_of_a_network_of_one_size_need_patches() -> None:
    with pytest.raises(UserError, match=r"grey takes 64x48 only.*add --patches for the large one"):
        predict_large(photograph(200, 300), contract(), grey, LargeImages(two_scales=True))


@pytest.mark.parametrize("size", [(20, 9000), (64, 48), (65, 49), (3000, 4000)])
def test_the_size_before_cutting_leaves_no_rest(size: tuple[int, int]) -> None:
    height, width = patch_size(size, contract(), 1280)
    assert (height - 64) % 32 == (width - 48) % 24 == 0
    assert height >= 64
    assert width >= 48
    assert min(height, width) <= 1280 + 32


def test_the_networks_own_pyramid_is_used() -> None:
    agreed, flat = contract(), np.full((64, 48), 3.0, np.float32)
    own = levels_of(flat)
    made = predict_large(photograph(64, 48), agreed, grey, LargeImages(patches=True), lambda batch: [own])
    assert (made == round(255 / (1 + np.exp(-3)))).all()


def test_nan_is_never_merged_away() -> None:
    def broken(batch: np.ndarray) -> np.ndarray:
        return np.full_like(batch[:, :1], np.nan)

    with pytest.raises(UserError, match="are NaN or infinite"):
        predict_large(photograph(160, 120), contract(), broken, LargeImages(patches=True))
