"""How many ONNX nodes each network has as PyTorch exports it, and after our simplification.

    python benchmarks/node_counts.py [u2netp csnet_x1 ...] [--size 320] [--dynamic-batch]

Weights do not matter for it and are random. Constants of the traced graph are not counted: an engine has none.
"""

from typing import Annotated, NamedTuple

import onnx
import typer

from sodeploy import command_line, terminal
from sodeploy.errors import UserError
from sodeploy.export.simplify import simplify
from sodeploy.export.to_onnx import OPSET
from sodeploy.export.tracing import trace
from sodeploy.runtime.measure.report import Table, show
from sodeploy.training.models import NETWORKS, build, entry


class Counts(NamedTuple):
    """Nodes of one network at height x width."""

    name: str
    height: int
    width: int
    traced: int
    simplified: int


def count(name: str, size: int | None = None, batch: int | None = 1) -> Counts:
    """The nodes of a network at its native size, or at size x size; `batch`: None for any.

    Raises:
        UserError: no such network, one that is not exported, or a size that it cannot take.
    """
    if entry(name).sees != "images":
        raise UserError(f"{name} sees masks, not images: it is not exported")
    network, contract = build(name).eval(), entry(name).contract
    contract = contract.model_copy(
        update={"height": size or contract.height, "width": size or contract.width, "batch": batch}
    )
    network.check_size(contract.height, contract.width)
    graph = trace(network, contract, OPSET)
    traced = _nodes(graph)
    return Counts(name, contract.height, contract.width, traced, _nodes(simplify(graph, f"the graph of {name}")))


def _nodes(model: onnx.ModelProto) -> int:
    return sum(node.op_type != "Constant" for node in model.graph.node)


def main(
    networks: Annotated[list[str] | None, typer.Argument(help="all that are deployed, by default")] = None,
    size: Annotated[int | None, typer.Option(help="height and width in pixels, instead of each network's own")] = None,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="any number of images per run")] = False,
) -> None:
    """Print the nodes of every network before and after simplification."""
    names = networks or [name for name in NETWORKS if entry(name).sees == "images"]
    rows = []
    for name in terminal.progress(names, "exporting"):
        counts = count(name, size, None if dynamic_batch else 1)
        rows.append([name, f"{counts.height}x{counts.width}", str(counts.traced), str(counts.simplified)])
    show([Table("", ["network", "size", "nodes as exported", "simplified"], rows, text_columns=2)])


if __name__ == "__main__":
    command_line.run(main)
