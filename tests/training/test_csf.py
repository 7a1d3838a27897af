"""CSF on Res2Net-50."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from network_case import NetworkCase


class TestCSF(NetworkCase):
    name = folder = "csf_res2net"
    params_m, gmacs = 36.528, 15.869
    logit_atol = 1e-4
    maps = ("logit",)
    learning_rate = 1e-4

    def test_golden_logits(self, fill: ModuleType, golden: Any) -> None:
        network = self.filled(fill, golden).eval()
        for height, width in self.golden_sizes:
            with torch.no_grad():
                (logits,) = network(fill.golden_input(height, width))
            expected = golden[f"{height}x{width}/logit"]
            np.testing.assert_allclose(logits, expected, atol=self.logit_atol, rtol=0)

    def test_golden_features(self, fill: ModuleType, golden: Any) -> None:
        network: Any = self.filled(fill, golden).eval()
        with torch.no_grad():
            _, *features = network.base(fill.golden_input(96, 96))
            fused = network.fuse(features)
            dilated = network.ms(fused)
        found = {f"base.layer{k}": x for k, x in enumerate(features, start=1)}
        found |= {f"fuse[{k}]": x for k, x in enumerate(fused)} | {f"ms[{k}]": x for k, x in enumerate(dilated)}
        for name, feature in found.items():
            expected = golden[f"96x96/feat_c16s2/{name}"]
            tolerance = 2e-5 * np.abs(expected).max()  # the filled backbone's features reach thousands
            np.testing.assert_allclose(feature[:, ::16, ::2, ::2], expected, atol=tolerance, rtol=0, err_msg=name)

    def test_golden_gradients(self, fill: ModuleType, golden: Any) -> None:
        """In eval mode, in which the published network is also trained."""
        network = self.filled(fill, golden).eval()
        image = torch.cat([fill.golden_input(96, 96, seed=seed) for seed in (0, 1)])
        mask = torch.cat([(fill.golden_input(96, 96, 1, seed) > 0).float() for seed in (7, 8)])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(network(image)[0], mask, reduction="sum")
        loss.backward()
        assert loss.item() == pytest.approx(golden["loss/bce_logits_sum_b2"].item(), rel=1e-5)
        parameters: dict[str, Any] = dict(network.named_parameters())
        norms = [parameters[str(name)].grad.norm().item() for name in golden["loss/grad_norm_names"]]
        np.testing.assert_allclose(norms, golden["loss/grad_norm"], rtol=1e-3)
