"""Adaptive rounding of a network's weights: which layers, and the covariance of each layer's inputs on images."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from threadpoolctl import threadpool_limits

from sodeploy import terminal
from sodeploy.artifacts import atomic_write, sha256, write_manifest
from sodeploy.calib_data import Sample
from sodeploy.quant.calibration.inspect_graph import as_input, side_by_side, some
from sodeploy.quant.calibration.parts import GraphInParts
from sodeploy.quant.graph import Network, attribute, channel_axis, integers, pads_itself
from sodeploy.quant.int8 import FEW_STEPS, STEPS, scales_of, weight_scales
from sodeploy.quant.planning.covariance import Covariance, Moments
from sodeploy.quant.planning.gptq import round_adaptively
from sodeploy.quant.planning.plan import Rounding, rounded_key

IMAGES = 16
_POSITIONS = 512  # sampled of a layer's inputs in each image
_LARGEST_WINDOW = 4608  # inputs of a product; a larger covariance takes longer than all others together
_MEMORY = 2**29  # bytes of covariances and inputs at a time


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

    def rounded(measured: tuple[onnx.NodeProto, Covariance]) -> dict[str, np.ndarray]:
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


def _window(network: Network, node: onnx.NodeProto) -> int:
    """Inputs per product of a layer; 0 for a node whose weights take the nearest steps.

    Convolutions have two dimensions, and matrix products have an input of two.
    """
    if node.op_type == "Gemm" and network.is_weighted(node) and node.input[0] in network.float_tensors:
        size = network.weight_shape(node)[1 - channel_axis(node)]
        return int(size) if size <= _LARGEST_WINDOW else 0
    if node.op_type != "Conv" or not network.is_weighted(node) or pads_itself(node):
        return 0
    if len(network.weight_shape(node)) != 4:
        return 0
    if node.input[0] not in network.float_tensors or min(integers(node, "pads", [0])) < 0:
        return 0
    size = int(np.prod(network.weight_shape(node)[1:]))
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


def _covariances(
    network: Network, nodes: Sequence[onnx.NodeProto], samples: Sequence[Sample]
) -> Iterator[tuple[onnx.NodeProto, Covariance]]:
    """The nodes, and the covariances of the inputs of their products."""
    measured = _measured(network, nodes, samples)
    for node in nodes:
        yield node, measured.pop(node.name)


def _measured(network: Network, nodes: Sequence[onnx.NodeProto], samples: Sequence[Sample]) -> dict[str, Covariance]:
    """Node -> the covariance of its inputs. The network runs once on each image."""
    count = len(samples)
    readers: dict[str, list[onnx.NodeProto]] = {}
    found: dict[str, Covariance] = {}
    for node in nodes:
        readers.setdefault(node.input[0], []).append(node)
        keeps_inputs = _input_bytes(network, node, count) < _covariance_bytes(network, node)
        found[node.name] = Covariance(count, keeps_inputs)
    graph = GraphInParts(network.model, list(readers))

    def read(sample: Sample) -> dict[str, Moments | np.ndarray]:
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
    height, width = network.weight_shape(node)[2:]
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
