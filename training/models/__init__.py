"""The networks, by name: `build("u2netp")`, and what each expects of its input.

To add a network: write its file here, and one line in `NETWORKS`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from runtime.contract import Contract
from sodeploy.errors import UserError
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


NETWORKS: dict[str, Entry] = {}


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
