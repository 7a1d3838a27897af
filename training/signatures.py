"""Find the networks that some weights fit, without building the networks, which takes seconds.

`signatures.json` holds a hash of the names and shapes of each network. After a network has changed, write the file
again:

    python training/signatures.py
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

from sodeploy import artifacts, command_line
from sodeploy.training.models import NETWORKS

FILE = Path(__file__).with_name("signatures.json")
_WRAPPING = 4  # names before a dot that wrapping classes may have put in front


def networks_fitting(weights: Mapping[str, torch.Tensor]) -> list[str]:
    """The registered networks whose names and shapes are those of `weights`, whatever prefix these have."""
    found = {signature(weights, skip) for skip in range(_WRAPPING)}
    return [name for name, known in _signatures().items() if known in found]


def signature(weights: Mapping[str, torch.Tensor], skip: int = 0) -> str:
    """Hex sha256 of names and shapes, counters left out, each name without its first `skip` parts."""
    shapes = sorted(
        (".".join(key.split(".")[skip:]), tuple(tensor.shape))
        for key, tensor in weights.items()
        if not key.endswith(("num_batches_tracked", "total_ops", "total_params"))
    )
    return hashlib.sha256(repr(shapes).encode()).hexdigest()


def computed() -> dict[str, str]:
    """The signature of every network, from the network itself."""
    with torch.device("meta"):  # no memory, no initialization
        return {name: signature(entry.make().state_dict()) for name, entry in NETWORKS.items()}


@cache
def _signatures() -> dict[str, str]:
    known: dict[str, str] = json.loads(FILE.read_text())
    return known


def main() -> None:
    """Write the signatures of all networks."""
    artifacts.write_text(FILE, json.dumps(computed(), indent=1) + "\n")


if __name__ == "__main__":
    command_line.run(main)
