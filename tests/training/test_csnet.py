"""CSNet, under parameters from the filler and under the published weights."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from network_case import NetworkCase

from sodeploy.errors import UserError
from sodeploy.training.models import build
from sodeploy.training.models.csnet import CSNet, unpruned
from sodeploy.training.models.network import SaliencyNetwork

SIZES = ((96, 96), (96, 144))


class CSNetCase(NetworkCase):
    variant: str
    folder = "csnet"
    gmacs_size = 224
    maps = ("logit",)

    def filled(self, fill: ModuleType, golden: Any) -> SaliencyNetwork:
        """The filler knows nothing of kernels stored divided by 100, and without this the network answers NaN."""
        network = super().filled(fill, golden)
        for name, tensor in network.state_dict().items():
            if "convs." in name and tensor.ndim == 4:
                tensor *= 0.01
            elif "prelu" in name:
                tensor *= 0.25
        return network

    def test_golden_logits(self, fill: ModuleType, golden: Any) -> None:
        self.check_logits(self.filled(fill, golden), fill, golden, "fill")

    def test_golden_logits_of_the_published_weights(self, fill: ModuleType, golden: Any, research: Path) -> None:
        checkpoint = torch.load(research / f"weights/{self.variant}.pth.tar", map_location="cpu", weights_only=True)
        network = build(self.name)
        network.load_state_dict(checkpoint["state_dict"], strict=True)
        self.check_logits(network, fill, golden, "real")

    def check_logits(self, network: SaliencyNetwork, fill: ModuleType, golden: Any, parameters: str) -> None:
        for height, width in SIZES:
            with torch.no_grad():
                (logits,) = network.eval()(fill.golden_input(height, width))
            expected = golden[f"{self.variant}/{parameters}/{height}x{width}/logit"]
            np.testing.assert_allclose(logits, expected, atol=2e-4, rtol=0)

    def test_golden_features(self, fill: ModuleType, golden: Any) -> None:
        network = self.filled(fill, golden).eval()
        features: dict[str, torch.Tensor] = {}
        for name, module in network.named_modules():

            def keep(_: Any, __: Any, outputs: list[torch.Tensor], name: str = name) -> None:
                features.update({f"{name}[{branch}]": x for branch, x in enumerate(outputs)})

            module.register_forward_hook(keep)
        with torch.no_grad():
            network(fill.golden_input(96, 96))
        prefix = f"{self.variant}/fill/96x96/feat_c4s4/"
        names = [key.removeprefix(prefix) for key in golden if key.startswith(prefix)]
        assert len(names) > 15
        for name in names:
            np.testing.assert_allclose(features[name][:, ::4, ::4, ::4], golden[prefix + name], atol=2e-4, err_msg=name)

    def test_golden_training_pass(self, fill: ModuleType, golden: Any) -> None:
        network = self.filled(fill, golden).train()
        image = torch.cat([fill.golden_input(96, 96, seed=seed) for seed in (0, 1)])
        mask = torch.cat([(fill.golden_input(96, 96, 1, seed) > 0).float() for seed in (7, 8)])
        (logits,) = network(image)
        expected = golden[f"{self.variant}/train96/logit_s4"]
        np.testing.assert_allclose(logits.detach()[:, :, ::4, ::4], expected, atol=2e-4, rtol=0)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, mask)
        assert loss.item() == pytest.approx(golden[f"{self.variant}/train96/bce_with_logits_mean"].item(), rel=1e-5)


class TestCSNetX1(CSNetCase):
    name, variant, state_dict_file = "csnet_x1", "csnet-L-x1", "state_dict_csnet-L-x1.json"
    params_m, gmacs = 0.0936, 0.2843


class TestCSNetX2(CSNetCase):
    name, variant, state_dict_file = "csnet_x2", "csnet-L-x2", "state_dict_csnet-L-x2.json"
    params_m, gmacs = 0.1409, 0.4964


@pytest.mark.parametrize(("width", "parameters"), [(20, 210_985), (40, 788_631)])
def test_networks_before_pruning_have_the_published_sizes(width: int, parameters: int) -> None:
    assert sum(tensor.numel() for tensor in CSNet(unpruned(width)).parameters()) == parameters


def test_a_size_it_cannot_take_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"CSNet cannot take 100x130 .* multiples of 16 .* 96x128"):
        build("csnet_x1").check_size(100, 130)
