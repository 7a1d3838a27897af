"""Adaptive rounding: the weights of a layer are rounded jointly (GPTQ) to minimize the layer's output error.

Rounding a weight to its nearest step errs by up to half a step. The inputs of a layer are correlated, so the weights
that are not rounded yet can make up for most of that error: after each column of the weight is rounded, the other
columns move to minimize the error on the inputs that calibration images give (E. Frantar et al., "GPTQ: Accurate
Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023, equations 2 and 3; columns with the
largest inputs come first, as in their "act-order"). It is exact arithmetic on the covariance of the inputs: no labels,
no gradients, no training.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from scipy.linalg.lapack import dtrtri
from threadpoolctl import threadpool_limits

from sodeploy import terminal
from sodeploy.artifacts import atomic_write, sha256, write_manifest
from sodeploy.calib_data import Sample
from sodeploy.quant.calibration.inspect_graph import as_input, images_at_a_time, opened, side_by_side, some
from sodeploy.quant.graph import Network, attribute, channel_axis, integers, pads_itself
from sodeploy.quant.int8 import FEW_STEPS, STEPS, scales_of, weight_scales
from sodeploy.quant.planning.plan import Rounding, rounded_key

IMAGES = 16
_POSITIONS = 512  # sampled of a layer's inputs in each image
_DAMPING = 1e-3  # times the mean variance, added to each variance: the samples do not show everything
_LARGEST_WINDOW = 4608  # inputs of a product; a larger covariance takes longer than all others together
_MEMORY = 2**28  # bytes of covariances and tensors at a time


def adaptive_steps(network: Network, images: Iterable[Sample]) -> dict[str, np.ndarray]:
    """Rounded weights for the convolutions and matrix products of a network, in steps of the scales of a plan.

    Each is rounded twice: to the 127 steps on each side of zero that most engines have, and to the 64 for any x86 CPU.

    Args:
        images: the first `IMAGES` in the order of their digests are read.

    Returns:
        `rounded_key` of a node -> int8 steps, in the shape of its weight. Layers with more than 4608 inputs per product
        have no entry, and matrix products have one for 64 steps alone: other weights take the nearest steps.
    """
    chosen = some(images, IMAGES)
    nodes = [node for node in network.nodes if _window(network, node)]

    def rounded(measured: tuple[onnx.NodeProto, np.ndarray]) -> dict[str, np.ndarray]:
        node, covariance = measured
        weight = np.moveaxis(network.weight(node), channel_axis(node), 0)
        by_group = weight.reshape(len(covariance), -1, covariance.shape[1])
        scales = weight_scales(weight, 0).reshape(by_group.shape[:2])
        # Rows do not depend on each other: both numbers of steps are rounded in one pass.
        both = [scales_of(scales, count) for count in (STEPS, FEW_STEPS)]
        largest = np.repeat((STEPS, FEW_STEPS), scales.shape[1])
        steps = round_adaptively(np.tile(by_group, (1, 2, 1)), np.concatenate(both, axis=1), covariance, largest)
        return {
            rounded_key(node.name, count): np.moveaxis(part.reshape(weight.shape), 0, channel_axis(node))
            for count, part in zip((STEPS, FEW_STEPS), np.split(steps, 2, axis=1), strict=True)
            # Measured on a Swin and a PVT: jointly rounded products gain 0.5 dB in 64 steps, and nothing in 127.
            if count != STEPS or node.op_type != "Gemm"
        }

    found: dict[str, np.ndarray] = {}
    # One thread for each product of matrices: the bytes do not depend on the number of cores, all of which are busy.
    with threadpool_limits(1, "blas"):
        layers = (
            steps
            for part in _parts(network, nodes)
            for steps in side_by_side(rounded, _covariances(network, part, chosen))
        )
        for steps in terminal.progress(layers, "rounding weights", total=len(nodes)):
            found |= steps
    return found


def round_adaptively(
    weight: np.ndarray, scales: np.ndarray, covariance: np.ndarray, largest: int | np.ndarray = STEPS
) -> np.ndarray:
    """The int8 steps with the smallest error of `weight @ x` for inputs x of the given covariance.

    Args:
        weight: `(groups, C_out, n)`.
        scales: `(groups, C_out)`, the size of a step.
        covariance: `(groups, n, n)`, positive semidefinite.
        largest: the largest magnitude in steps, or `(C_out,)` of them.
    """
    size = weight.shape[2]
    variances = np.einsum("gii->gi", covariance)
    damping = _DAMPING * variances.mean(axis=1) + np.finfo(np.float32).tiny
    order = np.argsort(-variances, axis=1, kind="stable")
    ordered = np.take_along_axis(np.take_along_axis(covariance, order[:, :, None], 1), order[:, None, :], 2)
    ordered = ordered + damping[:, None, None] * np.eye(size)
    scale = 1 / np.maximum(np.einsum("gii->gi", ordered).mean(axis=1), np.finfo(np.float64).tiny)
    upper = _inverse_factors(ordered * scale[:, None, None])
    left = np.take_along_axis(weight.astype(np.float64), order[:, None, :], 2)
    steps = np.empty(weight.shape, np.int8)
    block = 64  # columns whose effect on all later ones is added at once
    for begin in range(0, size, block):
        end = min(begin + block, size)
        errors = np.empty((*left.shape[:2], end - begin))
        for column in range(begin, end):
            nearest = np.clip(np.rint(left[:, :, column] / scales), -np.asarray(largest), largest)
            steps[:, :, column] = nearest
            error = (left[:, :, column] - nearest * scales) / upper[:, None, column, column]
            left[:, :, column + 1 : end] -= error[:, :, None] * upper[:, None, column, column + 1 : end]
            errors[:, :, column - begin] = error
        left[:, :, end:] -= errors @ upper[:, begin:end, end:]
    back = np.argsort(order, axis=1)
    return np.take_along_axis(steps, back[:, None, :], 2)


def _inverse_factors(covariance: np.ndarray) -> np.ndarray:
    """`(groups, n, n)`: the upper triangular U with U.T @ U = inverse(covariance).

    Its row i says how later columns make up for an error in column i. Read from the last column to the first, the
    covariance has a lower Cholesky factor whose inverse is U, read likewise: the covariance itself is never inverted,
    which would take three times as long.
    """
    lower = np.linalg.cholesky(covariance[:, ::-1, ::-1])
    return np.stack([dtrtri(factor.T, lower=0)[0].T for factor in lower])[:, ::-1, ::-1]


def _window(network: Network, node: onnx.NodeProto) -> int:
    """Inputs per product of a layer; 0 for a node whose weights take the nearest steps.

    Convolutions have two dimensions, and matrix products have an input of two.
    """
    if node.op_type == "Gemm" and network.is_weighted(node) and node.input[0] in network.float_tensors:
        size = network.weight(node).shape[1 - channel_axis(node)]
        return int(size) if size <= _LARGEST_WINDOW else 0
    if node.op_type != "Conv" or not network.is_weighted(node) or network.weight(node).ndim != 4 or pads_itself(node):
        return 0
    if node.input[0] not in network.float_tensors or min(integers(node, "pads", [0])) < 0:
        return 0
    size = int(np.prod(network.weight(node).shape[1:]))
    return size if size <= _LARGEST_WINDOW else 0


def _parts(network: Network, nodes: Sequence[onnx.NodeProto]) -> Iterator[list[onnx.NodeProto]]:
    """The nodes in parts; the covariances and inputs of a part fit into `_MEMORY`."""
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
    """(node, covariance of the inputs of its products, `(groups, n, n) float64`)"""
    tensors = list(dict.fromkeys(node.input[0] for node in nodes))
    run = opened(network.model, tensors)

    def measured(sample: Sample) -> list[tuple[np.ndarray, np.ndarray, int]]:
        """For each node the mean of its inputs, the sum of their products about that mean, and their number."""
        read = dict(zip(tensors, run(as_input(sample, network.contract)), strict=True))
        found = []
        for node in nodes:
            seed = int(hashlib.sha256(f"{sample.digest()}{node.name}".encode()).hexdigest()[:16], 16)
            x = _sampled_inputs(network, node, read[node.input[0]], np.random.default_rng(seed))
            mean = x.mean(axis=1, keepdims=True)
            x -= mean
            found.append((mean[:, 0].astype(np.float64), x.transpose(0, 2, 1) @ x, x.shape[1]))
        return found

    # Within each image about its own mean, then between the means: exact in float32 also where means are large.
    within: dict[str, np.ndarray] = {}
    means: dict[str, list[np.ndarray]] = {node.name: [] for node in nodes}
    images = side_by_side(measured, samples, images_at_a_time(network.model))
    for image in terminal.progress(images, "measuring inputs of layers", total=len(samples)):
        for node, (mean, product, positions) in zip(nodes, image, strict=True):
            means[node.name].append(mean)
            share = product.astype(np.float64)
            share /= positions * len(samples)
            if node.name in within:
                within[node.name] += share
            else:
                within[node.name] = share
    for node in nodes:
        between = np.stack(means.pop(node.name), axis=1)  # (groups, images, n)
        between -= between.mean(axis=1, keepdims=True)
        yield node, within.pop(node.name) + between.transpose(0, 2, 1) @ between / len(samples)


def _sampled_inputs(network: Network, node: onnx.NodeProto, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`(groups, positions, n)`: the values in a convolution's window at some positions of its output, or some rows.

    Args:
        x: `(1, C, h, w)`, the convolution's input; `(rows, C)`, a matrix product's.
    """
    if node.op_type == "Gemm":
        return x[None, rng.choice(len(x), min(_POSITIONS, len(x)), replace=False)]
    x = x[0]
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
