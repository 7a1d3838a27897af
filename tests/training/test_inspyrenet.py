"""InSPyReNet on its three backbones."""

from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from calibrated_case import CalibratedCase
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
    """A network whose export takes long, of parts that the exports of CSF and of Swin-T show too."""

    @pytest.mark.slow
    def test_exported_it_answers_the_same_at_any_batch_and_size(self, exported: Path) -> None:
        super().test_exported_it_answers_the_same_at_any_batch_and_size(exported)

    @pytest.mark.slow
    def test_int8_simulation_agrees(self, exported: Path) -> None:
        super().test_int8_simulation_agrees(exported)


class TestRes2Net50(SlowExportCase):
    name = folder = "inspyrenet_res2net50"
    params_m, gmacs = 28.104, 71.43

    def test_golden_features_of_a_large_image(self, fill: ModuleType, golden: Any) -> None:
        """Which alone tells the dilations of the last layer apart: they see nothing but padding in smaller ones."""
        network: Any = self.calibrated(fill, golden, "C576x544").eval()
        with torch.no_grad():
            *_, x4, x5 = network.backbone(fill.golden_input(576, 544))
        np.testing.assert_allclose(x4[:, ::64, ::2, ::2], golden["C576x544.backbone_x4_s"], rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(x5[:, ::64], golden["C576x544.backbone_x5_s"], rtol=1e-3, atol=1e-2)


class TestSwinT(InSPyReNetCase):
    name = folder = "inspyrenet_swint"
    params_m, gmacs = 31.198, 71.74

    def test_golden_logits_on_another_context_grid(self, fill: ModuleType, golden: Any) -> None:
        network = InSPyReNet(Swin(TINY), grid=512)
        network.load_state_dict(self.calibrated(fill, golden, "C64x96_base512").state_dict(), strict=True)
        with torch.no_grad():
            logits = network.eval()(fill.golden_input(64, 96))
        for key, logit in zip(self.maps, logits, strict=True):
            expected = golden[f"C64x96_base512.{key}"]
            np.testing.assert_allclose(logit, expected, atol=self.logit_atol, rtol=0, err_msg=key)


def test_checkpoints_of_high_resolution_have_a_network_of_their_own() -> None:
    """The weights fit either; what they are summed over differs."""
    with torch.device("meta"):
        low, high = build("inspyrenet_swinb"), build("inspyrenet_swinb_1024")
    assert list(low.state_dict()) == list(high.state_dict())
    assert isinstance(low, InSPyReNet)
    assert isinstance(high, InSPyReNet)
    assert [low.attention0.grid, low.attention2.grid] == [(384, 384), (96, 96)]
    assert [high.attention0.grid, high.attention2.grid] == [(1024, 1024), (256, 256)]
    assert macs(high, 3, 1024, 1024) / 1e9 == pytest.approx(782.49, rel=5e-3)


class TestSwinB(SlowExportCase):
    name = folder = "inspyrenet_swinb"
    params_m, gmacs = 90.721, 104.79
    cases = ("C64x128",)
    steps = 2
