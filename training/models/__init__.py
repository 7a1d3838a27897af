"""The networks, by name: `build("u2netp")`, and what each expects of its input.

To add a network: write its file here, one line in `NETWORKS`, and one in `sodeploy.training.contracts`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sodeploy.runtime.contract import Contract
from sodeploy.training.contracts import CONTRACTS, require_known
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


NETWORKS: dict[str, Entry] = {
    "u2net": Entry(u2net, CONTRACTS["u2net"]),
    "u2netp": Entry(u2netp, CONTRACTS["u2netp"]),
    "u2net_tiny": Entry(U2NetTiny, CONTRACTS["u2net_tiny"]),
    "isnet_dis": Entry(ISNetDIS, CONTRACTS["isnet_dis"]),
    "isnet_gt_encoder": Entry(ISNetGTEncoder, CONTRACTS["isnet_gt_encoder"], sees="masks"),
    "csnet_x1": Entry(lambda: CSNet(L_X1), CONTRACTS["csnet_x1"]),
    "csnet_x2": Entry(lambda: CSNet(L_X2), CONTRACTS["csnet_x2"]),
    "csnet_x1_unpruned": Entry(lambda: CSNet(unpruned(20)), CONTRACTS["csnet_x1_unpruned"]),
    "csnet_x2_unpruned": Entry(lambda: CSNet(unpruned(40)), CONTRACTS["csnet_x2_unpruned"]),
    "csf_res2net": Entry(CSF, CONTRACTS["csf_res2net"]),
    "ras_v1": Entry(lambda: RAS(1), CONTRACTS["ras_v1"]),
    "ras_v2": Entry(lambda: RAS(2), CONTRACTS["ras_v2"]),
    "inspyrenet_res2net50": Entry(inspyrenet_res2net50, CONTRACTS["inspyrenet_res2net50"]),
    "inspyrenet_swint": Entry(inspyrenet_swint, CONTRACTS["inspyrenet_swint"]),
    "inspyrenet_swinb": Entry(inspyrenet_swinb, CONTRACTS["inspyrenet_swinb"]),
    "inspyrenet_swinb_1024": Entry(lambda: inspyrenet_swinb(grid=1024), CONTRACTS["inspyrenet_swinb_1024"]),
    "isnet_integrity": Entry(ISNetIntegrity, CONTRACTS["isnet_integrity"]),
}


def entry(name: str) -> Entry:
    """The registry's entry for `name`.

    Raises:
        UserError: no such network; the known names are listed.
    """
    require_known(name)
    return NETWORKS[name]


def build(name: str) -> SaliencyNetwork:
    """A fresh network, in train mode. Raises UserError for an unknown name."""
    return entry(name).make()
