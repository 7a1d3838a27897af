"""Print the networks with their sizes: python training/networks.py [--size 320]"""

from typing import Annotated, NamedTuple

import torch
import typer
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from sodeploy import command_line, terminal
from sodeploy.training.models import NETWORKS, build, entry
from sodeploy.training.models.network import SaliencyNetwork


class Row(NamedTuple):
    """One network: all its parameters, and the multiply-accumulates of one image of height x width pixels."""

    name: str
    height: int
    width: int
    parameters: int
    macs: int


def table(size: int | None = None) -> list[Row]:
    """Every network, at its native size or at size x size pixels."""
    rows = []
    for name in NETWORKS:
        contract = entry(name).contract
        height, width = (size, size) if size else (contract.height, contract.width)
        with torch.device("meta"):
            network = build(name)
        network.check_size(height, width)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        rows.append(Row(name, height, width, parameters, macs(network, channels(name), height, width)))
    return rows


def channels(name: str) -> int:
    """Input channels: 3 for images, 1 for masks."""
    return 3 if entry(name).sees == "images" else 1


def macs(network: SaliencyNetwork, channels: int, height: int, width: int) -> int:
    """Multiply-accumulates of all convolutions and matrix products for one image.

    The network is moved to the "meta" device, where only shapes are computed, and to eval mode, because batch norm in
    train mode refuses a single value per channel.
    """
    network.to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, channels, height, width, device="meta"))
    return counter.get_total_flops() // 2  # it counts a multiplication and an addition separately


def main(
    size: Annotated[int | None, typer.Option(help="height and width in pixels; each network's own by default")] = None,
) -> None:
    """Print every network with its parameters and multiply-accumulates."""
    view = Table("network", "size", "parameters (M)", "GMACs")
    for row in table(size):
        parameters, gmacs = f"{row.parameters / 1e6:.3f}", f"{row.macs / 1e9:.3f}"
        view.add_row(row.name, f"{row.height}x{row.width}", parameters, gmacs)
    terminal.results.print(view)


if __name__ == "__main__":
    command_line.run(main)
