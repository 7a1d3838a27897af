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
from typing import NamedTuple

import numpy as np
import onnx
from scipy.linalg.lapack import dtrtri
from threadpoolctl import threadpool_limits

from sodeploy import terminal
from sodeploy.artifacts import atomic_write, sha256, write_manifest
from sodeploy.calib_data import Sample
from sodeploy.quant.calibration.inspect_graph import as_input, side_by_side, some
from sodeploy.quant.calibration.parts import GraphInParts
from sodeploy.quant.graph import Network, attribute, channel_axis, integers, pads_itself
from sodeploy.quant.int8 import FEW_STEPS, STEPS, scales_of, weight_scales
from sodeploy.quant.planning.plan import Rounding, rounded_key

IMAGES = 16
_POSITIONS = 512  # sampled of a layer's inputs in each image
_DAMPING = 1e-3  # times the mean variance, added to each variance: the samples do not show everything
_LARGEST_WINDOW = 4608  # inputs of a product; a larger covariance takes longer than all others together
_MEMORY = 2**28  # bytes of covariances and inputs at a time


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

    def rounded(measured: tuple[onnx.NodeProto, _Covariance]) -> dict[str, np.ndarray]:
        node, covariance = measured
        weight = np.moveaxis(network.weight(node), channel_axis(node), 0)
        by_group = weight.reshape(attribute(node, "group", 1), -1, _window(network, node))
        scales = weight_scales(weight, 0).reshape(by_group.shape[:2])
        # Rows do not depend on each other: both numbers of steps are rounded in one pass.
        both = [scales_of(scales, count) for count in (STEPS, FEW_STEPS)]
        largest = np.repeat((STEPS, FEW_STEPS), scales.shape[1])
        two = np.tile(by_group, (1, 2, 1))
        steps = round_adaptively(two, np.concatenate(both, axis=1), covariance.take(), largest)
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
            for part in _parts(network, nodes, len(chosen))
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
        covariance: `(groups, n, n)`, positive semidefinite; it may be large, and is not held longer than needed.
        largest: the largest magnitude in steps, or `(C_out,)` of them.
    """
    size = weight.shape[2]
    variances = np.einsum("gii->gi", covariance)
    damping = _DAMPING * variances.mean(axis=1) + np.finfo(np.float32).tiny
    order = np.argsort(-variances, axis=1, kind="stable")
    ordered = covariance[np.arange(len(covariance))[:, None, None], order[:, :, None], order[:, None, :]]
    del covariance, variances
    diagonal = np.einsum("gii->gi", ordered)
    diagonal += damping[:, None]
    scale = 1 / np.maximum(diagonal.mean(axis=1), np.finfo(np.float64).tiny)
    ordered *= scale[:, None, None]
    upper = _inverse_factors(ordered)
    del ordered, diagonal
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
    for factor in lower:
        factor[:] = dtrtri(factor.T, lower=0, overwrite_c=1)[0].T  # in the same memory
    return lower[:, ::-1, ::-1]


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


def _parts(network: Network, nodes: Sequence[onnx.NodeProto], images: int) -> Iterator[list[onnx.NodeProto]]:
    """The nodes in parts; what is kept of all images for one part fits into `_MEMORY`."""
    part: list[onnx.NodeProto] = []
    used = 0
    for node in nodes:
        needed = min(_covariance_bytes(network, node), _input_bytes(network, node, images))
        if part and used + needed > _MEMORY:
            yield part
            part, used = [], 0
        part.append(node)
        used += needed
    if part:
        yield part


def _covariance_bytes(network: Network, node: onnx.NodeProto) -> int:
    return 8 * attribute(node, "group", 1) * _window(network, node) ** 2


def _input_bytes(network: Network, node: onnx.NodeProto, images: int) -> int:
    """Of the sampled inputs."""
    return 4 * attribute(node, "group", 1) * _window(network, node) * _POSITIONS * images


class _Moments(NamedTuple):
    """Of a layer's sampled inputs in one image: their mean, the sum of their products about it, and their number."""

    mean: np.ndarray
    products: np.ndarray
    positions: int

    @classmethod
    def of(cls, x: np.ndarray) -> "_Moments":
        """
        Args:
            x: `(groups, positions, n)`; it is changed.
        """
        mean = x.mean(axis=1, keepdims=True)
        x -= mean
        return cls(mean[:, 0].astype(np.float64), x.transpose(0, 2, 1) @ x, x.shape[1])


