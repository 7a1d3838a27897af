"""Blending of scales and merging of patches, compared with values of the published code."""

import pytest
import torch
from fill import golden_input
from golden_values import Golden

from sodeploy.training.models import build
from sodeploy.training.models.inspyrenet import InSPyReNet, Levels
from sodeploy.training.models.laplacian import GaussianPyramid
from sodeploy.training.models.large_images import (
    blend,
    cut_patches,
    dilate,
    merge_patches,
    predict_blended,
    predict_patched,
    transition,
)


@pytest.fixture
def golden() -> Golden:
    return Golden("inspyrenet_res2net50")


@pytest.fixture
def merged_golden() -> Golden:
    return Golden("patch_merge")


def levels(golden: Golden, case: str) -> Levels:
    def maps(*names: str) -> list[torch.Tensor]:
        return [torch.from_numpy(golden[f"{case}.{name}"]) for name in names]

    return Levels(maps("d0", "d1", "d2", "d3"), maps("p0", "p1", "p2"))


def test_pyramid(golden: Golden) -> None:
    pyramid = GaussianPyramid()
    image = torch.from_numpy(golden["pyr.input16x24_seed3"])
    golden.check("pyramid_kernel", pyramid.kernel, atol=1e-7, rtol=1e-7)
    golden.check("pyr.reduce", pyramid.reduce(image), atol=1e-6, rtol=1e-7)
    golden.check("pyr.expand", pyramid.expand(image), atol=1e-6, rtol=1e-7)
    detail = torch.from_numpy(golden["pyr.deconstruct_lap"])
    rebuilt = pyramid.reconstruct(pyramid.reduce(image), detail)
    golden.check("pyr.reconstruct", rebuilt, atol=1e-6, rtol=1e-7)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_ellipses(golden: Golden, level: int) -> None:
    size = (17, 9, 5)[level]
    point = torch.zeros(1, 1, size, size)
    point[0, 0, size // 2, size // 2] = 1
    golden.check(f"ellipse_kernel{level}", dilate(point, size)[0, 0])


@pytest.mark.parametrize("case", ["blend", "blend2"])
def test_blending(golden: Golden, case: str) -> None:
    low, high = levels(golden, "C64x64"), levels(golden, "C64x128")
    if case == "blend2":
        low.saliency[0] = 12 * torch.from_numpy(golden["C64x64.gt"]) - 6
    blended = blend(GaussianPyramid(), low, high)
    for level, saliency in enumerate(blended.saliency):
        golden.check(f"{case}.d{level}", saliency, atol=1e-5, rtol=1e-7)
    bands = [transition(blended.saliency[level + 1], diameter) for level, diameter in enumerate((17, 9, 5))]
    for level, band in enumerate(bands):
        golden.check(f"{case}.transition{level}", band)
    assert bands[0].any() or case == "blend"


def test_merging_of_patches(merged_golden: Golden) -> None:
    def of_patches(size: int, channel: int) -> torch.Tensor:
        return torch.cat([3 * golden_input(size, size, 1, channel * 100 + patch) for patch in range(6)])

    saliency = [of_patches(64 // 2**k, 10 + k) for k in range(4)]
    details = [of_patches(64 // 2**k, 20 + k) for k in range(3)]
    merged = merge_patches(GaussianPyramid(), Levels(saliency, details), columns=3, stride=32)
    for level in range(4):
        merged_golden.check(f"head_reflect_pad.d{level}", merged.saliency[level], atol=1e-5, rtol=1e-7)
    for level in range(3):
        merged_golden.check(f"head_reflect_pad.p{level}", merged.details[level])


def test_patches_are_cut_row_by_row(merged_golden: Golden) -> None:
    patches = cut_patches(golden_input(96, 128, seed=5), 64, 32)
    assert patches.shape == (6, 3, 64, 64)
    merged_golden.check("patches_sum", patches.double().sum((1, 2, 3)), atol=1e-2, rtol=1e-7)
    merged_golden.check("patch_last_head", patches[-1, :, 0, :8])


def test_both_predict_a_map_of_the_images_size() -> None:
    network = build("inspyrenet_res2net50").eval()
    assert isinstance(network, InSPyReNet)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        blended = predict_blended(network, image[..., :64], image)
        patched = predict_patched(network, image, patch=64, stride=32)
    assert blended.shape == patched.shape == (1, 1, 64, 96)
