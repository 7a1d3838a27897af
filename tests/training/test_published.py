"""The published sizes in the runtime's table are the sizes of our networks."""

import torch

from sodeploy.runtime.measure.published import PARAMETERS, published_parameters
from sodeploy.training.models import NETWORKS, build, entry


def test_published_parameters_equal_the_networks() -> None:
    counted = {}
    for name in NETWORKS:
        if entry(name).sees == "images":
            with torch.device("meta"):
                counted[name] = sum(parameter.numel() for parameter in build(name).parameters())
    assert counted == PARAMETERS


def test_another_network_of_the_same_name_is_not_the_published_one() -> None:
    assert published_parameters("u2netp", 1_131_181 - 5_696) == 1_131_181  # batch norms folded
    assert published_parameters("u2netp", None) == 1_131_181  # an engine
    assert published_parameters("u2netp", 900_000) is None
    assert published_parameters("theirs", 1_131_181) is None
