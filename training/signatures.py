"""Find the networks that some weights fit, without building the networks or importing PyTorch, which takes seconds.

`signatures.json` holds a hash of the names and shapes of each network, `shapes.json.gz` the names and shapes
themselves. After a network has changed, write the files again:

    python training/signatures.py
"""

import gzip
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sodeploy import artifacts, command_line
from sodeploy.training.outline import Outline

FILE = Path(__file__).with_name("signatures.json")
SHAPES = Path(__file__).with_name("shapes.json.gz")
_WRAPPING = 4  # names before a dot that wrapping classes may have put in front


def networks_fitting(weights: Mapping[str, Any]) -> list[str]:
    """The registered networks that have the names and shapes of `weights`, whatever prefix the names have."""
    found = {signature(weights, skip) for skip in range(_WRAPPING)}
    return [name for name, known in _signatures().items() if known in found]


def signature(weights: Mapping[str, Any], skip: int = 0) -> str:
    """Hex sha256 of names and shapes, counters left out, each name without its first `skip` parts."""
    shapes = sorted(
        (".".join(key.split(".")[skip:]), tuple(tensor.shape))
        for key, tensor in weights.items()
        if not key.endswith(("num_batches_tracked", "total_ops", "total_params"))
    )
    return hashlib.sha256(repr(shapes).encode()).hexdigest()


def shapes_of(network: str) -> dict[str, Outline] | None:
    """Names and shapes of the weights of a registered network that sees images; None for any other."""
    known: dict[str, dict[str, list[int]]] = json.loads(gzip.decompress(SHAPES.read_bytes()))
    found = known.get(network)
    return None if found is None else {key: Outline(tuple(shape)) for key, shape in found.items()}


def computed() -> dict[str, dict[str, list[int]]]:
    """Names and shapes of every network, from the network itself."""
    import torch

    from sodeploy.training.models import NETWORKS

    with torch.device("meta"):  # no memory, no initialization
        states = {name: entry.make().state_dict() for name, entry in NETWORKS.items()}
    return {name: {key: list(tensor.shape) for key, tensor in state.items()} for name, state in states.items()}


def deployed(shapes: Mapping[str, dict[str, list[int]]]) -> dict[str, dict[str, list[int]]]:
    """The networks among them that see images; the others serve training only and are never exported."""
    from sodeploy.training.models import NETWORKS

    return {name: each for name, each in shapes.items() if NETWORKS[name].sees == "images"}


def hashed(shapes: Mapping[str, Mapping[str, list[int]]]) -> dict[str, str]:
    """The signature of each network."""
    return {
        name: signature({key: Outline(tuple(shape)) for key, shape in each.items()}) for name, each in shapes.items()
    }


@cache
def _signatures() -> dict[str, str]:
    known: dict[str, str] = json.loads(FILE.read_text())
    return known


def main() -> None:
    """Write names, shapes and signatures of all networks."""
    shapes = computed()
    artifacts.write_text(FILE, json.dumps(hashed(shapes), indent=1) + "\n")
    artifacts.write_bytes(SHAPES, gzip.compress(json.dumps(deployed(shapes), separators=(",", ":")).encode(), mtime=0))


if __name__ == "__main__":
    command_line.run(main)
