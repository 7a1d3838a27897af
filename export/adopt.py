"""Give any ONNX saliency network the contract that all other stages read.

    python export/adopt.py model.onnx --mean .485 .456 .406 --std .229 .224 .225 --size 320 --output out/model.onnx
    python export/adopt.py model.onnx --like u2netp --output-tensor 1959 --output out/model.onnx

Along the way the graph becomes what the rest of the toolchain expects: fp32, a current opset, one output, simplified.
Old and new file must give the same map before anything is written.
"""

import copy
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer

from sodeploy import terminal
from sodeploy.artifacts import atomic_write, write_manifest
from sodeploy.errors import UserError
from sodeploy.export import upgrade
from sodeploy.export.parity import Parity, Shape, compare, require, runner
from sodeploy.export.simplify import simplify
from sodeploy.export.size_option import HELP, SizedCommand, parse_size
from sodeploy.runtime.contract import PRECISION_KEY, Contract, annotate, embed


def adopt(
    model: str | Path,
    output: str | Path,
    preprocessing: dict[str, Any],
    *,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    dynamic_size: bool = False,
    output_tensor: str | None = None,
    logit: bool = False,
) -> Path:
    """Write `model` with a contract, and a manifest beside it.

    Args:
        preprocessing: fields of the contract (`sodeploy.runtime.contract.Contract`): network, mean, std, and any of
        colour,
            interpolation, divide_by, stretch.
        size: the native (height, width); a graph of dynamic size is fixed to it unless `dynamic_size`.
        batch: fixes a dynamic batch; None leaves the batch as it is.
        output_tensor: which output is the saliency map; may be None where there is only one.
        logit: that output is a logit, not a probability.

    Raises:
        UserError: the file is no float ONNX model of one image and one map per image, or does not take `size` or
            `batch`, or old and new graph disagree.
    """
    original = upgrade.load(model)
    dims = [dim.dim_value for dim in original.graph.input[0].type.tensor_type.shape.dim]
    size = size or ((dims[2], dims[3]) if dims[2] and dims[3] else None)
    if size is None:
        raise UserError(f"{model} takes any size; say which is its native one: --size H W")
    if dynamic_size and dims[2] and dims[3]:
        raise UserError(f"{model} takes {dims[2]}x{dims[3]} only; leave --dynamic-size out")
    graph = copy.deepcopy(original)
    name = upgrade.keep_output(graph, output_tensor, model)
    upgrade.fix_input(graph, batch, None if dynamic_size else size, model)
    if upgrade.is_half(graph):
        upgrade.to_float32(graph)
    graph = simplify(upgrade.raise_opset(graph, model), str(model))

    contract = Contract(
        **preprocessing,
        input_name=graph.graph.input[0].name,
        output_name=name,
        batch=graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value or None,
        height=size[0],
        width=size[1],
        dynamic_size=dynamic_size,
        output="logit" if logit else "probability",
    )
    embed(graph, contract)
    annotate(graph, {PRECISION_KEY: "fp32"})
    onnx.checker.check_model(graph, full_check=True)

    parity = _parity(original, graph, contract, model)
    terminal.note(f"{output} against {model}: {parity}")
    require(parity, f"adopting {model} changed its output {name}")
    with atomic_write(output) as temporary:
        temporary.write_bytes(graph.SerializeToString(deterministic=True))
    write_manifest(output, {"model": model}, contract=contract.model_dump(mode="json"), parity=parity._asdict())
    return Path(output)


def _parity(original: onnx.ModelProto, graph: onnx.ModelProto, contract: Contract, source: str | Path) -> Parity:
    run_original = runner(original, contract.output_name)

    def reference(batch: np.ndarray) -> np.ndarray:
        maps = run_original(batch).astype(np.float32)
        if maps.shape != (len(batch), 1, *batch.shape[2:]):
            raise UserError(
                f"{source}: output {contract.output_name} is {maps.shape} for an input {batch.shape}, not one map of "
                "the input's size per image; choose another with --output-tensor"
            )
        if contract.output == "probability" and (maps.min() < -0.01 or maps.max() > 1.01):
            raise UserError(
                f"{source}: output {contract.output_name} goes from {maps.min():.3g} to {maps.max():.3g}, so it is no "
                "probability; give --logit if a sigmoid is still to come"
            )
        return maps

    shapes: list[Shape] = [(contract.batch or 1, 3, contract.height, contract.width)]
    if contract.batch is None:
        shapes.append((3, 3, contract.height, contract.width))
    if contract.dynamic_size:
        shapes.append((contract.batch or 1, 3, contract.height + 32, contract.width + 64))
    return compare(reference, runner(graph, contract.output_name), shapes, str(source), half=upgrade.is_half(original))


