"""IS-Net and the encoder of masks."""

from typing import Any

import torch
from fill import golden_input
from golden_values import Golden
from network_case import GoldenTrainingStep, NetworkCase

MAPS = tuple(f"logit/d{k}" for k in range(1, 7))


class TestISNetDIS(NetworkCase, GoldenTrainingStep):
    name = "isnet_dis"
    params_m, gmacs = 44.047, 15.593
    maps = MAPS

    def test_golden_features(self, golden: Golden) -> None:
        check_features(self.filled(golden), golden_input(96, 96), golden)


class TestISNetGTEncoder(NetworkCase, GoldenTrainingStep):
    name = "isnet_gt_encoder"
    params_m, gmacs = 6.878, 2.295
    maps = MAPS

    def test_golden_features(self, golden: Golden) -> None:
        check_features(self.filled(golden), golden_input(96, 96, channels=1), golden)


def check_features(network: Any, image: torch.Tensor, golden: Golden) -> None:
    with torch.no_grad():
        _, features = network.eval().forward_with_features(image)
    keys = [key for key in golden if key.startswith("96x96/feat_c8s4/")]
    assert len(keys) == len(features) == 6
    for key, feature in zip(keys, features, strict=True):
        golden.check(key, feature[:, ::8, ::4, ::4], atol=1e-3)
