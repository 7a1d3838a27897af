"""IS-Net and the encoder of masks."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from network_case import GoldenTrainingStep, NetworkCase, load_fill

from training.models import build

MAPS = tuple(f"d{k}" for k in range(1, 7))


class TestISNetDIS(NetworkCase, GoldenTrainingStep):
    name = folder = "isnet_dis"
    params_m, gmacs = 44.047, 15.593
    maps = MAPS

    def test_golden_features(self, fill: Any, golden: Any) -> None:
        check_features(self.filled(fill, golden), fill.golden_input(96, 96), golden)


class TestISNetGTEncoder(NetworkCase, GoldenTrainingStep):
    name = folder = "isnet_gt_encoder"
    params_m, gmacs = 6.878, 2.295
    maps = MAPS

    def test_golden_features(self, fill: Any, golden: Any) -> None:
        check_features(self.filled(fill, golden), fill.golden_input(96, 96, channels=1), golden)


def check_features(network: Any, image: torch.Tensor, golden: Any) -> None:
    with torch.no_grad():
        _, features = network.eval().forward_with_features(image)
    names = [key for key in golden if key.startswith("96x96/feat_c8s4/")]
    assert len(names) == len(features) == 6
    for key, feature in zip(names, features, strict=True):
        np.testing.assert_allclose(feature[:, ::8, ::4, ::4], golden[key], atol=1e-3, rtol=0, err_msg=key)


def test_golden_feature_distances(research: Path) -> None:
    """Image features against mask features, both networks in train mode."""
    fill = load_fill(research)
    golden = np.load(research / "networks" / "isnet_dis" / "golden.npz")
    image = torch.cat([fill.golden_input(96, 96, 3, seed) for seed in (0, 1)])
    mask = torch.cat([(fill.golden_input(96, 96, 1, seed) > 0).float() for seed in (7, 8)])
    with torch.no_grad():
        of_image = fill.fill_state_dict(build("isnet_dis")).forward_with_features(image)[1]
        of_mask = fill.fill_state_dict(build("isnet_gt_encoder")).forward_with_features(mask)[1]
    distances = [torch.nn.functional.mse_loss(f, g).item() for f, g in zip(of_image, of_mask, strict=True)]
    np.testing.assert_allclose(distances, golden["train96/feat_mse_each"], rtol=1e-4)
