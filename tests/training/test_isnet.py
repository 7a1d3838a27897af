"""IS-Net and the encoder of masks."""

from typing import Any

import numpy as np
import torch
from network_case import GoldenTrainingStep, NetworkCase

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