def preprocessing_like(network: str) -> tuple[dict[str, Any], tuple[int, int]]:
    """The contract's fields about the image, and the native size, of a network of ours (`training.models`)."""
    from sodeploy.training.models import entry  # imports torch, which nothing else here needs

    contract = entry(network).contract
    fields = ("network", "colour", "interpolation", "divide_by", "mean", "std", "stretch")
    return {field: getattr(contract, field) for field in fields}, (contract.height, contract.width)


app = terminal.application(help="Give any ONNX saliency network a contract.")


@app.command(cls=SizedCommand)
def main(
    model: Annotated[Path, typer.Argument(help="the ONNX file")],
    output: Annotated[Path, typer.Option(help="the .onnx file to write")],
    like: Annotated[str | None, typer.Option(help="image preparation as for this network of ours")] = None,
    mean: Annotated[
        tuple[float, float, float] | None, typer.Option(help="subtracted per channel, after the division")
    ] = None,
    std: Annotated[tuple[float, float, float] | None, typer.Option(help="then divided by, per channel")] = None,
    size: Annotated[str | None, typer.Option(help=HELP, metavar="H [W]")] = None,
    divide_by: Annotated[str | None, typer.Option(help="255, or max: the image's own maximum")] = None,
    colour: Annotated[str | None, typer.Option(help="order of the channels: RGB or BGR")] = None,
    interpolation: Annotated[str | None, typer.Option(help="of the resize: linear or area")] = None,
    output_tensor: Annotated[str | None, typer.Option(help="which output is the saliency map")] = None,
    logit: Annotated[bool, typer.Option("--logit", help="the output is a logit, a sigmoid is to come")] = False,
    stretch: Annotated[bool | None, typer.Option("--stretch/--no-stretch", help="min-max over the map")] = None,
    network: Annotated[str | None, typer.Option(help="its name in tables; by default the file's")] = None,
    batch: Annotated[int | None, typer.Option(help="fix a dynamic batch to this", min=1)] = None,
    dynamic_size: Annotated[bool, typer.Option("--dynamic-size", help="keep the size dynamic")] = False,
) -> None:
    """Give any ONNX saliency network a contract."""
    fields: dict[str, Any] = {"network": model.stem}
    native = None
    if like is not None:
        fields, native = preprocessing_like(like)
    elif mean is None or std is None:
        raise UserError("how the input is normalised is not in the file; give --mean and --std, or --like u2netp")
    given = {
        "network": network,
        "mean": mean,
        "std": std,
        "divide_by": _one_of("--divide-by", divide_by, ("255", "max")),
        "colour": _one_of("--colour", colour, ("RGB", "BGR")),
        "interpolation": _one_of("--interpolation", interpolation, ("linear", "area")),
        "stretch": stretch,
    }
    fields |= {field: value for field, value in given.items() if value is not None}
    if 0.0 in fields["std"]:
        raise UserError(
            f"--std {' '.join(map(str, fields['std']))} has a zero to divide by; give three numbers above 0"
        )
    path = adopt(
        model,
        output,
        fields,
        size=parse_size(size) if size else native,
        batch=batch,
        dynamic_size=dynamic_size,
        output_tensor=output_tensor,
        logit=logit,
    )
    terminal.results.print(str(path), soft_wrap=True)


def _one_of(option: str, value: str | None, choices: tuple[str, ...]) -> str | None:
    if value is not None and value not in choices:
        raise UserError(f"{option} {value} is unknown; choose {' or '.join(choices)}")
    return value


if __name__ == "__main__":
    terminal.run(app)
