"""The budget search on a network that really breaks in int8, and whether it finds where.

    python benchmarks/budget_search.py out/u2netp.onnx --calib DATA --eval OTHER --max-drop s=0.01 --output-dir out/

Any network is broken without changing what it computes: one channel of some layers is multiplied by 1000 and the
weights that read it are divided by as much. The range of such a tensor then leaves nothing for its other channels, so
the layers that read it cannot be int8. The search is told none of this.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer
from onnx import numpy_helper

from sodeploy import command_line, terminal
from sodeploy.artifacts import atomic_write
from sodeploy.calib_data import open_dataset
from sodeploy.errors import UserError
from sodeploy.quant.budget.gate import require_disjoint
from sodeploy.quant.budget.search import find_plan
from sodeploy.quant.calibration.observer import gather
from sodeploy.quant.graph import Network, load_network
from sodeploy.quant.planning.evidence import Evidence
from sodeploy.runtime.measure.budget import parse_budget

CHANNEL = 0
_KEEPS_FACTORS = ("Relu", "MaxPool", "Resize")  # f(k x) = k f(x) for k > 0, channel by channel


@dataclass(frozen=True)
class Breakable:
    """A convolution, and the convolutions that read its first channel, each with the channel it reads it as."""

    layer: str
    readers: dict[str, int]


def breakable(network: Network) -> list[Breakable]:
    """The convolutions whose first channel ends in convolutions only, so that a factor can be undone there."""
    found = []
    for node in network.nodes:
        if node.op_type == "Conv" and network.is_weighted(node):
            readers = _readers(network, node.output[0], CHANNEL)
            if readers:
                found.append(Breakable(node.name, readers))
    return found


def _readers(network: Network, tensor: str, channel: int) -> dict[str, int] | None:
    """Convolution -> as which channel it reads this one; None if anything else reads it."""
    found: dict[str, int] = {}
    if tensor in network.outputs:
        return None
    for node in network.consumers[tensor]:
        if node.op_type == "Conv" and network.is_weighted(node) and _is_dense(network, node):
            further: dict[str, int] | None = {node.name: channel}
        elif node.op_type in _KEEPS_FACTORS:
            further = _readers(network, node.output[0], channel)
        elif node.op_type == "Concat":
            before = list(node.input)[: list(node.input).index(tensor)]
            offset = sum(network.shape(name)[1] or 0 for name in before)
            further = _readers(network, node.output[0], offset + channel)
        else:
            further = None
        if further is None:
            return None
        found |= further
    return found


def _is_dense(network: Network, node: onnx.NodeProto) -> bool:
    """Whether a convolution has one group, so that its weight's second axis counts input channels."""
    weight = network.weight(node)
    return weight is not None and weight.shape[1] == network.shape(node.input[0])[1]


def magnify(network: Network, places: list[Breakable], factor: float) -> onnx.ModelProto:
    """The same function, with the first channel of some layers `factor` times as large inside."""
    model = copy.deepcopy(network.model)
    nodes = {node.name: node for node in model.graph.node}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def scale(name: str, index: tuple[slice | int, ...], by: float) -> None:
        values = numpy_helper.to_array(tensors[name]).copy()
        values[index] *= np.float32(by)
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))

    for place in places:
        for name in nodes[place.layer].input[1:]:
            scale(name, (CHANNEL,), factor)
        for reader, channel in place.readers.items():
            scale(nodes[reader].input[1], (slice(None), channel), 1 / factor)
    return model


def main(
    model: Annotated[Path, typer.Argument(help="float32 ONNX with a contract")],
    calib: Annotated[str, typer.Option(help="images to calibrate on")],
    evaluate: Annotated[str, typer.Option("--eval", help="images and masks to measure losses on")],
    max_drop: Annotated[str, typer.Option(help="what may be lost: s=0.01,mae=0.005")],
    output_dir: Annotated[Path, typer.Option(help="folder for the broken network and the record")] = Path("out"),
    layers: Annotated[int, typer.Option(help="how many layers to magnify a channel of", min=1)] = 8,
    factor: Annotated[float, typer.Option(help="by how much", min=1)] = 1000,
) -> None:
    """Break a network, search, and compare what was left in fp16 with what was broken."""
    network, budget = load_network(model), parse_budget(max_drop)
    calibration, evaluation = open_dataset(calib, masks=False), open_dataset(evaluate)
    require_disjoint(calibration, evaluation)
    places = breakable(network)
    if len(places) < layers:
        raise UserError(f"{model} has {len(places)} layers that can be broken, not {layers}; give a lower --layers")
    # Those with the fewest readers, spread over the network.
    fewest = sorted(places, key=lambda place: len(place.readers))[: max(layers, len(places) // 4)]
    chosen = [fewest[index] for index in np.linspace(0, len(fewest) - 1, layers, dtype=int)]
    path = output_dir / f"{model.stem}.broken.onnx"
    with atomic_write(path) as temporary:
        onnx.save(magnify(network, chosen, factor), temporary)
    network = load_network(path)
    statistics = gather(network, calibration, output_dir / f"{path.stem}.statistics.npz")
    found = find_plan(network, evaluation, budget, output_dir / f"{path.stem}.search.json", Evidence(statistics))
    broken = {reader for place in chosen for reader in place.readers}
    for name, layer in found.plan.layers.items():
        if name in broken or layer.reason.startswith("int8 here"):
            state = "broken" if name in broken else "as it was"
            terminal.results.print(f"{name}: {state}, {layer.precision}, {layer.reason}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    command_line.run(main)
