"""Losses against values that the published code gave."""

from pathlib import Path

import numpy as np
import pytest
import torch
from network_case import load_fill

from training.losses import bce, feature_distance, iou
from training.models import build


@pytest.mark.parametrize("size", ["64x64", "70x100"])
def test_bce_and_iou_as_ras(research: Path, size: str) -> None:
    golden = np.load(research / "networks" / "ras" / "golden_v1.npz")
    mask = torch.from_numpy(golden[f"C{size}.gt"]).float().reshape(1, 1, *golden[f"C{size}.score1"].shape[-2:])
    logits = [torch.from_numpy(golden[f"C{size}.score{k}"]).float().reshape(mask.shape) for k in range(1, 6)]
    for k, logit in enumerate(logits, start=1):
        expected = golden[f"C{size}.loss_score{k}"].item()
        assert (bce([logit], mask) + iou([logit], mask)).item() == pytest.approx(expected, rel=1e-4)
    assert (bce(logits, mask) + iou(logits, mask)).item() == pytest.approx(golden[f"C{size}.loss_sum"].item(), rel=1e-4)


def test_feature_synchronisation_as_isnet(research: Path) -> None:
    """Both networks in train mode, as when the values were made."""
    fill = load_fill(research)
    golden = np.load(research / "networks" / "isnet_dis" / "golden.npz")
    image = torch.cat([fill.golden_input(96, 96, 3, seed) for seed in (0, 1)])
    mask = torch.cat([(fill.golden_input(96, 96, 1, seed) > 0).float() for seed in (7, 8)])
    with torch.no_grad():
        logits, of_image = fill.fill_state_dict(build("isnet_dis")).forward_with_features(image)
        of_mask = fill.fill_state_dict(build("isnet_gt_encoder")).forward_with_features(mask)[1]
    each = [feature_distance([f], [g]).item() for f, g in zip(of_image, of_mask, strict=True)]
    np.testing.assert_allclose(each, golden["train96/feat_mse_each"], rtol=1e-4)
    total = bce(logits, mask) + feature_distance(of_image, of_mask)
    expected_main, expected_total = golden["train96/featsync_MSE_main_total"]
    assert bce(logits[:1], mask).item() == pytest.approx(expected_main, rel=1e-4)
    assert total.item() == pytest.approx(expected_total, rel=1e-4)


def test_small_maps_meet_a_smaller_mask() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    right = torch.where(mask > 0, 20.0, -20.0)
    assert bce([right, right[..., ::2, ::2]], mask).item() < 0.5
    assert bce([right, -right[..., ::2, ::2]], mask).item() > 10


def test_losses_are_finite_where_probabilities_saturate() -> None:
    logits = torch.tensor([[[[-200.0, 200.0]]]], dtype=torch.float16, requires_grad=True)
    loss = bce([logits], torch.tensor([[[[1.0, 0.0]]]]))
    loss.backward()
    assert loss.item() == pytest.approx(200)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
