"""U²-Net, U²-Netp and the demonstration's network."""

import pytest
import torch
from network_case import GoldenTrainingStep, NetworkCase

from sodeploy.training.models import build

MAPS = tuple(f"logit/d{k}" for k in range(7))


class TestU2Netp(NetworkCase, GoldenTrainingStep):
    name = "u2netp"
    params_m, gmacs = 1.131, 19.756
    maps = MAPS


class TestU2Net(NetworkCase, GoldenTrainingStep):
    name = "u2net"
    params_m, gmacs = 44.010, 58.598
    maps = MAPS


@pytest.mark.parametrize("size", [(160, 160), (97, 130)])
def test_tiny_gives_the_fused_map_at_the_images_size_and_sides_at_a_quarter(size: tuple[int, int]) -> None:
    network = build("u2net_tiny").eval()
    with torch.no_grad():
        fused, *sides = network(torch.rand(2, 3, *size))
    assert fused.shape == (2, 1, *size)
    assert [side.shape for side in sides] == [(2, 1, -(-size[0] // 4), -(-size[1] // 4))] * 6
    assert sum(parameter.numel() for parameter in network.parameters()) < 2e6
