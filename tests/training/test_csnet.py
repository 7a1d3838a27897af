"""CSNet, with filled parameters and with the published weights."""

from typing import Any

import pytest
import torch
from fill import golden_batch, golden_input
from golden_values import Golden
from network_case import NetworkCase
from research_data import ResearchFile

from sodeploy.errors import UserError
from sodeploy.training.models import build
from sodeploy.training.models.csnet import CSNet, unpruned
from sodeploy.training.models.network import SaliencyNetwork


class CSNetCase(NetworkCase):
    variant: str
    gmacs_size = 224
    maps = ("logit",)
    golden_sizes = ((96, 96), (96, 144))

    def filled(self, golden: Golden) -> SaliencyNetwork:
        """Some kernels are stored divided by 100, which the recipe does not know: unscaled, the network answers NaN."""
        network = super().filled(golden)
        for name, tensor in network.state_dict().items():
            if "convs." in name and tensor.ndim == 4:
                tensor *= 0.01
            elif "prelu" in name:
                tensor *= 0.25
        return network

    def test_golden_logits(self, golden: Golden) -> None:
        self.check_logits(self.filled(golden), golden, "fill")

    def test_golden_logits_of_the_published_weights(self, golden: Golden, research_file: ResearchFile) -> None:
        weights = research_file(f"weights/{self.variant}.pth.tar")
        network = build(self.name)
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True)["state_dict"], strict=True)
        self.check_logits(network, golden, "real")

    def check_logits(self, network: SaliencyNetwork, golden: Golden, parameters: str) -> None:
        for height, width in self.golden_sizes:
            with torch.no_grad():
                (logits,) = network.eval()(golden_input(height, width))
            golden.check(f"{self.variant}/{parameters}/{height}x{width}/logit", logits, atol=2e-4)

    def test_golden_features(self, golden: Golden) -> None:
        network = self.filled(golden).eval()
        features: dict[str, torch.Tensor] = {}
        for name, module in network.named_modules():

            def keep(_: Any, __: Any, outputs: list[torch.Tensor], name: str = name) -> None:
                features.update({f"{name}[{branch}]": x for branch, x in enumerate(outputs)})

            module.register_forward_hook(keep)
        with torch.no_grad():
            network(golden_input(96, 96))
        prefix = f"{self.variant}/fill/96x96/feat_c4s4/"
        keys = [key for key in golden if key.startswith(prefix)]
        assert len(keys) > 15
        for key in keys:
            golden.check(key, features[key.removeprefix(prefix)][:, ::4, ::4, ::4], atol=2e-4, rtol=1e-7)

    def test_golden_training_pass(self, golden: Golden) -> None:
        network = self.filled(golden).train()
        image, mask = golden_batch(96, 96)
        (logits,) = network(image)
        golden.check(f"{self.variant}/train96/logit_s4", logits.detach()[:, :, ::4, ::4], atol=2e-4)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, mask)
        golden.check(f"{self.variant}/train96/bce_with_logits_mean", loss.item(), rtol=1e-5)


class TestCSNetX1(CSNetCase):
    name, variant = "csnet_x1", "csnet-L-x1"
    params_m, gmacs = 0.0936, 0.2843


class TestCSNetX2(CSNetCase):
    name, variant = "csnet_x2", "csnet-L-x2"
    params_m, gmacs = 0.1409, 0.4964


@pytest.mark.parametrize(("width", "parameters"), [(20, 210_985), (40, 788_631)])
def test_networks_before_pruning_have_the_published_sizes(width: int, parameters: int) -> None:
    assert sum(tensor.numel() for tensor in CSNet(unpruned(width)).parameters()) == parameters


def test_a_size_it_cannot_take_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"CSNet cannot take 100x130 .* multiples of 16 .* 96x128"):
        build("csnet_x1").check_size(100, 130)
