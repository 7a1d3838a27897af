"""Checkpoint -> simplified ONNX with one probability output and its own contract.

    python export/to_onnx.py --model u2netp --checkpoint W.pth --output out/u2netp.onnx

The checkpoint is looked at before PyTorch is imported, so that most refusals take a fraction of a second.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import onnx
import typer

from sodeploy import command_line, terminal
from sodeploy.artifacts import atomic_write, require_file, write_manifest
from sodeploy.errors import UserError
from sodeploy.export.image_options import Colour, DivideBy, Interpolation, Mean, Std, Stretch, image_fields
from sodeploy.export.number_options import HELP, NumbersCommand, parse_size
from sodeploy.export.parity import require
from sodeploy.export.simplify import simplify
from sodeploy.runtime.contract import PRECISION_KEY, annotate, embed
from sodeploy.training.checkpoint_file import refuse_misfit

OPSET = 17
OPSETS = range(17, 22)  # what onnxruntime 1.20 and TensorRT 10.8 read, and the exporter writes


def export(
    model: str,
    checkpoint: str | Path,
    output: str | Path,
    *,
    size: tuple[int, int] | None = None,
    batch: int | None = 1,
    dynamic_size: bool = False,
    opset: int = OPSET,
    image: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Write the ONNX of a registered network with the weights of `checkpoint`, and a manifest beside it.

    The graph is compared with PyTorch before anything is written (`sodeploy.export.parity`), on other batches and sizes
    too where it takes them. The same weights and options give the same bytes.

    Args:
        size: (height, width) in pixels. By default the size that the manifest of the checkpoint names, else the
            published one of the network. With `dynamic_size` it is the native size.
        batch: images per run; None for any number.
        dynamic_size: heights and widths other than `size` work too.
        opset: version of the ONNX operators, one of `OPSETS`.
        image: fields of the contract that replace those of the network: mean, std, divide_by, colour, interpolation,
            stretch.

    Raises:
        UserError: unknown network, a checkpoint that does not fit, a size the network cannot take, no parity.
    """
    checkpoint = require_file(checkpoint, "give the .pth file to export")
    refuse_misfit(checkpoint, model)
    from sodeploy.export.tracing import parity_with, trace  # these import PyTorch
    from sodeploy.training.checkpoint import load_checkpoint, trained_size
    from sodeploy.training.models import build, entry

    if opset not in OPSETS:
        raise UserError(f"opset {opset} is not one of {OPSETS[0]} to {OPSETS[-1]}, which all our engines read")
    if entry(model).sees != "images":
        raise UserError(f"{model} sees masks, not images: it serves training only and is not deployed")
    network = build(model).eval()
    contract = entry(model).contract
    height, width = size or trained_size(checkpoint, model) or (contract.height, contract.width)
    network.check_size(height, width)
    load_checkpoint(checkpoint, network)
    contract = contract.model_copy(
        update={
            **image,
            "batch": batch,
            "height": height,
            "width": width,
            "dynamic_size": dynamic_size,
            "output": "probability",
        }
    )
    graph = trace(network, contract, opset)
    graph = simplify(graph, f"the graph of {model}")
    graph.graph.name = model
    embed(graph, contract)
    annotate(graph, {PRECISION_KEY: "fp32"})
    onnx.checker.check_model(graph, full_check=True)

    parity = parity_with(network, graph, contract)
    terminal.note(f"{model} against PyTorch: {parity}")
    require(parity, f"the ONNX of {model} differs from PyTorch")
    with atomic_write(output) as temporary:
        temporary.write_bytes(graph.SerializeToString(deterministic=True))
    write_manifest(
        output,
        {"checkpoint": checkpoint},
        contract=contract.model_dump(mode="json"),
        opset=opset,
        nodes=len(graph.graph.node),
        parity=parity._asdict(),
    )
    return Path(output)


app = command_line.application()


@app.command(cls=NumbersCommand)
def main(
    model: Annotated[str, typer.Option(help="the network's name; the stage `networks` lists them")],
    checkpoint: Annotated[Path, typer.Option(help="the weights: a file of ours or a published one")],
    output: Annotated[Path, typer.Option(help="the .onnx file to write")],
    size: Annotated[
        str | None, typer.Option(help=f"{HELP}; by default the size of training, or the published one", metavar="H [W]")
    ] = None,
    batch: Annotated[int, typer.Option(help="images per run", min=1)] = 1,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="any number of images per run")] = False,
    dynamic_size: Annotated[bool, typer.Option("--dynamic-size", help="other heights and widths work too")] = False,
    mean: Mean = None,
    std: Std = None,
    divide_by: DivideBy = None,
    colour: Colour = None,
    interpolation: Interpolation = None,
    stretch: Stretch = None,
    opset: Annotated[int, typer.Option(help=f"ONNX opset, {OPSETS[0]} to {OPSETS[-1]}")] = OPSET,
) -> None:
    """Export a checkpoint to ONNX.

    The options about the image replace the network's own values, in the contract that the ONNX file carries.
    """
    if dynamic_batch and batch != 1:
        raise UserError(f"--batch {batch} and --dynamic-batch contradict each other; leave one out")
    path = export(
        model,
        checkpoint,
        output,
        size=parse_size(size) if size else None,
        batch=None if dynamic_batch else batch,
        dynamic_size=dynamic_size,
        opset=opset,
        image=image_fields(
            mean=mean, std=std, divide_by=divide_by, colour=colour, interpolation=interpolation, stretch=stretch
        ),
    )
    terminal.results.print(str(path), soft_wrap=True)


if __name__ == "__main__":
    command_line.run(app)
