"""Losses, compared with values of the published code."""

import numpy as np
import pytest
import torch
from fill import fill_state_dict, golden_batch
from golden_values import Golden

from sodeploy.training.integrity_losses import (
    boundary_weight,
    difference_aware,
    expanded_region,
    hierarchical_difference,
)
from sodeploy.training.losses import bce, bce_sum, feature_distance, iou
from sodeploy.training.models import build
from sodeploy.training.pyramid_losses import pixel_iou, pyramid_consistency, structure_pyramid, weighted_bce


@pytest.mark.parametrize("size", ["64x64", "70x100"])
def test_bce_and_iou_as_ras(size: str) -> None:
    golden = Golden("ras_v1")
    mask = torch.from_numpy(golden[f"C{size}.gt"])
    logits = [torch.from_numpy(golden[f"C{size}.score{k}"]) for k in range(1, 6)]
    for k, logit in enumerate(logits, start=1):
        golden.check(f"C{size}.loss_score{k}", (bce([logit], mask) + iou([logit], mask)).item(), rtol=1e-4)
    golden.check(f"C{size}.loss_sum", (bce(logits, mask) + iou(logits, mask)).item(), rtol=1e-4)


def test_feature_synchronisation_as_isnet() -> None:
    """Both networks are in train mode, as they were when the golden values were made."""
    golden = Golden("isnet_dis")
    image, mask = golden_batch(96, 96)
    with torch.no_grad():
        logits, of_image = fill_state_dict(build("isnet_dis")).forward_with_features(image)
        of_mask = fill_state_dict(build("isnet_gt_encoder")).forward_with_features(mask)[1]
    each = [feature_distance([f], [g]).item() for f, g in zip(of_image, of_mask, strict=True)]
    golden.check("train96/feat_mse_each", each, rtol=1e-4)
    main, total = bce(logits[:1], mask), bce(logits, mask) + feature_distance(of_image, of_mask)
    golden.check("train96/featsync_MSE_main_total", [main.item(), total.item()], rtol=1e-4)


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


@pytest.mark.parametrize("network", ["inspyrenet_res2net50", "inspyrenet_swint", "inspyrenet_swinb"])
def test_pyramid_losses_as_inspyrenet(network: str) -> None:
    golden = Golden(network)
    logits = [torch.from_numpy(golden[f"C64x64.d{k}"]) for k in range(4)]
    mask = torch.from_numpy(golden["C64x64.gt"])
    for level, logit in enumerate(logits):
        target = mask if level == 0 else torch.from_numpy(golden[f"C64x64.gt_reduce{level}"])
        enlarged = [torch.nn.functional.interpolate(x, size=mask.shape[-2:]) for x in (logit, target)]
        golden.check(f"C64x64.loss_sod{level}", (weighted_bce(*enlarged) + pixel_iou(*enlarged)).item(), rtol=1e-4)
    consistency = pyramid_consistency(logits, mask)
    expected = sum(golden[f"C64x64.loss_pc{k}"].item() for k in (1, 2, 3))
    assert consistency.item() == pytest.approx(expected, rel=1e-4)
    golden.check("C64x64.loss_total", (structure_pyramid(logits, mask) + 1e-4 * consistency).item(), rtol=1e-4)


def test_pyramid_consistency_moves_the_coarser_map_alone() -> None:
    fine, coarse = torch.randn(1, 1, 16, 16, requires_grad=True), torch.randn(1, 1, 8, 8, requires_grad=True)
    pyramid_consistency([fine, coarse], torch.zeros(1, 1, 16, 16)).backward()
    assert fine.grad is None
    assert coarse.grad is not None


def test_integrity_losses_as_published() -> None:
    golden = Golden("isnet_integrity")
    masks = torch.from_numpy(np.stack([golden[f"C64x64.{key}_u8"] for key in ("gt", "di", "er")])[None] / 255).float()
    logits = [torch.from_numpy(golden[f"C64x64.{key}"]) for key in ("out2", "out3", "out4", "out5", "coarse")]
    golden.check("C64x64.hda_weight", boundary_weight(masks), rtol=1e-5)
    keys = [f"C64x64.hda_out{k}_intended" for k in (2, 3, 4, 5)]
    for key, logit in zip(keys, logits[:4], strict=True):
        golden.check(key, difference_aware(logit, masks).item(), rtol=1e-4)
    expected = np.dot((1, 0.8, 0.6, 0.4), [golden[key].item() for key in keys])
    assert hierarchical_difference(logits, masks).item() == pytest.approx(expected, rel=1e-4)
    golden.check("C64x64.loss_coarse", expanded_region(logits, masks).item(), rtol=1e-4)


@pytest.mark.parametrize("shape", ["square", "ring", "two_blobs_border", "thin_line", "soft_disk", "empty", "full"])
def test_boundary_weights_as_published(shape: str) -> None:
    golden = Golden("masks")
    masks = torch.from_numpy(
        np.stack([golden[f"{shape}.{kind}"] for kind in ("mask", "dilated", "eroded")])[None] / 255
    )
    golden.check(f"{shape}.hda_weight", boundary_weight(masks.float())[0, 0], rtol=1e-5)


def test_an_empty_mask_has_a_finite_expanded_region() -> None:
    logits = [torch.full((1, 1, 8, 8), -200.0)] * 5
    assert expanded_region(logits, torch.zeros(1, 3, 8, 8)).isfinite()


def test_the_sum_over_pixels_is_a_mean_over_images() -> None:
    logit, mask = torch.zeros(2, 1, 4, 5), torch.zeros(2, 1, 4, 5)
    assert bce_sum([logit], mask).item() == pytest.approx(20 * np.log(2))
