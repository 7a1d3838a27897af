"""Layers that read tensors of very different magnitudes joined by a Concat, in one int8 scale.

The tensors that a Concat joins share a scale, and a small one among them gets few steps or none. That does no harm
where the layer hardly uses it. Where the layer multiplies it by large weights, the noise of a step is multiplied too.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx

from sodeploy.quant.calibration.histogram import LOWER_EDGES
from sodeploy.quant.calibration.statistics import Statistics
from sodeploy.quant.graph import PASSING, Network, attribute, channel_axis
from sodeploy.quant.int8 import STEPS
from sodeploy.quant.planning.plan import Layer, Range

_LEAST_DB = 20.0  # of a layer's result; the lowest of U2-Netp's and CSNet's layers that read a Concat has 32


def lost_in_a_shared_scale(
    network: Network, layers: Mapping[str, Layer], ranges: Iterable[Range], statistics: Statistics
) -> dict[str, str]:
    """Node -> reason, for int8 layers to which the steps of their input would leave less than 20 dB of their result.

    Signal and noise are sums over the joined tensors: the squared weights that read a tensor, times the mean square of
    its values or of their rounding errors. Errors of products are taken as independent.
    """
    range_of = {tensor: shared for shared in ranges for tensor in shared.tensors}
    found = {}
    for node in network.nodes:
        if node.name not in layers or layers[node.name].precision != "int8" or not network.is_weighted(node):
            continue
        parts = list(_parts(network, node.input[0]))
        energies = _energies(network, node)
        amax = range_of[node.input[0]].amax
        squares = [_mean_square(statistics, tensor) for tensor, _ in parts]
        if len(parts) < 2 or sum(count for _, count in parts) != len(energies) or None in squares or amax == 0:
            continue
        ends = np.cumsum([count for _, count in parts])[:-1]
        weights = np.array([part.sum() for part in np.split(energies, ends)])
        signal = np.array(squares, np.float64)
        noise = np.minimum((amax / STEPS) ** 2 / 12, signal)
        total = float(weights @ noise)
        decibels = 10 * float(np.log10(float(weights @ signal) / total)) if total > 0 else np.inf
        if decibels < _LEAST_DB:
            found[node.name] = (
                f"its input joins tensors of different magnitudes: one int8 scale would leave {decibels:.1f} dB of its "
                "result"
            )
    return found


def _parts(network: Network, tensor: str) -> Iterator[tuple[str, int]]:
    """(tensor that a Concat joins, number of channels) in the order of the channels; the tensor alone if none does."""
    channels = _channels(network, tensor)
    source = tensor
    while True:
        node = network.producer.get(source)
        if node is None:
            break
        if node.op_type == "Concat" and attribute(node, "axis") == 1 and set(node.input) <= set(network.float_tensors):
            for name in node.input:
                yield from _parts(network, name)
            return
        if node.op_type not in PASSING or node.input[0] not in network.float_tensors:
            break
        if node.op_type in ("Reshape", "Transpose", "Split") or _channels(network, node.input[0]) != channels:
            break
        source = node.input[0]
    yield source, channels


def _channels(network: Network, tensor: str) -> int:
    shape = network.shape(tensor)
    return (shape[1] or 0) if len(shape) > 1 else 0


def _energies(network: Network, node: onnx.NodeProto) -> np.ndarray:
    """`(C_in,) float64`: the sum of the squared weights that read each input channel."""
    squares = np.square(network.weight(node).astype(np.float64))
    axis = channel_axis(node)
    if node.op_type != "Conv":
        return squares.sum(axis=tuple(a for a in range(squares.ndim) if a != 1 - axis))
    groups = attribute(node, "group", 1)
    by_group = squares.reshape(groups, squares.shape[0] // groups, squares.shape[1], -1)
    return by_group.sum(axis=(1, 3)).reshape(-1)


def _mean_square(statistics: Statistics, tensor: str) -> float | None:
    histogram = statistics.histograms.get(tensor)
    if histogram is None:
        return None
    values = LOWER_EDGES.astype(np.float64)
    return float(np.sum(histogram.counts * np.square(values))) / max(int(histogram.counts.sum()), 1)
