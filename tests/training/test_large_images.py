"""Blending of scales and merging of patches, against values of the published code."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from network_case import load_fill

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
def golden(research: Path) -> Any:
    return np.load(research / "networks" / "inspyrenet_res2net50" / "golden.npz")


@pytest.fixture
def merged_golden(research: Path) -> Any:
    return np.load(research / "networks" / "inspyrenet_swinb" / "patch_merge_golden.npz")


@pytest.fixture
def fill(research: Path) -> ModuleType:
    return load_fill(research)


def levels(golden: Any, case: str) -> Levels:
    def maps(*names: str) -> list[torch.Tensor]:
        return [torch.from_numpy(golden[f"{case}.{name}"]) for name in names]

    return Levels(maps("d0", "d1", "d2", "d3"), maps("p0", "p1", "p2"))


def test_pyramid(golden: Any) -> None:
    pyramid = GaussianPyramid()
    image = torch.from_numpy(golden["pyr.input16x24_seed3"])
    np.testing.assert_allclose(pyramid.kernel, golden["pyramid_kernel"], atol=1e-7)
    np.testing.assert_allclose(pyramid.reduce(image), golden["pyr.reduce"], atol=1e-6)
    np.testing.assert_allclose(pyramid.expand(image), golden["pyr.expand"], atol=1e-6)
    detail = torch.from_numpy(golden["pyr.deconstruct_lap"])
    rebuilt = pyramid.reconstruct(pyramid.reduce(image), detail)
    np.testing.assert_allclose(rebuilt, golden["pyr.reconstruct"], atol=1e-6)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_ellipses(golden: Any, level: int) -> None:
    kernel = golden[f"ellipse_kernel{level}"]
    size = len(kernel)
    point = torch.zeros(1, 1, size, size)
    point[0, 0, size // 2, size // 2] = 1
    np.testing.assert_array_equal(dilate(point, size)[0, 0], kernel)


@pytest.mark.parametrize("case", ["blend", "blend2"])
def test_blending(golden: Any, case: str) -> None:
    low, high = levels(golden, "C64x64"), levels(golden, "C64x128")
    if case == "blend2":
        low.saliency[0] = 12 * torch.from_numpy(golden["C64x64.gt"]) - 6
    blended = blend(GaussianPyramid(), low, high)
    for level, saliency in enumerate(blended.saliency):
        np.testing.assert_allclose(saliency, golden[f"{case}.d{level}"], atol=1e-5, err_msg=f"d{level}")
    for level, diameter in enumerate((17, 9, 5)):
        band = transition(blended.saliency[level + 1], diameter)
        np.testing.assert_array_equal(band, golden[f"{case}.transition{level}"])
    assert golden["blend2.transition0"].any()


def test_merging_of_patches(fill: ModuleType, merged_golden: Any) -> None:
    def of_patches(size: int, channel: int) -> torch.Tensor:
        return torch.cat([3 * fill.golden_input(size, size, 1, channel * 100 + patch) for patch in range(6)])

    saliency = [of_patches(64 // 2**k, 10 + k) for k in range(4)]
    details = [of_patches(64 // 2**k, 20 + k) for k in range(3)]
    merged = merge_patches(GaussianPyramid(), Levels(saliency, details), columns=3, stride=32)
    for level in range(4):
        expected = merged_golden[f"head_reflect_pad.d{level}"]
        np.testing.assert_allclose(merged.saliency[level], expected, atol=1e-5, err_msg=f"d{level}")
    for level in range(3):
        np.testing.assert_array_equal(merged.details[level], merged_golden[f"head_reflect_pad.p{level}"])


def test_patches_are_cut_row_by_row(fill: ModuleType, merged_golden: Any) -> None:
    patches = cut_patches(fill.golden_input(96, 128, seed=5), 64, 32)
    assert patches.shape == (6, 3, 64, 64)
    np.testing.assert_allclose(patches.double().sum((1, 2, 3)), merged_golden["patches_sum"], atol=1e-2)
    np.testing.assert_array_equal(patches[-1, :, 0, :8], merged_golden["patch_last_head"])


def test_both_predict_a_map_of_the_images_size() -> None:
    network = build("inspyrenet_res2net50").eval()
    assert isinstance(network, InSPyReNet)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        blended = predict_blended(network, image[..., :64], image)
        patched = predict_patched(network, image, patch=64, stride=32)
    assert blended.shape == patched.shape == (1, 1, 64, 96)
