"""Quantize an ONNX file as a careful user of another tool would, in a process and an environment of that tool's own.

    python benchmarks/quantize_as.py onnxruntime-entropy model.onnx images.npy quantized.onnx

`images.npy` holds the network's inputs, (N, 3, h, w) float32; `images.masks.npy` beside it, for a tool that measures
accuracy, their masks, (N, h, w) uint8. Of all that is installed only numpy and the tool are imported, and PySODMetrics
for S. See rivals.py.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

_LARGEST_DROP = 0.002  # of S, for a tool that takes a limit


def masks_of(images: Path) -> Path:
    """The file of the masks of the images in a file."""
    return images.with_suffix(".masks.npy")


def by_onnxruntime(method: str, model: str, images: Path, output: str) -> None:
    """Its quantize_static as its guide advises for CPUs: QDQ, U8S8, per channel, after its own preparation.

    "minmax-reduced" has weights of 7 bits, which the guide offers for CPUs that saturate int8 sums.
    """
    import onnx
    from onnxruntime import quantization

    method, _, reduced = method.partition("-")
    name = onnx.load(model).graph.input[0].name

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._images: Iterator[np.ndarray] = iter(np.load(images))

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


def by_modelopt(method: str, model: str, images: Path, output: str) -> None:
    """Its defaults for int8, but for a body in fp32: a CPU has no fp16, whose roundings would be charged to int8."""
    from modelopt.onnx.quantization import quantize

    quantize(
        model,
        quantize_mode="int8",
        calibration_data=np.load(images),
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=output,
    )


def by_nncf(method: str, model: str, images: Path, output: str) -> None:
    """Its mixed preset, which is for networks with other activations than ReLU too, over all images.

    "fast" and "accurate" are its two bias corrections. "controlled" returns layers to float until S on the masks is
    within .002 of the float network's.

    "accurate" quantizes the network as an OpenVINO model, and writes one: `output` with the suffix .xml. On ONNX files
    of networks with nested skips, such as U2-Netp and CSNet, it ends with a KeyError (3.4.0): it cuts a graph at
    tensors, also where it means one reader alone, and then misses the nodes behind the cut.
    """
    import nncf
    import onnx

    values = np.load(images)
    options = {"preset": nncf.QuantizationPreset.MIXED, "subset_size": len(values)}
    if method == "accurate":
        import openvino

        calibration = nncf.Dataset([image[None] for image in values])
        corrected = nncf.quantize(openvino.convert_model(model), calibration, fast_bias_correction=False, **options)
        openvino.save_model(corrected, Path(output).with_suffix(".xml"), compress_to_fp16=False)
        return
    network = onnx.load(model)
    name = network.graph.input[0].name
    calibration = nncf.Dataset([{name: image[None]} for image in values])
    if method == "controlled":
        masks = np.load(masks_of(images))
        validation = nncf.Dataset([(image[None], mask) for image, mask in zip(values, masks, strict=True)])
        quantized = nncf.quantize_with_accuracy_control(
            network,
            calibration,
            validation,
            _mean_s,
            max_drop=_LARGEST_DROP,
            drop_type=nncf.DropType.ABSOLUTE,
            **options,
        )
    else:
        quantized = nncf.quantize(network, calibration, fast_bias_correction=True, **options)
    onnx.save(quantized, output)


def _mean_s(model: Any, samples: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """The mean S of an ONNX model at its own size; PySODMetrics stretches every map."""
    import onnxruntime
    import py_sod_metrics

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    measure = py_sod_metrics.Smeasure()
    for image, mask in samples:
        values = session.run(None, {session.get_inputs()[0].name: image})[0][0, 0]
        if values.min() < 0 or values.max() > 1:  # logits
            values = 1 / (1 + np.exp(-values))
        measure.step(np.rint(values * 255).astype(np.uint8), mask)
    return float(measure.get_results()["sm"])


if __name__ == "__main__":
    tool, _, method = sys.argv[1].partition("-")
    quantize_by = {"onnxruntime": by_onnxruntime, "modelopt": by_modelopt, "nncf": by_nncf}[tool]
    quantize_by(method, sys.argv[2], Path(sys.argv[3]), sys.argv[4])