class _Covariance:
    """The covariance of a layer's inputs, of one image after another.

    Within each image about its own mean, then between the means: exact in float32 also where means are large. Of a
    layer with large windows the inputs are kept until the end: they take less memory than their products.
    """

    def __init__(self, images: int, keeps_inputs: bool) -> None:
        self._images = images
        self._keeps_inputs = keeps_inputs
        self._inputs: list[np.ndarray] = []
        self._means: list[np.ndarray] = []
        self._within: np.ndarray | None = None

    def read(self, x: np.ndarray) -> "_Moments | np.ndarray":
        """The form in which `include` takes the sampled inputs of an image; any thread may make it."""
        return x if self._keeps_inputs else _Moments.of(x)

    def include(self, image: "_Moments | np.ndarray") -> None:
        """Add an image; their order decides the last bits."""
        if isinstance(image, _Moments):
            self._add(image)
        else:
            self._inputs.append(image)

    def _add(self, image: _Moments) -> None:
        self._means.append(image.mean)
        share = image.products.astype(np.float64)
        share /= image.positions * self._images
        if self._within is None:
            self._within = share
        else:
            self._within += share

    def take(self) -> np.ndarray:
        """`(groups, n, n) float64`; nothing is left here."""
        while self._inputs:
            self._add(_Moments.of(self._inputs.pop(0)))
        assert self._within is not None
        covariance, self._within = self._within, None
        between = np.stack(self._means, axis=1)  # (groups, images, n)
        between -= between.mean(axis=1, keepdims=True)
        products = between.transpose(0, 2, 1) @ between
        products /= self._images
        covariance += products
        return covariance


def _covariances(
    network: Network, nodes: Sequence[onnx.NodeProto], samples: Sequence[Sample]
) -> Iterator[tuple[onnx.NodeProto, _Covariance]]:
    """The nodes, and the covariances of the inputs of their products."""
    measured = _measured(network, nodes, samples)
    for node in nodes:
        yield node, measured.pop(node.name)


def _measured(network: Network, nodes: Sequence[onnx.NodeProto], samples: Sequence[Sample]) -> dict[str, _Covariance]:
    """Node -> the covariance of its inputs. The network runs once on each image."""
    count = len(samples)
    readers: dict[str, list[onnx.NodeProto]] = {}
    found: dict[str, _Covariance] = {}
    for node in nodes:
        readers.setdefault(node.input[0], []).append(node)
        keeps_inputs = _input_bytes(network, node, count) < _covariance_bytes(network, node)
        found[node.name] = _Covariance(count, keeps_inputs)
    graph = GraphInParts(network.model, list(readers))

    def read(sample: Sample) -> dict[str, _Moments | np.ndarray]:
        made = {}
        for tensors in graph.run(as_input(sample, network.contract)):
            for tensor, x in tensors.items():
                for node in readers[tensor]:
                    seed = int(hashlib.sha256(f"{sample.digest()}{node.name}".encode()).hexdigest()[:16], 16)
                    sampled = _sampled_inputs(network, node, x, np.random.default_rng(seed))
                    made[node.name] = found[node.name].read(sampled)
        return made

    images = side_by_side(read, samples, graph.at_a_time)
    for image in terminal.progress(images, "measuring inputs of layers", total=count):
        for name, inputs in image.items():
            found[name].include(inputs)
    return found


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
