"""Print the networks with their sizes: python training/networks.py [--size 320]"""

from typing import Annotated, NamedTuple

import torch
import typer
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from sodeploy import command_line, terminal
from sodeploy.errors import UserError
from sodeploy.training.models import NETWORKS, build, entry
from sodeploy.training.models.network import SaliencyNetwork


class Row(NamedTuple):
    """One network: all its parameters, and the multiply-accumulates of one image of height x width pixels.

    `macs` is None where the network does not take this size.
    """

    name: str
    height: int
    width: int
    parameters: int
    macs: int | None


def table(size: int | None = None) -> list[Row]:
    """Every network, at its native size or at size x size pixels."""
    rows = []
    for name in NETWORKS:
        contract = entry(name).contract
        height, width = (size, size) if size else (contract.height, contract.width)
        with torch.device("meta"):
            network = build(name)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        rows.append(Row(name, height, width, parameters, _macs_at(network, name, height, width)))
    return rows


def _macs_at(network: SaliencyNetwork, name: str, height: int, width: int) -> int | None:
    try:
        network.check_size(height, width)
    except UserError:
        return None
    return macs(network, channels(name), height, width)


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
    size: Annotated[
        int | None, typer.Option(help="height and width in pixels; each network's own by default", min=1)
    ] = None,
) -> None:
    """Print every network with its parameters and multiply-accumulates."""
    view = Table("network", "size", "parameters (M)", "GMACs")
    rows = table(size)
    for row in rows:
        parameters, gmacs = f"{row.parameters / 1e6:.3f}", "-" if row.macs is None else f"{row.macs / 1e9:.3f}"
        view.add_row(row.name, f"{row.height}x{row.width}", parameters, gmacs)
    terminal.results.print(view)
    if refused := [row.name for row in rows if row.macs is None]:
        terminal.note(
            f"{size}x{size} is no size of {', '.join(refused)}: at least 32 pixels, and multiples of what each needs"
        )


if __name__ == "__main__":
    command_line.run(main)
