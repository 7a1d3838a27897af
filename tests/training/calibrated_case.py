"""Tests of networks whose outputs explode under the filled parameters. Each golden case replaces some parameters.

A case `C<height>x<width>` scales convolutions by powers of two (`conv_scale`) and replaces the tensors named in
`override_names` by slices of one flat vector. Its golden maps are complete (`C64x64.d0`) or every k-th pixel of every
k-th row (`C64x64.d0_s4`).
"""

import functools
import json
import re
from typing import ClassVar

import numpy as np
import torch
from fill import fill_state_dict, golden_input
from golden_values import Golden
from network_case import NetworkCase

from sodeploy.training.models import build
from sodeploy.training.models.network import SaliencyNetwork


class CalibratedCase(NetworkCase):
    """The shared tests for such a network."""

    cases: ClassVar[tuple[str, ...]]

    def filled(self, golden: Golden) -> SaliencyNetwork:
        return self.calibrated(golden, self.cases[0])

    def calibrated(self, golden: Golden, case: str) -> SaliencyNetwork:
        """The network with the parameters of one case."""
        network = build(self.name)
        network.load_state_dict(_filled_state(self.name))
        state = network.state_dict()  # shares its memory with the network
        for name, factor in json.loads(golden.texts.get(f"{case}.conv_scale", "{}")).items():
            for parameter in network.get_submodule(name).parameters():
                parameter.data *= factor
        (key,) = {f"{case}.state", f"{case}.state_f16"} & set(golden)
        values = torch.from_numpy(golden[key].astype(np.float32))
        names = json.loads(golden.texts["override_names"])
        sizes = [int(np.prod(shape)) for _, shape in names]
        for (name, shape), part in zip(names, values.split(sizes), strict=True):
            state[name].copy_(part.reshape(shape))
        return network

    def test_golden_logits(self, golden: Golden) -> None:
        for case in self.cases:
            network = self.calibrated(golden, case).eval()
            with torch.no_grad():
                logits = network(golden_input(*size_of(case)))
            for map_name, logit in zip(self.maps, logits, strict=True):
                (key,) = (key for key in golden if re.fullmatch(rf"{case}\.{map_name}(_s\d+)?", key))
                step = int(key.rpartition("_s")[2]) if "_s" in key else 1
                golden.check(key, logit[:, :, ::step, ::step], atol=self.logit_atol)


@functools.lru_cache(maxsize=1)  # filling takes seconds, and the tests of one network follow each other
def _filled_state(name: str) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = fill_state_dict(build(name)).state_dict()
    return state


def size_of(case: str) -> tuple[int, int]:
    """Height and width of a case: "C64x96" -> (64, 96)."""
    height, width = re.findall(r"\d+", case)[:2]
    return int(height), int(width)
