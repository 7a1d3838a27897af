"""Cross-layer equalization: the same function, with the channels of a tensor brought to one magnitude.

    python quant/equalize.py out/csnet_x1.onnx --calib DATA --output out/csnet_x1.equalized.onnx

An int8 tensor has one step for all of its channels. If the values of a channel are a hundredth of another channel's,
one bit of eight is left for them. Between two convolutions a channel can be multiplied by any positive factor: the
weights that make the channel are multiplied by the factor, and the weights that read it are divided by it. A PReLU
passes factors on, and so do pooling, resizing and adding (M. Nagel et al., "Data-Free Quantization Through Weight
Equalization and Bias Correction", ICCV 2019, section 4.1; here ranges are measured, and made fully equal because
adaptive rounding makes up for coarser weights).

quant/build_engine.py equalizes by itself. The command serves calibration in parts, where all shards need the same
network.
"""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer
from onnx import numpy_helper

from sodeploy import command_line, terminal
from sodeploy.artifacts import atomic_write, write_manifest
from sodeploy.calib_data import Sample, open_photographs
from sodeploy.calib_data.options import RootOption
from sodeploy.errors import UserError
from sodeploy.quant.calibration.inspect_graph import (
    as_input,
    images_at_a_time,
    opened,
    per_channel,
    side_by_side,
    some,
)
from sodeploy.quant.disjoint_sets import DisjointSets
from sodeploy.quant.graph import Network, attribute, load_network
from sodeploy.quant.weights_aside import without_constants
from sodeploy.runtime.onnx_bytes import save_model
from sodeploy.runtime.onnx_file import captured

# Operators with f(c * x) = c * f(x) for a factor c > 0 per channel.
_HOMOGENEOUS = (
    "AveragePool",
    "GlobalAveragePool",
    "Identity",
    "LeakyRelu",
    "MaxPool",
    "PRelu",
    "Relu",
    "Resize",
)
IMAGES = 32  # fewer than a distribution needs: only the largest value of each channel is measured
_LARGEST_FACTOR = 256.0  # int8 cannot represent a smaller channel beside the others


class Channels:
    """Groups of channels, of one tensor or several, that must be multiplied by the same factor.

    Attributes:
        of: tensor -> `(C,) int`, the group of each channel.
        fixed: groups that keep the factor 1, because a node that makes or reads them passes no factor on.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._groups = DisjointSets[int]()
        self._count = 0  # groups so far
        self.of: dict[str, np.ndarray] = {}
        fixed = [*self._channels(network.input)]
        for node in network.nodes:
            inputs = [name for name in node.input if name in network.float_tensors]
            outputs = [name for name in node.output if name in network.float_tensors]
            if not inputs:
                fixed += [group for name in outputs for group in self._channels(name)]
            elif is_boundary(network, node):
                self._channels(outputs[0])
            elif inputs[0] == node.input[0] and _keeps_channels(network, node):
                for name in inputs:
                    self._join(self._channels(name), self._channels(outputs[0]))
            elif node.op_type == "Concat" and attribute(node, "axis") == 1 and inputs == list(node.input):
                self._join(np.concatenate([self._channels(name) for name in inputs]), self._channels(outputs[0]))
            else:
                fixed += [group for name in (*inputs, *outputs) for group in self._channels(name)]
            fixed += [
                group for name in captured(node) if name in network.float_tensors for group in self._channels(name)
            ]
        fixed += [group for name in network.outputs for group in self._channels(name)]
        self.of = {
            tensor: np.array([self._groups.find(group) for group in groups.tolist()])
            for tensor, groups in self.of.items()
        }
        self.fixed = {self._groups.find(int(group)) for group in fixed}

    def _channels(self, tensor: str) -> np.ndarray:
        if tensor not in self.of:
            shape = self._network.shape(tensor)
            count = shape[1] if len(shape) > 1 and shape[1] else 1
            self.of[tensor] = np.arange(self._count, self._count + count)
            self._count += count
        return self.of[tensor]

    def _join(self, first: np.ndarray, second: np.ndarray) -> None:
        for a, b in np.broadcast(first, second):
            self._groups.join(int(a), int(b))


def is_boundary(network: Network, node: onnx.NodeProto) -> bool:
    """Whether a node's weight can absorb the factors of its input and of its output, so that they are independent."""
    return node.op_type == "Conv" and network.is_weighted(node)


def _keeps_channels(network: Network, node: onnx.NodeProto) -> bool:
    """Whether a factor of a channel passes from all of a node's computed inputs to its output."""
    tensors = [name for name in (*node.input, node.output[0]) if name in network.float_tensors]
    if not all(network.has_rank(name) and len(network.shape(name)) > 1 for name in tensors):
        return False
    counts = {network.shape(name)[1] for name in tensors}
    if len(counts) > 1 or None in counts:
        return False
    if node.op_type == "Resize" and any(a.s == b"tf_crop_and_resize" for a in node.attribute):
        return False  # it fills in a value of its own
    return _adds_alike(network, node) or (node.op_type in _HOMOGENEOUS and len(tensors) == 2)


def _adds_alike(network: Network, node: onnx.NodeProto) -> bool:
    if node.op_type not in ("Add", "Sub") or not all(name in network.float_tensors for name in node.input):
        return False
    first, second = (network.shape(name) for name in node.input)
    return len(first) == len(second) == 4 and first[1] == second[1]


