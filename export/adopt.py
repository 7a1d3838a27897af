"""Give any ONNX saliency network the contract that all other stages read.

    python export/adopt.py model.onnx --mean .485 .456 .406 --std .229 .224 .225 --size 320 --output out/model.onnx
    python export/adopt.py model.onnx --like u2netp --output out/model.onnx

Along the way the graph becomes what the rest of the toolchain expects: fp32, a current opset, one image in, one map
out, simplified. The original file, run by onnxruntime without optimizations, and the new graph must give the same map
before anything is written. `sodeploy doctor model.onnx` proposes the options.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer

from sodeploy import command_line, terminal
from sodeploy.artifacts import atomic_write, write_manifest
from sodeploy.calib_data.images import read_image, write_picture
from sodeploy.errors import UserError
from sodeploy.export.foreign import Choices, Foreign, flat_graph, open_foreign, understand
from sodeploy.export.image_options import Colour, DivideBy, Interpolation, Mean, Std, Stretch, image_fields
from sodeploy.export.number_options import HELP, NumbersCommand, parse_size
from sodeploy.export.original import Original, Refused
from sodeploy.export.output_form import OutputForm
from sodeploy.export.parity import (
    GREY_LEVEL,
    NOISE_MARGIN,
    Parity,
    Shape,
    compare,
    inputs,
    require,
    rounding_noise,
    runner,
)
from sodeploy.export.simplify import simplify
from sodeploy.runtime import onnx_floats
from sodeploy.runtime.composition import compose
from sodeploy.runtime.contract import PRECISION_KEY, Contract, annotate, embed
from sodeploy.runtime.engine_operators import unknown_to_engines
from sodeploy.runtime.onnx_file import RANDOM_OPERATORS, one_line
from sodeploy.runtime.processing import predict
from sodeploy.runtime.session import open_session
from sodeploy.training.contracts import published_contract

_RAW_PIXELS: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255), "divide_by": "255"}


def adopt(model: str | Path, output: str | Path, preprocessing: dict[str, Any], choices: Choices = Choices()) -> Path:
    """Write `model` with a contract, and a manifest beside it.

    Args:
        preprocessing: fields of the contract (`sodeploy.runtime.contract.Contract`): network, mean, std, and any of
            colour, interpolation, divide_by, stretch. A file that takes integers gets pixels of 0 to 255 instead.
        choices: size, batch, and the output that is the map, where the file leaves them open.

    Raises:
        UserError: the file is no float ONNX model of one image and one map per image, or does not take the size or
            the batch, or old and new graph disagree.
    """
    foreign = open_foreign(model)
    if foreign.form.integer is not None:
        if not all(np.allclose(preprocessing[key], _RAW_PIXELS[key], atol=1e-6) for key in ("mean", "std")):
            terminal.warn(
                f"{model} takes {np.dtype(foreign.form.integer).name}: pixels from 0 to 255 as they are, so mean and "
                "std are left out of the contract"
            )
        preprocessing = {**preprocessing, **_RAW_PIXELS}
    prepare = preparation(preprocessing)
    understood = understand(foreign, choices, prepare)
    flat = flat_graph(foreign, understood, choices.dynamic_size)
    graph = simplify(flat, str(model))
    _require_no_chance(graph, model)
    contract = Contract(
        **preprocessing,
        input_name=foreign.form.name,
        output_name=understood.output,
        batch=understood.batch,
        height=understood.size[0],
        width=understood.size[1],
        dynamic_size=choices.dynamic_size,
        output="logit" if choices.logit else "probability",
    )
    embed(graph, contract)
    annotate(graph, {PRECISION_KEY: "fp32"})
    try:
        onnx.checker.check_model(graph, full_check=True)
    except Exception as error:  # onnx's errors have no base class in common
        raise UserError(f"{model}: the adopted graph is not valid ({one_line(error)}); please report this") from None

    parity = _parity(foreign, flat, graph, contract, understood.form, prepare)
    for remark in dict.fromkeys([*foreign.remarks, *unknown_to_engines(graph)]):
        terminal.note(f"{model}: {remark}")
    terminal.note(f"{output} against {model}: {parity}")
    require(parity, f"adopting {model} changed its output {understood.output}")
    with atomic_write(output) as temporary:
        temporary.write_bytes(graph.SerializeToString(deterministic=True))
    facts = {"parity": parity._asdict(), "remarks": foreign.remarks}
    write_manifest(output, {"model": model}, contract=contract.model_dump(mode="json"), **facts)
    terminal.note(f"its contract: {contract_text(contract)}")
    return Path(output)


def _require_no_chance(graph: onnx.ModelProto, source: str | Path) -> None:
    """Refuse a graph whose map differs from run to run."""
    if node := next((node for node in graph.graph.node if node.op_type in RANDOM_OPERATORS), None):
        raise UserError(
            f"{source}: node {node.name or node.output[0]} is a {node.op_type}, so the map differs from run to run; "
            "export the network in evaluation mode, or without it"
        )


def contract_text(contract: Contract) -> str:
    """A contract in one line, in the words of the options."""
    side = "any size, usually " if contract.dynamic_size else ""
    parts = [
        f"{contract.network} takes {'any number of' if contract.batch is None else contract.batch} {contract.colour} "
        f"image{'' if contract.batch == 1 else 's'} of {side}{contract.height}x{contract.width}, resized "
        f"({contract.interpolation}), divided by {'the maximum' if contract.divide_by == 'max' else 255}",
        f"mean {' '.join(f'{value:.6g}' for value in contract.mean)}, "
        f"std {' '.join(f'{value:.6g}' for value in contract.std)}",
        f"output {contract.output_name} is a {contract.output}"
        + (", stretched to its minimum and maximum" if contract.stretch else ""),
    ]
    return "; ".join(parts)


def write_preview(model: Path, image_path: Path, target: Path) -> None:
    """Write an image, its map by `model`, and the object tinted red, side by side.

    Args:
        model: an ONNX file with a contract.

    Raises:
        UserError: the image cannot be read, or the model does not run.
    """
    image = read_image(image_path)
    session = open_session(model)
    count = session.contract.batch or 1
    saliency = predict(image, session.contract, lambda batch: session.infer(np.repeat(batch, count, axis=0)))
    panes = [image, np.repeat(saliency[..., None], 3, axis=2), compose(image, saliency, "overlay")]
    write_picture(target, np.concatenate(panes, axis=1))


def preparation(preprocessing: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """A function from an image of about mean 0 and deviation 1 to the same as pixels, prepared as the contract says."""
    mean, std = (np.reshape(np.array(preprocessing[key], np.float32), (1, 3, 1, 1)) for key in ("mean", "std"))

    def prepare(batch: np.ndarray) -> np.ndarray:
        pixels = np.clip(np.rint((batch * 0.225 + 0.45) * 255), 0, 255)
        return ((pixels / 255 - mean) / std).astype(np.float32)

    return prepare


def _parity(
    foreign: Foreign,
    flat: onnx.ModelProto,
    graph: onnx.ModelProto,
    contract: Contract,
    form: OutputForm,
    prepare: Callable[[np.ndarray], np.ndarray],
) -> Parity:
    """The adopted graph against the file, and a file of a narrower float type against its own weights in float32."""
    shapes: list[Shape] = [(contract.batch or 1, 3, contract.height, contract.width)]
    if contract.batch is None:
        shapes.append((3, 3, contract.height, contract.width))
    if contract.dynamic_size:
        larger = (contract.batch or 1, 3, contract.height + 32, contract.width + 64)
        if not _grows(foreign, form, larger, contract.output_name):
            raise UserError(
                f"{foreign.path} does not take {larger[2]}x{larger[3]} beside {contract.height}x{contract.width}; "
                "leave --dynamic-size out"
            )
        shapes.append(larger)

    def of(opened: Original) -> Callable[[np.ndarray], np.ndarray]:
        return lambda batch: form.from_file(opened.run(batch, contract.output_name))

    if foreign.original is not foreign.widened:
        _require_explained(foreign, flat, contract, of, inputs(shapes, prepare))
    try:
        return compare(of(foreign.widened), runner(graph, contract.output_name), shapes, str(foreign.path), prepare)
    except Refused as refused:
        raise UserError(f"{foreign.path} does not run ({refused}); give another --size or --batch") from None


def _grows(foreign: Foreign, form: OutputForm, shape: Shape, output: str) -> bool:
    """Whether the file takes inputs of a shape and gives maps of their size."""
    try:
        found = foreign.original.run(np.zeros(shape, np.float32), output)
    except Refused:
        return False
    return form.from_file(found).shape == (shape[0], 1, *shape[2:])


def _require_explained(
    foreign: Foreign,
    flat: onnx.ModelProto,
    contract: Contract,
    of: Callable[[Original], Callable[[np.ndarray], np.ndarray]],
    batches: list[np.ndarray],
) -> None:
    """Raise unless the file differs from its own weights in float32 by what its rounding explains."""
    kinds = onnx_floats.other_floats(foreign.model)
    exact, narrow = of(foreign.widened), of(foreign.original)
    if not all(np.isfinite(narrow(batch)).all() for batch in batches):
        foreign.remarks.append(f"in {kinds[0]} the file itself gives NaN or infinite values; in float32 it does not")
        return
    to = onnx.TensorProto.BFLOAT16 if "bfloat16" in kinds else onnx.TensorProto.FLOAT16
    explained = (0.0, 0.0)
    if kinds != ["double"]:
        explained = rounding_noise(flat, contract.output_name, batches, to)
    differences = [np.abs(narrow(batch).astype(np.float64) - exact(batch)) for batch in batches]
    found = (max(float(part.max()) for part in differences), max(float(part.mean()) for part in differences))
    text = (
        f"its map in {kinds[0]} differs from its own weights in float32 by {found[0]:.2g} at most and {found[1]:.2g} "
        f"in the mean; rounding to {kinds[0]} explains about {explained[0]:.2g} and {explained[1]:.2g}"
    )
    largest = max(NOISE_MARGIN * explained[0], GREY_LEVEL)
    if not (found[0] <= largest and found[1] <= max(NOISE_MARGIN * explained[1], GREY_LEVEL / 100)):
        raise UserError(f"{foreign.path}: {text}, so the weights in float32 are another network; nothing was written")
    foreign.remarks.append(text)


def preprocessing_like(network: str) -> tuple[dict[str, Any], tuple[int, int]]:
    """The contract's fields about the image, and the (height, width) in pixels, of a registered network.

    Raises:
        UserError: there is no such network.
    """
    contract = published_contract(network)
    fields = ("network", "colour", "interpolation", "divide_by", "mean", "std", "stretch")
    return {field: getattr(contract, field) for field in fields}, (contract.height, contract.width)


app = command_line.application(help="Give any ONNX saliency network a contract.")


@app.command(cls=NumbersCommand)
def main(
    model: Annotated[Path, typer.Argument(help="the ONNX file")],
    output: Annotated[Path, typer.Option(help="the .onnx file to write")],
    like: Annotated[str | None, typer.Option(help="image preparation as for this network of ours")] = None,
    mean: Mean = None,
    std: Std = None,
    size: Annotated[str | None, typer.Option(help=HELP, metavar="H [W]")] = None,
    divide_by: DivideBy = None,
    colour: Colour = None,
    interpolation: Interpolation = None,
    output_tensor: Annotated[str | None, typer.Option(help="the output that is the saliency map")] = None,
    logit: Annotated[bool, typer.Option("--logit", help="the output is a logit, a sigmoid is to come")] = False,
    channel: Annotated[
        int | None, typer.Option(help="channel of the output that is the map; of two the second by default", min=0)
    ] = None,
    stretch: Stretch = None,
    network: Annotated[str | None, typer.Option(help="its name in tables; by default the file's")] = None,
    batch: Annotated[int | None, typer.Option(help="fix a dynamic batch to this", min=1)] = None,
    dynamic_size: Annotated[bool, typer.Option("--dynamic-size", help="keep the size dynamic")] = False,
    preview: Annotated[
        Path | None, typer.Option(help="an image; it, its map and the object in it are drawn to NAME.preview.png")
    ] = None,
) -> None:
    """Give any ONNX saliency network a contract."""
    fields: dict[str, Any] = {"network": model.stem}
    usual = None
    if like is not None:
        fields, usual = preprocessing_like(like)
    elif mean is None or std is None:
        raise UserError("how the input is normalized is not in the file; give --mean and --std, or --like u2netp")
    fields |= {"network": network} if network is not None else {}
    fields |= image_fields(
        mean=mean, std=std, divide_by=divide_by, colour=colour, interpolation=interpolation, stretch=stretch
    )
    if preview is not None:
        read_image(preview)  # a wrong one is said before the work
    path = adopt(
        model,
        output,
        fields,
        Choices(
            size=parse_size(size) if size else None,
            usual_size=usual,
            batch=batch,
            dynamic_size=dynamic_size,
            output_tensor=output_tensor,
            first_output=like is not None,
            logit=logit,
            channel=channel,
        ),
    )
    if preview is not None:
        target = path.with_suffix(".preview.png")
        write_preview(path, preview, target)
        terminal.note(f"drew {preview}, its map, and the object in it: {target}")
    terminal.results.print(str(path), soft_wrap=True)


if __name__ == "__main__":
    command_line.run(app)
