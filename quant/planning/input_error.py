"""How quantizing the input of a layer moves the mean of each channel. The layer's bias then makes up for it.

Clipping the few values beyond a range lowers the means of their channels, always in the same direction, layer after
layer. In the flat parts of an image, such as its background, rounding is not noise but one constant offset. Both are
measured in the float32 network, like the means that make up for rounded weights
(`sodeploy.quant.int8.bias_correction`).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from sodeploy import terminal
from sodeploy.calib_data import Sample
from sodeploy.quant.calibration.inspect_graph import (
    as_input,
    images_at_a_time,
    opened,
    per_channel,
    side_by_side,
    some,
)
from sodeploy.quant.graph import Network, channel_axis_read
from sodeploy.quant.int8 import STEPS, fp16_scale
from sodeploy.quant.planning.plan import Range
from sodeploy.quant.weights_aside import without_constants

IMAGES = 32


class InputErrors(NamedTuple):
    """E[x_q - x] of tensors with a range: tensor -> `(C,) float64`, by the quantizer that makes x_q.

    Attributes:
        int8: of the graph for TensorRT.
        uint8: of the graphs for CPUs.
    """

    int8: dict[str, np.ndarray]
    uint8: dict[str, np.ndarray]


def input_errors(network: Network, ranges: Sequence[Range], images: Iterable[Sample]) -> InputErrors:
    """E[x_q - x] for each channel of the inputs of weighted layers.

    Args:
        images: the first `IMAGES` in the order of their digests are read.
    """
    range_of = {tensor: shared for shared in ranges for tensor in shared.tensors}
    readers = {node.input[0]: node for node in network.nodes if network.is_weighted(node) and node.input[0] in range_of}
    if not readers:
        return InputErrors({}, {})
    model = without_constants(network.model)
    errors = []
    for tensor, reader in readers.items():
        error, _ = append_error(model.graph, tensor, range_of[tensor])
        rank, axis = len(network.shape(tensor)), channel_axis_read(reader)
        error_uint8 = _append_uint8_error(model.graph, tensor, range_of[tensor])
        errors += [per_channel(model.graph, "ReduceMean", name, rank, axis) for name in (error, error_uint8)]
    run = opened(model, errors, network.model.graph.initializer)
    chosen = some(images, IMAGES)
    totals = [np.zeros(1)] * len(errors)
    at_a_time = images_at_a_time(network.model)
    measured = side_by_side(lambda sample: run(as_input(sample, network.contract)), chosen, at_a_time)
    for image in terminal.progress(measured, "measuring quantized inputs", total=len(chosen)):
        totals = [total + means for total, means in zip(totals, image, strict=True)]
    means = [total / len(chosen) for total in totals]
    return InputErrors(*(dict(zip(readers, means[first::2], strict=True)) for first in (0, 1)))


def append_error(graph: onnx.GraphProto, tensor: str, shared: Range) -> tuple[str, str]:
    """Add nodes that quantize a tensor to its range.

    Returns:
        The names of the quantization error and of the values after the shift was subtracted.
    """
    own = f"{tensor}/error"
    scale = fp16_scale(shared.amax / STEPS)
    for name, value in (("shift", np.float32(shared.shift or 0)), ("scale", scale), ("zero", np.int8(0))):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"{own}/{name}"))
    parameters = [f"{own}/scale", f"{own}/zero"]
    for op, inputs, output in (
        ("Sub", [tensor, f"{own}/shift"], f"{own}/shifted"),
        ("QuantizeLinear", [f"{own}/shifted", *parameters], f"{own}/steps"),
        ("DequantizeLinear", [f"{own}/steps", *parameters], f"{own}/back"),
        ("Sub", [f"{own}/back", f"{own}/shifted"], own),
    ):
        graph.node.append(onnx.helper.make_node(op, inputs, [output]))
    return own, f"{own}/shifted"


def _append_uint8_error(graph: onnx.GraphProto, tensor: str, shared: Range) -> str:
    """Add nodes that quantize a tensor as the graphs for CPUs do; the name of the quantization error."""
    own = f"{tensor}/uint8_error"
    scale, zero_point = shared.uint8_parameters
    for name, value in (("scale", scale), ("zero", zero_point)):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"{own}/{name}"))
    parameters = [f"{own}/scale", f"{own}/zero"]
    for op, inputs, output in (
        ("QuantizeLinear", [tensor, *parameters], f"{own}/steps"),
        ("DequantizeLinear", [f"{own}/steps", *parameters], f"{own}/back"),
        ("Sub", [f"{own}/back", tensor], own),
    ):
        graph.node.append(onnx.helper.make_node(op, inputs, [output]))
    return own
