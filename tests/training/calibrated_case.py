"""For networks whose outputs explode under the filler alone: some of its parameters are overridden, per golden case.

A case `C<height>x<width>` of `golden.npz` scales convolutions by powers of two (`conv_scale`) and replaces the tensors
of `override_names` by slices of one flat vector; its maps are whole (`C64x64.d0`) or every k-th pixel (`C64x64.d0_s4`).
"""

import functools
import json
import re
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from network_case import NetworkCase

from sodeploy.training.models import build
from sodeploy.training.models.network import SaliencyNetwork


class CalibratedCase(NetworkCase):
    """The shared tests for such a network."""

    cases: ClassVar[tuple[str, ...]]

    def filled(self, fill: ModuleType, golden: Any) -> SaliencyNetwork:
        return self.calibrated(fill, golden, self.cases[0])

    def calibrated(self, fill: ModuleType, golden: Any, case: str) -> SaliencyNetwork:
        """The network with the parameters of one case."""
        network = build(self.name)
        network.load_state_dict(_filled_state(self.name, fill))
        state = network.state_dict()  # shares its memory with the network
        if f"{case}.conv_scale" in golden:
            for name, factor in json.loads(str(golden[f"{case}.conv_scale"])).items():
                for parameter in network.get_submodule(name).parameters():
                    parameter.data *= factor
        (key,) = {f"{case}.state", f"{case}.state_f16"} & set(golden)
        values = torch.from_numpy(golden[key].astype(np.float32))
        names = json.loads(str(golden["override_names"]))
        sizes = [int(np.prod(shape)) for _, shape in names]
        for (name, shape), part in zip(names, values.split(sizes), strict=True):
            state[name].copy_(part.reshape(shape))
        return network

    def test_golden_logits(self, fill: ModuleType, golden: Any) -> None:
        for case in self.cases:
            network = self.calibrated(fill, golden, case).eval()
            with torch.no_grad():
                logits = network(fill.golden_input(*size_of(case)))
            assert len(logits) == len(self.maps)
            for key, logit in zip(self.maps, logits, strict=True):
                (name,) = (n for n in golden if re.fullmatch(rf"{case}\.{key}(_s\d+)?", n))
                step = int(name.rpartition("_s")[2]) if "_s" in name else 1
                expected = golden[name]
                got = logit[:, :, ::step, ::step]
                np.testing.assert_allclose(got, expected, atol=self.logit_atol, rtol=0, err_msg=name)


@functools.lru_cache(maxsize=1)  # filling takes seconds, and the tests of one network follow each other
def _filled_state(name: str, fill: ModuleType) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = fill.fill_state_dict(build(name)).state_dict()
    return state


def size_of(case: str) -> tuple[int, int]:
    """Height and width of a case: "C64x96" -> (64, 96)."""
    height, width = re.findall(r"\d+", case)[:2]
    return int(height), int(width)
