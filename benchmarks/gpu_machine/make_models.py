"""ONNX files of dynamic batch in fp32 and fp16 for a machine that has torch and onnx, but no onnxsim. Random weights:
for times, not for accuracy.

python benchmarks/gpu_machine/make_models.py u2netp isnet_dis --output out/models
"""

import warnings
from pathlib import Path
from typing import Annotated

import onnx
import torch
import typer

from sodeploy import command_line, terminal
from sodeploy.artifacts import atomic_write
from sodeploy.quant.emit.fp16 import to_fp16
from sodeploy.runtime.contract import PRECISION_KEY, annotate, embed
from sodeploy.training.models import build, entry


class Map(torch.nn.Module):
    """A network without its side outputs."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = self.network(image)
        first: torch.Tensor = found[0] if isinstance(found, tuple | list) else found
        return first


def make(name: str, folder: Path) -> tuple[Path, Path]:
    """Write untrained_NAME.onnx and untrained_NAME.fp16.onnx; returns both.

    Raises:
        UserError: there is no such network.
    """
    torch.manual_seed(0)
    contract = entry(name).contract.model_copy(update={"batch": None})
    path, half_path = folder / f"untrained_{name}.onnx", folder / f"untrained_{name}.fp16.onnx"
    dynamic = {contract.input_name: {0: "N"}, contract.output_name: {0: "N"}}
    with warnings.catch_warnings(), atomic_write(path) as temporary:
        warnings.simplefilter("ignore")  # the tracer warns of every constant shape
        torch.onnx.export(
            Map(build(name).eval()),
            (torch.rand(2, 3, contract.height, contract.width),),
            str(temporary),
            input_names=[contract.input_name],
            output_names=[contract.output_name],
            dynamic_axes=dynamic,
            opset_version=17,
            dynamo=False,
        )
        model = onnx.shape_inference.infer_shapes(onnx.load(temporary))
        embed(model, contract)
        onnx.save(model, temporary)
    half = to_fp16(model)
    embed(half, contract)
    annotate(half, {PRECISION_KEY: "fp16"})
    onnx.checker.check_model(half)
    with atomic_write(half_path) as temporary:
        onnx.save(half, temporary)
    return path, half_path


def main(
    names: Annotated[list[str], typer.Argument(help="networks, as `sodeploy networks` lists them")],
    output: Annotated[Path, typer.Option(help="folder for the files")] = Path("out/models"),
) -> None:
    """Write ONNX files of networks with random weights."""
    output.mkdir(parents=True, exist_ok=True)
    for name in names:
        for path in make(name, output):
            terminal.results.print(str(path), soft_wrap=True)


if __name__ == "__main__":
    command_line.run(main)
