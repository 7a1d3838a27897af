"""Adaptive rounding: weights rounded up or down so that what a layer computes stays, not so that each weight does.

Rounding a weight to the nearest step errs by up to half a step. The weights not yet rounded can take most of that error
back, because a layer's inputs are correlated: after each column of the weight is rounded, the others move by what best
makes up for it on the inputs that calibration images give (E. Frantar et al., "GPTQ: Accurate Post-Training
Quantization for Generative Pre-trained Transformers", ICLR 2023, equations 2 and 3; the order, largest inputs first, is
that of their "act-order"). It is exact arithmetic on the inputs' covariance: no labels, no gradients, no training.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx

from sodeploy import terminal
from sodeploy.artifacts import atomic_write, sha256, write_manifest
from sodeploy.calib_data import Sample
from sodeploy.quant.calibration.inspect_graph import as_input, opened, some
from sodeploy.quant.graph import Network, attribute, channel_axis, integers, pads_itself
from sodeploy.quant.int8 import STEPS, weight_scales
from sodeploy.quant.planning.plan import Rounding

IMAGES = 16
_POSITIONS = 512  # of each image that a layer's inputs are sampled at
_DAMPING = 1e-3  # of the mean variance, added to each: what the samples do not show must not be relied upon
_LARGEST_WINDOW = 4608  # inputs of a product; the covariance of more takes longer than all others together
_MEMORY = 2**28  # bytes of covariances, and of tensors, held at a time


def adaptive_steps(network: Network, images: Iterable[Sample]) -> dict[str, np.ndarray]:
    """Rounded weights for the convolutions of a network, in steps of the scales that a plan gives them.

    Args:
        images: of which `IMAGES` are read, the same whatever their order.

    Returns:
        node -> int8 steps in [-127, 127], in the shape of its weight. Not for matrix products (Gemm) and convolutions
        whose products have more than 4608 inputs: those keep the nearest step.
    """
    chosen = some(images, IMAGES)
    nodes = [node for node in network.nodes if _window(network, node)]
    rounded: dict[str, np.ndarray] = {}
    found = (pair for part in _parts(network, nodes) for pair in _covariances(network, part, chosen))
    for node, covariance in terminal.progress(found, "rounding weights", total=len(nodes)):
        weight = network.weight(node)
        by_group = weight.reshape(len(covariance), -1, covariance.shape[1])
        scales = weight_scales(weight, channel_axis(node)).reshape(by_group.shape[:2])
        rounded[node.name] = round_adaptively(by_group, scales, covariance).reshape(weight.shape)
    return rounded


def round_adaptively(weight: np.ndarray, scales: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The steps, int8 in [-127, 127], that lose least of `weight @ x` for inputs x of the given covariance.

    Args:
        weight: `(groups, C_out, n)`.
        scales: `(groups, C_out)`, the size of a step.
        covariance: `(groups, n, n)`, positive semidefinite.
    """
    size = weight.shape[2]
    variances = np.einsum("gii->gi", covariance)
    damping = _DAMPING * variances.mean(axis=1) + np.finfo(np.float32).tiny
    order = np.argsort(-variances, axis=1, kind="stable")
    ordered = np.take_along_axis(np.take_along_axis(covariance, order[:, :, None], 1), order[:, None, :], 2)
    ordered = ordered + damping[:, None, None] * np.eye(size)
    scale = 1 / np.maximum(np.einsum("gii->gi", ordered).mean(axis=1), np.finfo(np.float64).tiny)
    # The upper Cholesky factor of the inverse holds, row by row, how the columns to come make up for an error in one.
    upper = np.linalg.cholesky(np.linalg.inv(ordered * scale[:, None, None])).transpose(0, 2, 1)
    left = np.take_along_axis(weight.astype(np.float64), order[:, None, :], 2)
    steps = np.empty(weight.shape, np.int8)
    block = 64  # columns whose effect on all later ones is added at once
    for begin in range(0, size, block):
        end = min(begin + block, size)
        errors = np.empty((*left.shape[:2], end - begin))
        for column in range(begin, end):
            nearest = np.clip(np.rint(left[:, :, column] / scales), -STEPS, STEPS)
            steps[:, :, column] = nearest
            error = (left[:, :, column] - nearest * scales) / upper[:, None, column, column]
            left[:, :, column + 1 : end] -= error[:, :, None] * upper[:, None, column, column + 1 : end]
            errors[:, :, column - begin] = error
        left[:, :, end:] -= errors @ upper[:, begin:end, end:]
    back = np.argsort(order, axis=1)
    return np.take_along_axis(steps, back[:, None, :], 2)


