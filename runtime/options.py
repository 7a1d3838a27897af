"""Options of command lines that run a network: where, by which runtime, and how many images at a time."""

from typing import Annotated

import typer

from sodeploy.runtime.session import EngineName

DeviceOption = Annotated[
    str, typer.Option("--device", help="where to run: cpu, cuda, or cuda:1 for the second GPU", metavar="DEVICE")
]
EngineOption = Annotated[EngineName, typer.Option("--engine", help="runtime of an ONNX model on a CPU")]
NetworkOption = Annotated[
    str | None, typer.Option("--network", help="network of a checkpoint; by default the one that fits")
]
BatchOption = Annotated[
    int | None,
    typer.Option("--batch", help="cuda: images in one run of the network, chosen by its size by default", min=1),
]
