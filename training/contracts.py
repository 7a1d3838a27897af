"""The contract of each registered network: how its published weights want their input.

This needs no PyTorch, so a machine that only deploys can adopt the published ONNX file of a network.
"""

from typing import Literal

from sodeploy.errors import UserError
from sodeploy.runtime.contract import Contract

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def _u2net(network: str) -> Contract:
    return Contract(network=network, height=320, width=320, divide_by="max", mean=_MEAN, std=_STD, stretch=True)


def _isnet(network: str, mean: float) -> Contract:
    return Contract(network=network, height=1024, width=1024, mean=(mean,) * 3, std=(1.0, 1.0, 1.0), stretch=True)


def _imagenet(
    network: str, size: int, interpolation: Literal["linear", "area"] = "linear", stretch: bool = False
) -> Contract:
    """`area` where the authors resize with antialiasing, which it comes nearer to."""
    return Contract(
        network=network, height=size, width=size, interpolation=interpolation, mean=_MEAN, std=_STD, stretch=stretch
    )


def _duts(network: str, size: int, stretch: bool = False) -> Contract:
    """Normalized by the mean and standard deviation of DUTS-TR."""
    mean, std = (124.55 / 255, 118.90 / 255, 102.94 / 255), (56.77 / 255, 55.97 / 255, 57.50 / 255)
    return Contract(network=network, height=size, width=size, mean=mean, std=std, stretch=stretch)


CONTRACTS: dict[str, Contract] = {
    contract.network: contract
    for contract in (
        _u2net("u2net"),
        _u2net("u2netp"),
        _imagenet("u2net_tiny", 160, stretch=True),
        _isnet("isnet_dis", mean=0.5),
        _isnet("isnet_gt_encoder", mean=0.0),
        _imagenet("csnet_x1", 224),
        _imagenet("csnet_x2", 224),
        _imagenet("csnet_x1_unpruned", 224),
        _imagenet("csnet_x2_unpruned", 224),
        _imagenet("csf_res2net", 320),
        _imagenet("ras_v1", 352, "area", stretch=True),
        _duts("ras_v2", 352, stretch=True),
        _imagenet("inspyrenet_res2net50", 384, "area", stretch=True),
        _imagenet("inspyrenet_swint", 384, "area", stretch=True),
        _imagenet("inspyrenet_swinb", 384, "area", stretch=True),
        _imagenet("inspyrenet_swinb_1024", 1024, "area", stretch=True),
        _duts("isnet_integrity", 320),
    )
}


def require_known(network: str) -> None:
    """Refuse a name that no registered network has.

    Raises:
        UserError: that is so; the known names are listed.
    """
    if network not in CONTRACTS:
        raise UserError(f"no network is called {network!r}; known: {', '.join(sorted(CONTRACTS))}")


def published_contract(network: str) -> Contract:
    """The contract of a registered network, at its published size.

    Raises:
        UserError: there is no such network.
    """
    require_known(network)
    return CONTRACTS[network]
