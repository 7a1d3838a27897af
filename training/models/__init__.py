"""The networks, by name: `build("u2netp")`, and what each expects of its input.

To add a network: write its file here, and one line in `NETWORKS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sodeploy.errors import UserError
from sodeploy.runtime.contract import Contract
from sodeploy.training.models.csf import CSF
from sodeploy.training.models.csnet import L_X1, L_X2, CSNet, unpruned
from sodeploy.training.models.inspyrenet import inspyrenet_res2net50, inspyrenet_swinb, inspyrenet_swint
from sodeploy.training.models.isnet import ISNetDIS, ISNetGTEncoder
from sodeploy.training.models.isnet_integrity import ISNetIntegrity
from sodeploy.training.models.network import SaliencyNetwork
from sodeploy.training.models.ras import RAS
from sodeploy.training.models.u2net import U2NetTiny, u2net, u2netp


@dataclass(frozen=True)
class Entry:
    """A network of the registry.

    Attributes:
        make: constructs it with fresh parameters.
        contract: how the published weights want their input, at the published size; recipes train the same way.
        sees: what `forward` takes: images, or masks `(N, 1, H, W)` in [0, 1] (a network for training only).
    """

    make: Callable[[], SaliencyNetwork]
    contract: Contract
    sees: Literal["images", "masks"] = "images"


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
    """Normalised by the mean and standard deviation of DUTS-TR."""
    mean, std = (124.55 / 255, 118.90 / 255, 102.94 / 255), (56.77 / 255, 55.97 / 255, 57.50 / 255)
    return Contract(network=network, height=size, width=size, mean=mean, std=std, stretch=stretch)


NETWORKS: dict[str, Entry] = {
    "u2net": Entry(u2net, _u2net("u2net")),
    "u2netp": Entry(u2netp, _u2net("u2netp")),
    "u2net_tiny": Entry(U2NetTiny, _imagenet("u2net_tiny", 160, stretch=True)),
    "isnet_dis": Entry(ISNetDIS, _isnet("isnet_dis", mean=0.5)),
    "isnet_gt_encoder": Entry(ISNetGTEncoder, _isnet("isnet_gt_encoder", mean=0.0), sees="masks"),
    "csnet_x1": Entry(lambda: CSNet(L_X1), _imagenet("csnet_x1", 224)),
    "csnet_x2": Entry(lambda: CSNet(L_X2), _imagenet("csnet_x2", 224)),
    "csnet_x1_unpruned": Entry(lambda: CSNet(unpruned(20)), _imagenet("csnet_x1_unpruned", 224)),
    "csnet_x2_unpruned": Entry(lambda: CSNet(unpruned(40)), _imagenet("csnet_x2_unpruned", 224)),
    "csf_res2net": Entry(CSF, _imagenet("csf_res2net", 320)),
    "ras_v1": Entry(lambda: RAS(1), _imagenet("ras_v1", 352, "area", stretch=True)),
    "ras_v2": Entry(lambda: RAS(2), _duts("ras_v2", 352, stretch=True)),
    "inspyrenet_res2net50": Entry(inspyrenet_res2net50, _imagenet("inspyrenet_res2net50", 384, "area", stretch=True)),
    "inspyrenet_swint": Entry(inspyrenet_swint, _imagenet("inspyrenet_swint", 384, "area", stretch=True)),
    "inspyrenet_swinb": Entry(inspyrenet_swinb, _imagenet("inspyrenet_swinb", 384, "area", stretch=True)),
    "inspyrenet_swinb_1024": Entry(
        lambda: inspyrenet_swinb(grid=1024), _imagenet("inspyrenet_swinb_1024", 1024, "area", stretch=True)
    ),
    "isnet_integrity": Entry(ISNetIntegrity, _duts("isnet_integrity", 320)),
}


def entry(name: str) -> Entry:
    """The registry's entry for `name`.

    Raises:
        UserError: no such network; the known names are listed.
    """
    if name not in NETWORKS:
        raise UserError(f"no network is called {name!r}; known: {', '.join(sorted(NETWORKS))}")
    return NETWORKS[name]


def build(name: str) -> SaliencyNetwork:
    """A fresh network, in train mode. Raises UserError for an unknown name."""
    return entry(name).make()
