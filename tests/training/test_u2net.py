"""U²-Net, U²-Netp and the demonstration's network."""

from network_case import GoldenTrainingStep, NetworkCase

from training.models import build

MAPS = tuple(f"d{k}" for k in range(7))


class TestU2Netp(NetworkCase, GoldenTrainingStep):
    name = folder = "u2netp"
    params_m, gmacs = 1.131, 19.756
    maps = MAPS


class TestU2Net(NetworkCase, GoldenTrainingStep):
    name = folder = "u2net"
    params_m, gmacs = 44.010, 58.598
    maps = MAPS


def test_tiny_has_the_structure_of_u2netp() -> None:
    tiny, small = build("u2net_tiny").state_dict(), build("u2netp").state_dict()
    assert list(tiny) == list(small)
    assert sum(tensor.numel() for tensor in tiny.values()) < 0.15 * sum(tensor.numel() for tensor in small.values())
