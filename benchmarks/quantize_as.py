"""Quantize an ONNX file as a careful user of another tool would, in a process and an environment of that tool's own.

    python benchmarks/quantize_as.py onnxruntime-entropy model.onnx images.npy quantized.onnx

`images.npy` holds the network's inputs, (N, 3, h, w) float32. Of all that is installed only numpy and the tool are
imported. See rivals.py.
"""

import os
import sys
from collections.abc import Iterator

import numpy as np


def by_onnxruntime(method: str, model: str, images: np.ndarray, output: str) -> None:
    """Its quantize_static as its guide advises for CPUs: QDQ, U8S8, per channel, after its own preparation.

    "minmax-reduced" has weights of 7 bits, which the guide offers for CPUs that saturate int8 sums.
    """
    import onnx
    from onnxruntime import quantization

    method, _, reduced = method.partition("-")
    name = onnx.load(model).graph.input[0].name

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._images: Iterator[np.ndarray] = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(({name: image[None]} for image in self._images), None)

    prepared = f"{output}.prepared.onnx"
    quantization.quant_pre_process(model, prepared)
    quantization.quantize_static(
        prepared,
        output,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        reduce_range=reduced == "reduced",
        calibrate_method={
            "entropy": quantization.CalibrationMethod.Entropy,
            "minmax": quantization.CalibrationMethod.MinMax,
        }[method],
    )
    os.remove(prepared)


def by_modelopt(method: str, model: str, images: np.ndarray, output: str) -> None:
    """Its defaults for int8, but for a body in fp32: a CPU has no fp16, whose roundings would be charged to int8."""
    from modelopt.onnx.quantization import quantize

    quantize(
        model,
        quantize_mode="int8",
        calibration_data=images,
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=output,
    )


if __name__ == "__main__":
    tool, _, method = sys.argv[1].partition("-")
    quantize_by = {"onnxruntime": by_onnxruntime, "modelopt": by_modelopt}[tool]
    quantize_by(method, sys.argv[2], np.load(sys.argv[3]), sys.argv[4])
