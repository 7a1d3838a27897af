"""Whether a graph computes what the network it was made from computes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import onnx

from sodeploy.errors import UserError
from sodeploy.runtime.onnx_session import start_session
from sodeploy.terminal import warn

GREY_LEVEL = 1 / 255
NOISE_MARGIN = 4.0  # where rounding errors fall differs from one order of operations to another
_ROUNDING = 1e-5  # float32 through a hundred layers, on whatever CPU

Shape = tuple[int, int, int, int]  # (N, 3, H, W)
Run = Callable[[np.ndarray], np.ndarray]


class Parity(NamedTuple):
    """Differences of the output over all inputs compared, what they may be, and how far the reference's map reaches."""

    max_abs: float
    mean_abs: float
    max_allowed: float
    mean_allowed: float
    spread: float
    shapes: tuple[Shape, ...]

    def __str__(self) -> str:
        shapes = ", ".join(dict.fromkeys(map(_text, self.shapes)))
        return f"max {self.max_abs:.2g}, mean {self.mean_abs:.2g} absolute difference on inputs {shapes}"


def compare(
    reference: Run,
    run: Run,
    shapes: Sequence[Shape],
    source: str,
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
    explained: tuple[float, float] = (0.0, 0.0),
) -> Parity:
    """The outputs of `run` against those of `reference`, on two inputs of every shape: a scene and noise.

    A pixel may be off by one grey level: where a steep logit crosses zero, float rounding shows that much. The mean
    may be off by a hundredth of one: no wrong graph stays below that. Where the reference's own map reaches less far
    than from 0 to 1, both shrink with it, or any other flat map would pass for a fresh network's.

    Args:
        prepare: turns an image normalized to about mean 0 and deviation 1 into the network's input.
        explained: the largest and the mean difference that the reference's own rounding explains (`rounding_noise`);
            `NOISE_MARGIN` times as much is allowed.

    Raises:
        UserError: the reference, called `source`, gives values that are not finite.
    """
    max_abs, mean_abs, spread = 0.0, 0.0, 1.0
    batches = inputs(shapes, prepare)
    for batch in batches:
        wanted = reference(batch)
        if not np.isfinite(wanted).all():
            raise UserError(
                f"{source} gives NaN or infinite values itself for an input {_text(shape_of(batch))}: bad weights?"
            )
        difference = np.abs(run(batch).astype(np.float64) - wanted)
        max_abs = float(np.maximum(max_abs, difference.max()))  # a NaN stays one, and no limit lets it pass
        mean_abs = float(np.maximum(mean_abs, difference.mean()))
        spread = min(spread, float(np.ptp(wanted)))
    return Parity(
        max_abs,
        mean_abs,
        max(GREY_LEVEL * spread, _ROUNDING, NOISE_MARGIN * explained[0]),
        max(GREY_LEVEL / 100 * spread, _ROUNDING / 4, NOISE_MARGIN * explained[1]),
        spread,
        tuple(map(shape_of, batches)),
    )


def inputs(shapes: Sequence[Shape], prepare: Callable[[np.ndarray], np.ndarray] | None = None) -> list[np.ndarray]:
    """A scene and noise of every shape, `(N, 3, H, W) float32`."""
    found = []
    for shape in shapes:
        for batch in (scene(shape), np.random.default_rng(0).standard_normal(shape, np.float32)):
            found.append(batch if prepare is None else prepare(batch))
    return found


def shape_of(batch: np.ndarray) -> Shape:
    """The shape of a batch of images."""
    n, channels, height, width = batch.shape
    return n, channels, height, width


def rounding_noise(
    model: onnx.ModelProto, output: str, batches: Sequence[np.ndarray], kind: int
) -> tuple[float, float]:
    """The effect of rounding alone on a float32 graph's output: the largest and the mean difference, over all batches.

    Every float result inside the graph is rounded to the type `kind` (fp16 or bf16) and compared with none rounded.
    The same weights in a file of that type differ by about as much from their values in float32.
    """
    rounded = onnx.shape_inference.infer_shapes(model)
    graph = rounded.graph
    floats = {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name not in floats:
                continue
            node.output[index] = f"{name}/exact"
            narrow = f"{name}/narrow"
            nodes.append(onnx.helper.make_node("Cast", [node.output[index]], [narrow], to=kind))
            nodes.append(onnx.helper.make_node("Cast", [narrow], [name], to=onnx.TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    exact_run, rounded_run = runner(model, output), runner(rounded, output)
    differences = [np.abs(rounded_run(batch).astype(np.float64) - exact_run(batch)) for batch in batches]
    largest = max(float(difference.max()) for difference in differences)
    return (largest, max(float(difference.mean()) for difference in differences))


def require(parity: Parity, what: str) -> None:
    """Raise UserError, starting with `what`, unless the outputs agree; warn where that says little."""
    if not (parity.max_abs <= parity.max_allowed and parity.mean_abs <= parity.mean_allowed):
        raise UserError(
            f"{what}: {parity}; at most {parity.max_allowed:.2g} and {parity.mean_allowed:.2g} are allowed, "
            "so nothing was written"
        )
    if parity.spread < 0.01:
        warn(f"the map is nearly flat (from lowest to highest {parity.spread:.2g}): are these trained weights?")


def scene(shape: Shape) -> np.ndarray:
    """`(N, 3, H, W) float32`: bright discs over gradients, about as a normalised photograph is."""
    n, channels, height, width = shape
    y, x = np.mgrid[0:height, 0:width]
    images = []
    for index in range(n):
        radius = min(height, width) / (3 + index)
        disc = np.hypot(y - height / 2, x - width * (index + 1) / (n + 1)) < radius
        ground = 2.0 * x / width - y / height
        images.append(np.stack([np.where(disc, 1.8 - 0.9 * channel, ground) for channel in range(channels)]))
    return np.stack(images).astype(np.float32)


def runner(model: onnx.ModelProto, output: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function from the model's input to one of its outputs, through onnxruntime on the CPU.

    Raises:
        UserError: onnxruntime refuses the model.
    """
    session = start_session(model, name="the exported graph")
    name = session.get_inputs()[0].name
    dtype = np.float16 if session.get_inputs()[0].type == "tensor(float16)" else np.float32

    def run(batch: np.ndarray) -> np.ndarray:
        return np.asarray(session.run([output], {name: batch.astype(dtype)})[0])

    return run


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))