def channel_maxima(network: Network, images: Sequence[Sample]) -> dict[str, np.ndarray]:
    """`(C,) float64` for every tensor that a convolution reads: the largest magnitude of each channel over `images`."""
    read = dict.fromkeys(node.input[0] for node in network.nodes if is_boundary(network, node))
    tensors = [name for name in read if name in network.float_tensors]
    model = without_constants(network.model)
    for name in tensors:
        model.graph.node.append(onnx.helper.make_node("Abs", [name], [f"{name}/magnitude"]))
    largest = [per_channel(model.graph, "ReduceMax", f"{name}/magnitude", len(network.shape(name))) for name in tensors]
    run = opened(model, largest, network.model.graph.initializer)
    maxima: dict[str, np.ndarray] = {}
    at_a_time = images_at_a_time(network.model)
    measured = side_by_side(lambda sample: run(as_input(sample, network.contract)), images, at_a_time)
    for image in terminal.progress(measured, "measuring channels", total=len(images)):
        for name, value in zip(tensors, image, strict=True):
            maxima[name] = np.maximum(maxima.get(name, 0.0), value.astype(np.float64))
    return maxima


def channel_factors(channels: Channels, maxima: dict[str, np.ndarray]) -> dict[int, float]:
    """Group -> the factor in [1, 256] that brings its channels up to the largest channel of any of their tensors.

    Channels of zeros and fixed groups keep 1.
    """
    own: dict[int, float] = {}
    wanted: dict[int, float] = {}
    for tensor, values in maxima.items():
        for group, value in zip(channels.of[tensor].tolist(), values.tolist(), strict=True):
            own[group] = max(own.get(group, 0.0), value)
            wanted[group] = max(wanted.get(group, 0.0), float(values.max()))
    return {
        group: min(wanted[group] / value, _LARGEST_FACTOR)
        for group, value in own.items()
        if group not in channels.fixed and 0 < value < np.inf and wanted[group] < np.inf
    }


def equalize(network: Network, images: Iterable[Sample]) -> onnx.ModelProto:
    """The network with the channels of each tensor brought to one magnitude.

    The function stays the same up to rounding in float32.

    Args:
        images: the first `IMAGES` in the order of their digests are read.

    Raises:
        UserError: there is no image.
    """
    chosen = some(images, IMAGES)
    if not chosen:
        raise UserError("the calibration set holds no image; give --calib a folder or a list with images")
    channels = Channels(network)
    factors = channel_factors(channels, channel_maxima(network, chosen))
    return scaled(network, {t: np.array([factors.get(g, 1.0) for g in groups]) for t, groups in channels.of.items()})


def scaled(network: Network, factors: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The network with every channel multiplied by its factor; the weights that read it are divided by the factor.

    Args:
        factors: tensor -> `(C,)`; one factor per group of `Channels`.
    """
    model = copy.deepcopy(network.model)
    graph = model.graph
    for node in graph.node:
        if not is_boundary(network, node):
            continue
        weight, bias = network.weight(node), network.bias(node)
        groups = attribute(node, "group", 1)
        made, read = factors[node.output[0]], factors.get(node.input[0], np.ones(1))
        ahead = np.broadcast_to(read, groups * weight.shape[1]).reshape(groups, -1)  # by input channel of each group
        ahead = np.repeat(ahead, weight.shape[0] // groups, axis=0)  # (C_out, C_in / groups)
        if (made == 1).all() and (ahead == 1).all():
            continue
        spatial = (1,) * (weight.ndim - 2)
        changed = weight * made.reshape(-1, 1, *spatial) / ahead.reshape(*ahead.shape, *spatial)
        _replace(graph, node, 1, changed)
        if bias is not None:
            _replace(graph, node, 2, bias * made)
    read_names = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read_names]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return model


def _replace(graph: onnx.GraphProto, node: onnx.NodeProto, index: int, values: np.ndarray) -> None:
    name = f"{node.name}/{('weight', 'bias')[index - 1]}/equalized"
    graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    node.input[index] = name


def needs_equalization(network: Network) -> bool:
    """Whether the network has a depthwise convolution.

    Its channels differ most, because nothing mixes them, and equalizing them costs nothing, because the weight of each
    has its own scale. Training keeps the channels of dense convolutions alike.
    """
    return any(
        is_boundary(network, node) and attribute(node, "group", 1) == network.weight_shape(node)[0] > 1
        for node in network.nodes
    )


def write_equalized(network: Network, images: Iterable[Sample], path: str | Path) -> None:
    """Write the equalized network, and its manifest."""
    model = equalize(network, images)
    with atomic_write(path) as temporary:
        save_model(model, temporary)
    write_manifest(path, {"model": network.path}, contract=network.contract.model_dump(mode="json"))


def main(
    model: Annotated[Path, typer.Argument(help="float32 ONNX with a contract")],
    calib: Annotated[
        list[str], typer.Option(help=f"images ({IMAGES} are read): folder, list or synthetic:calib[:N]; repeatable")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="the ONNX file to write")],
    root: RootOption = None,
) -> None:
    """Bring the channels of every tensor to one magnitude; the network computes the same."""
    write_equalized(load_network(model), open_photographs(calib, root), output)
    terminal.note(f"wrote {output}")


if __name__ == "__main__":
    command_line.run(main)
