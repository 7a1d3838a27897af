"""CSF on Res2Net-50."""

from typing import Any

import torch
from fill import golden_batch, golden_input
from golden_values import Golden
from network_case import NetworkCase


class TestCSF(NetworkCase):
    name = "csf_res2net"
    params_m, gmacs = 36.528, 15.869
    logit_atol = 1e-4
    maps = ("logit",)
    learning_rate = 1e-4

    def test_golden_features(self, golden: Golden) -> None:
        network: Any = self.filled(golden).eval()
        with torch.no_grad():
            _, *features = network.base(golden_input(96, 96))
            fused = network.fuse(features)
            dilated = network.ms(fused)
        found = {f"base.layer{k}": x for k, x in enumerate(features, start=1)}
        found |= {f"fuse[{k}]": x for k, x in enumerate(fused)} | {f"ms[{k}]": x for k, x in enumerate(dilated)}
        assert len(found) == 12
        for name, feature in found.items():
            part = feature[:, ::16, ::2, ::2]
            # The features of the filled backbone reach thousands.
            golden.check(f"96x96/feat_c16s2/{name}", part, atol=2e-5 * part.abs().max().item())

    def test_golden_gradients(self, golden: Golden) -> None:
        """In eval mode, in which the published network is also trained."""
        network = self.filled(golden).eval()
        image, mask = golden_batch(96, 96)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(network(image)[0], mask, reduction="sum")
        loss.backward()
        golden.check("loss/bce_logits_sum_b2", loss.item(), rtol=1e-5)
        parameters: dict[str, Any] = dict(network.named_parameters())
        norms = [parameters[name].grad.norm().item() for name in golden.texts["loss/grad_norm_names"]]
        golden.check("loss/grad_norm", norms, rtol=1e-3)
