"""The size of known networks as their authors published them, for the table that deployers read.

An ONNX graph has fewer parameters than the published network, because exporters fold batch norms into convolutions and
drop heads that only training needs. MACs stay the same: neither batch norms nor biases are counted.
"""

# Parameters of the whole network, batch norms and training heads included. A test compares them with the networks.
PARAMETERS = {
    "u2net": 44_009_869,
    "u2netp": 1_131_181,
    "u2net_tiny": 1_750_333,
    "isnet_dis": 44_046_790,
    "csnet_x1": 93_647,
    "csnet_x2": 140_894,
    "csnet_x1_unpruned": 210_985,
    "csnet_x2_unpruned": 788_631,
    "csf_res2net": 36_528_489,
    "ras_v1": 24_697_989,
    "ras_v2": 24_585_156,
    "inspyrenet_res2net50": 28_104_339,
    "inspyrenet_swint": 31_197_925,
    "inspyrenet_swinb": 90_721_443,
    "inspyrenet_swinb_1024": 90_721_443,
    "isnet_integrity": 63_675_687,
}

_LEAST = 0.9  # a graph with fewer of its network's parameters is another network of the same name


def published_parameters(network: str, counted: int | None) -> int | None:
    """Parameters of a known network as published; None if the network is not known.

    Args:
        network: the name in the contract.
        counted: learned values in the graph, to notice another network under the same name; None for an engine.
    """
    published = PARAMETERS.get(network)
    if published is None or (counted is not None and not _LEAST * published <= counted <= published):
        return None
    return published
