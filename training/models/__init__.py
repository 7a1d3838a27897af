"""The networks, by name: `build("u2netp")`, and what each expects of its input.

To add a network: write its file here, and one line in `NETWORKS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from runtime.contract import Contract
from sodeploy.errors import UserError
from training.models.csnet import L_X1, L_X2, CSNet
from training.models.network import SaliencyNetwork


@dataclass(frozen=True)
class Entry:
    """A network of the registry.

    Attributes:
        make: constructs it with fresh parameters.
        contract: how the published weights want their input, at the published size; recipes train the same way.
    """

    make: Callable[[], SaliencyNetwork]
    contract: Contract


_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet

NETWORKS: dict[str, Entry] = {
    "csnet_x1": Entry(lambda: CSNet(L_X1), Contract(network="csnet_x1", height=224, width=224, mean=_MEAN, std=_STD)),
    "csnet_x2": Entry(lambda: CSNet(L_X2), Contract(network="csnet_x2", height=224, width=224, mean=_MEAN, std=_STD)),
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