def _window(network: Network, node: onnx.NodeProto) -> int:
    """How many inputs each product of a two-dimensional convolution has; 0 for what is left at the nearest step."""
    if node.op_type != "Conv" or not network.is_weighted(node) or network.weight(node).ndim != 4 or pads_itself(node):
        return 0
    if node.input[0] not in network.float_tensors:
        return 0
    size = int(np.prod(network.weight(node).shape[1:]))
    return size if size <= _LARGEST_WINDOW else 0


def _parts(network: Network, nodes: Sequence[onnx.NodeProto]) -> Iterator[list[onnx.NodeProto]]:
    """The nodes in runs, each of whose covariances and inputs fit `_MEMORY`."""
    part: list[onnx.NodeProto] = []
    tensors: set[str] = set()
    used = 0
    for node in nodes:
        needed = attribute(node, "group", 1) * _window(network, node) ** 2 * 8
        if node.input[0] not in tensors:
            known = [size or 1 for size in network.shape(node.input[0])]
            needed += 4 * int(np.prod(known))
        if part and used + needed > _MEMORY:
            yield part
            part, tensors, used = [], set(), 0
        part.append(node)
        tensors.add(node.input[0])
        used += needed
    if part:
        yield part


def _covariances(
    network: Network, nodes: Sequence[onnx.NodeProto], samples: Sequence[Sample]
) -> Iterator[tuple[onnx.NodeProto, np.ndarray]]:
    """Each node with the covariance of its products' inputs, `(groups, n, n) float64`."""
    tensors = list(dict.fromkeys(node.input[0] for node in nodes))
    run = opened(network.model, tensors)
    # An image at a time about its own mean, then the means about theirs: exact in float32 where means are large.
    within: dict[str, np.ndarray] = {}
    means: dict[str, list[np.ndarray]] = {node.name: [] for node in nodes}
    for sample in samples:
        values = run(as_input(sample, network.contract))
        read = {name: value[0] for name, value in zip(tensors, values, strict=True)}
        for node in nodes:
            seed = int(hashlib.sha256(f"{sample.digest()}{node.name}".encode()).hexdigest()[:16], 16)
            x = _sampled_inputs(network, node, read[node.input[0]], np.random.default_rng(seed))
            mean = x.mean(axis=1, keepdims=True)
            x = x - mean
            means[node.name].append(mean[:, 0].astype(np.float64))
            product = (x.transpose(0, 2, 1) @ x).astype(np.float64)
            within[node.name] = within.get(node.name, 0) + product / (x.shape[1] * len(samples))
    for node in nodes:
        between = np.stack(means.pop(node.name), axis=1)  # (groups, images, n)
        between -= between.mean(axis=1, keepdims=True)
        yield node, within.pop(node.name) + between.transpose(0, 2, 1) @ between / len(samples)


def _sampled_inputs(network: Network, node: onnx.NodeProto, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`(groups, positions, n)`: what a convolution's window holds at some positions of its output.

    Args:
        x: `(C, h, w)`, its input.
    """
    height, width = network.weight(node).shape[2:]
    groups = attribute(node, "group", 1)
    (down, across), (apart, aside) = integers(node, "strides", [1, 1]), integers(node, "dilations", [1, 1])
    top, left, bottom, right = integers(node, "pads", [0, 0, 0, 0])
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right)))
    rows = (padded.shape[1] - apart * (height - 1) - 1) // down + 1
    columns = (padded.shape[2] - aside * (width - 1) - 1) // across + 1
    positions = rng.choice(rows * columns, min(_POSITIONS, rows * columns), replace=False)
    y, x0 = positions // columns * down, positions % columns * across
    taps = [padded[:, y + i * apart, x0 + j * aside] for i in range(height) for j in range(width)]
    windows = np.stack(taps, axis=-1)  # (C, positions, taps)
    by_group = windows.reshape(groups, -1, *windows.shape[1:]).transpose(0, 2, 1, 3)
    return by_group.reshape(groups, len(positions), -1)


def round_to_file(network: Network, images: Iterable[Sample], path: Path) -> tuple[dict[str, np.ndarray], Rounding]:
    """`adaptive_steps`, written to an .npz file with a manifest.

    Returns:
        The rounded weights, and the entry by which a plan names the file.
    """
    steps = adaptive_steps(network, images)
    with atomic_write(path) as temporary:
        np.savez_compressed(temporary, **steps)  # type: ignore[arg-type]
    write_manifest(path, {"model": network.path})
    return steps, Rounding(file=path.name, sha256=sha256(path))
