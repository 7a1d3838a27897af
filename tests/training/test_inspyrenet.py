"""InSPyReNet on its three backbones."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from calibrated_case import CalibratedCase
from fill import golden_input
from golden_values import Golden
from network_case import sum_of_bce

from sodeploy.training.models import build
from sodeploy.training.models.inspyrenet import InSPyReNet
from sodeploy.training.models.network import SaliencyNetwork
from sodeploy.training.models.swin import TINY, Swin
from sodeploy.training.networks import macs


class InSPyReNetCase(CalibratedCase):
    gmacs_size = 384
    maps = ("d0", "d1", "d2", "d3")
    cases: ClassVar[tuple[str, ...]] = ("C64x64", "C64x128", "C256x320")
    learning_rate = 1e-4

    def loss(self, network: SaliencyNetwork, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits = [F.interpolate(logit, size=mask.shape[-2:]) for logit in network(image)]
        return sum_of_bce(logits, mask)


class SlowExportCase(InSPyReNetCase):
    """A network whose export takes long. The exports of CSF and of Swin-T show its parts too."""

    @pytest.mark.slow
    def test_exported_it_answers_the_same_at_any_batch_and_size(self, exported: Path) -> None:
        super().test_exported_it_answers_the_same_at_any_batch_and_size(exported)

    @pytest.mark.slow
    def test_int8_simulation_agrees(self, exported: Path) -> None:
        super().test_int8_simulation_agrees(exported)


class TestRes2Net50(SlowExportCase):
    name = "inspyrenet_res2net50"
    params_m, gmacs = 28.104, 71.43

    def test_golden_features_of_a_large_image(self, golden: Golden) -> None:
        """Only a large image tells the dilations of the last layer apart: in a small one they see padding."""
        network: Any = self.calibrated(golden, "C576x544").eval()
        with torch.no_grad():
            *_, x4, x5 = network.backbone(golden_input(576, 544))
        golden.check("C576x544.backbone_x4_s", x4[:, ::64, ::2, ::2], rtol=1e-3, atol=1e-2)
        golden.check("C576x544.backbone_x5_s", x5[:, ::64], rtol=1e-3, atol=1e-2)


class TestSwinT(InSPyReNetCase):
    name = "inspyrenet_swint"
    params_m, gmacs = 31.198, 71.74

    def test_golden_logits_on_another_context_grid(self, golden: Golden) -> None:
        network = InSPyReNet(Swin(TINY), grid=512)
        network.load_state_dict(self.calibrated(golden, "C64x96_base512").state_dict(), strict=True)
        with torch.no_grad():
            logits = network.eval()(golden_input(64, 96))
        for key, logit in zip(self.maps, logits, strict=True):
            golden.check(f"C64x96_base512.{key}", logit, atol=self.logit_atol)


def test_checkpoints_of_high_resolution_have_a_network_of_their_own() -> None:
    """The same weights fit both networks; the grid of the context differs."""
    with torch.device("meta"):
        low, high = build("inspyrenet_swinb"), build("inspyrenet_swinb_1024")
    assert list(low.state_dict()) == list(high.state_dict())
    assert isinstance(low, InSPyReNet)
    assert isinstance(high, InSPyReNet)
    assert [low.attention0.grid, low.attention2.grid] == [(384, 384), (96, 96)]
    assert [high.attention0.grid, high.attention2.grid] == [(1024, 1024), (256, 256)]
    assert macs(high, 3, 1024, 1024) / 1e9 == pytest.approx(782.49, rel=5e-3)


class TestSwinB(SlowExportCase):
    name = "inspyrenet_swinb"
    params_m, gmacs = 90.721, 104.79
    cases = ("C64x128",)
    steps = 2
