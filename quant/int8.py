"""Int8 arithmetic: scales, rounded weights, and what rounding does to the mean of a layer's output."""

import numpy as np
import onnx

from sodeploy.quant.graph import attribute, channel_axis

STEPS = 127  # on each side of zero; -128 is not used, so that a range is symmetric
FEW_STEPS = 64  # of a weight for any x86 CPU: those without VNNI add two products of 8 bits in 16, which saturate
UINT8_STEPS = 255  # from the lowest to the highest value of an activation in the graphs for CPUs
LARGEST_FP16 = 65504.0  # the largest finite number of fp16, the precision around int8 layers
SMALLEST_SCALE = 2.0**-20  # fp16 still has 4 significant bits there; a channel below it has no effect in int8


def fp16_scale(value: float | np.ndarray) -> np.ndarray:
    """The smallest fp16 number >= `value` (and >= SMALLEST_SCALE), as float32.

    Engines store scales in fp16. Scales are rounded here, once, and rounded up: the largest value stays inside the
    range, and every graph of a plan computes with the same numbers. No scale is larger than fp16's largest number.
    """
    wanted = np.clip(np.asarray(value, np.float32), np.float32(SMALLEST_SCALE), np.float32(LARGEST_FP16))
    half = wanted.astype(np.float16)
    above = np.nextafter(half, np.float16(LARGEST_FP16))
    return np.where(half.astype(np.float32) < wanted, above, half).astype(np.float32)


def weight_scales(weight: np.ndarray, axis: int) -> np.ndarray:
    """`(C_out,) float32`: one scale per output channel, which lie along `axis`; the largest weight is 127 steps."""
    return fp16_scale(np.abs(weight).max(axis=tuple(a for a in range(weight.ndim) if a != axis)) / STEPS)


def scales_of(scales: np.ndarray, weight_steps: int) -> np.ndarray:
    """The scales of `STEPS` steps, for a weight of `weight_steps` on each side of zero."""
    return np.asarray(scales, np.float32) * np.float32(STEPS / weight_steps)


def quantize_weight(weight: np.ndarray, scales: np.ndarray, axis: int) -> np.ndarray:
    """`weight` in steps of its channel's scale, int8 in [-127, 127], rounded half to even."""
    steps = weight / _along(scales, weight.ndim, axis)
    return np.clip(np.rint(steps), -STEPS, STEPS).astype(np.int8)


def dequantize_weight(quantized: np.ndarray, scales: np.ndarray, axis: int) -> np.ndarray:
    """The float32 weight that an int8 layer computes with."""
    return quantized.astype(np.float32) * _along(scales, quantized.ndim, axis)


def _along(scales: np.ndarray, ndim: int, axis: int) -> np.ndarray:
    shape = [1] * ndim
    shape[axis] = -1
    return np.asarray(scales, np.float32).reshape(shape)


def bias_correction(node: onnx.NodeProto, error: np.ndarray, means: np.ndarray) -> np.ndarray:
    """The change of a layer's bias that keeps its mean output in place: -sum((W_q - W) * E[x]).

    Inputs after a ReLU have large positive means. The rounding errors of a kernel then add up to one offset per output
    channel, layer after layer (M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
    Correction", ICCV 2019, section 4.2; the means here are measured, not modelled).

    Args:
        error: W_q - W, in the layout of the node's weight.
        means: `(C_in,)`, the mean of each input channel in the float32 network. For an error of the input instead of
            the weight, pass W as `error` and E[x_q - x] as `means`: -sum(W * E[x_q - x]).

    Returns:
        `(C_out,) float64`.
    """
    if node.op_type == "Gemm":
        return -(means @ (error.T if channel_axis(node) == 0 else error)).astype(np.float64)
    per_channel = error.astype(np.float64).sum(axis=tuple(range(2, error.ndim)))  # (C_out, C_in / groups)
    groups = attribute(node, "group", 1)
    by_group = per_channel.reshape(groups, -1, per_channel.shape[1])  # (groups, C_out / groups, C_in / groups)
    return -np.einsum("goi,gi->go", by_group, means.reshape(groups, -1)).reshape(-1)


def channels_read(node: onnx.NodeProto, weight: np.ndarray) -> int:
    """The number of input channels of a Conv or Gemm with this weight."""
    if node.op_type == "Gemm":
        return int(weight.shape[1 - channel_axis(node)])
    return int(weight.shape[1]) * attribute(node, "group", 1)
