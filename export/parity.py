"""Whether a graph computes what the network it was made from computes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime

from sodeploy.errors import UserError

GREY_LEVEL = 1 / 255

Shape = tuple[int, int, int, int]


class Parity(NamedTuple):
    """Differences of the output over all inputs compared; `tolerance` is what the largest may be."""

    max_abs: float
    mean_abs: float
    tolerance: float
    shapes: tuple[Shape, ...]

    def __str__(self) -> str:
        shapes = ", ".join(dict.fromkeys(map(_text, self.shapes)))
        return f"max {self.max_abs:.2g}, mean {self.mean_abs:.2g} absolute difference on inputs {shapes}"


def compare(
    reference: Callable[[np.ndarray], np.ndarray],
    run: Callable[[np.ndarray], np.ndarray],
    shapes: Sequence[Shape],
    source: str,
    half: bool = False,
) -> Parity:
    """The outputs of `run` against those of `reference`, on two inputs of every shape: a scene and noise.

    The largest difference may be a quarter of a grey level, and a hundredth of the reference's own spread where that
    is less: a fresh network's output is nearly flat, and any other nearly flat map would pass for it. A reference that
    computes in fp16 (`half`) is itself a few grey levels off, so four are allowed.

    Raises:
        UserError: the reference, called `source`, gives values that are not finite.
    """
    max_abs, mean_abs, tolerance = 0.0, [], GREY_LEVEL * 4 if half else GREY_LEVEL / 4
    compared = []
    for shape in shapes:
        for batch in (scene(shape), np.random.default_rng(0).standard_normal(shape, np.float32)):
            wanted = reference(batch)
            if not np.isfinite(wanted).all():
                raise UserError(
                    f"{source} gives NaN or infinite values itself for an input {_text(shape)}: bad weights?"
                )
            difference = np.abs(run(batch).astype(np.float64) - wanted)
            # NaN compares as False with everything: it must not pass.
            max_abs = float("nan") if np.isnan(difference).any() else max(max_abs, float(difference.max()))
            mean_abs.append(float(difference.mean()))
            tolerance = min(tolerance, max(float(np.ptp(wanted)) / 100, 1e-6))
            compared.append(shape)
    return Parity(max_abs, float(np.mean(mean_abs)), tolerance, tuple(compared))


def require(parity: Parity, what: str) -> None:
    """Raise UserError, starting with `what`, unless the outputs agree."""
    if not parity.max_abs <= parity.tolerance:
        raise UserError(f"{what}: {parity}; at most {parity.tolerance:.2g} is allowed, so nothing was written")


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
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors have no base class in common
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise UserError(f"onnxruntime cannot run the exported graph: {' '.join(str(error).split())}") from None
    name = session.get_inputs()[0].name
    dtype = np.float16 if session.get_inputs()[0].type == "tensor(float16)" else np.float32

    def run(batch: np.ndarray) -> np.ndarray:
        return np.asarray(session.run([output], {name: batch.astype(dtype)})[0])

    return run


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))
