"""The calib.cache of TensorRT <= 10: the file of an int8 engine's ranges, before ranges became part of the graph.

    python quant/build_engine.py out/u2netp.onnx --int8 --calib-cache old/calib.cache
    python quant/calib_cache.py out/u2netp.onnx out/u2netp.plan.json out/u2netp.calib.cache --tensorrt 8.6.1

The first command makes a plan from such a file. The second writes a plan's ranges as one, for
`trtexec --int8 --calib=FILE` or for your own calibrator. The file is text: a line `TRT-8601-EntropyCalibration2`, then
a line per tensor with its scale, amax / 127, as the eight hexadecimal digits of a big-endian float32:
`input: 3c008912`.
"""

import re
import struct
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from sodeploy import command_line, terminal
from sodeploy.artifacts import check_apart, check_output, require_file, write_text
from sodeploy.errors import UserError
from sodeploy.quant.graph import PASSING, WEIGHTED, Network, load_network
from sodeploy.quant.int8 import SMALLEST_SCALE, STEPS
from sodeploy.quant.planning.decide import decide
from sodeploy.quant.planning.fp16_range import beyond_fp16
from sodeploy.quant.planning.plan import Calibration, Layer, Plan, Range, load_plan, short
from sodeploy.quant.planning.ranges import sharing_a_range
from sodeploy.quant.planning.targets import decide_targets

_HEADER = re.compile(r"TRT-\w+-(Entropy|MinMax|Legacy)Calibration2?")
_LINE = re.compile(r"(?P<tensor>.+?)\s*:\s*(?P<scale>[0-9a-fA-F]{8})")
_INTERNAL = "(Unnamed Layer*"  # TensorRT's own tensors; no ONNX file has them
_UNCORRECTED = "features; bias not corrected: a calib.cache holds no channel means"

_NEVER_NEGATIVE = ("Relu", "Sigmoid", "Softmax", "Abs", "Exp", "Sqrt", "HardSigmoid", "Softplus")
_KEEPING_SIGN = (*PASSING, "AveragePool", "GlobalAveragePool", "Concat", "Add", "Mul", "Max")


def read_cache(path: str | Path) -> dict[str, float]:
    """Tensor -> amax, the magnitude at which TensorRT clips it. Scales that are not finite are left out with a warning.

    Raises:
        UserError: the file is missing, or no calib.cache (the line is named).
    """
    path = require_file(path, "give the calib.cache that TensorRT wrote")
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError:
        lines = []
    if not lines or not _HEADER.fullmatch(lines[0].strip()):
        raise UserError(
            f"{path} is no calib.cache of TensorRT: its first line is not like TRT-8601-EntropyCalibration2"
        )
    found = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise UserError(
                f"{path}, line {number}: {line[:60]!r} is not 'tensor: 8 hexadecimal digits'; mend the line"
            )
        (scale,) = struct.unpack(">f", bytes.fromhex(match["scale"]))
        if np.isfinite(scale) and scale >= 0:
            found[match["tensor"]] = scale * STEPS
        else:
            terminal.warn(f"{path}: tensor {match['tensor']} has scale {scale}, which is left out")
    return found


def plan_from_cache(network: Network, path: str | Path) -> Plan:
    """The plan of `network` with the ranges of a calib.cache.

    Tensors that must share a scale get the largest of their ranges. A layer whose tensors have no range in the file is
    left in fp16. The file has no channel means and no maxima, so biases are not corrected, and values that overflow
    fp16 go unnoticed.

    Raises:
        UserError: the file is no calib.cache, or of another network: no int8 layer could use one of its ranges.
    """
    amax = read_cache(path)
    unknown = [name for name in amax if name not in network.float_tensors and not name.startswith(_INTERNAL)]
    if unknown:
        terminal.warn(f"{path}: {len(unknown)} of {len(amax)} tensors are not in {network.path}: {_some(unknown)}")

    in_float: dict[str, str] = {}
    while True:
        layers = decide(network, None, beyond_fp16(network, None), in_float)
        groups = sharing_a_range(network, layers)
        without = {tensor: group for group in groups if not amax.keys() & set(group) for tensor in group}
        missing = _reading(network, layers, without)
        if not missing:
            break
        in_float |= missing
    if not groups:
        raise UserError(
            f"{path} has no range for any int8 layer of {network.path}, so it was made for another network or export; "
            "calibrate with --calib DATA instead"
        )
    if in_float:
        terminal.warn(f"{path}: {len(in_float)} layers without a range in it stay in fp16: {_some(list(in_float))}")
    for layer in layers.values():
        if layer.weight_scales is not None:
            layer.reason = _UNCORRECTED
    positive = _never_negative(network)
    ranges = [
        Range(
            tensors=group,
            amax=short(max(amax[tensor] for tensor in group if tensor in amax)),
            signed=not positive.issuperset(group),
        )
        for group in groups
    ]
    return Plan(
        network=network.contract.network,
        onnx=network.path.name,
        onnx_sha256=network.digest,
        calibration=Calibration(method="calib.cache", images={}),
        ranges=ranges,
        layers=layers,
        targets=decide_targets(network, layers, ranges),
    )


def cache_of(network: Network, plan: Plan, tensorrt: str) -> str:
    """The text of a calib.cache with the plan's ranges.

    TensorRT also asks for the range of a layer's result in front of its ReLU. Only values above zero leave the ReLU, so
    the range of the ReLU's result serves both. The file has no tensors of layers that the plan leaves in float, so they
    stay in float in TensorRT as well.

    A range that is shifted in the plan loses its shift and becomes wider.

    Args:
        tensorrt: version such as "8.6.1"; TensorRT 10 refuses a file of another version.

    Raises:
        UserError: this version reads no calib.cache.
    """
    amax = {tensor: shared.reach for tensor, shared in plan.range_of().items()}
    for node in network.nodes:
        before = network.producer.get(node.input[0]) if node.op_type == "Relu" else None
        if before is not None and before.op_type in (*WEIGHTED, "Add") and node.output[0] in amax:
            amax.setdefault(before.output[0], amax[node.output[0]])
    lines = [f"TRT-{_version_number(tensorrt)}-EntropyCalibration2"]
    for tensor, value in amax.items():
        lines.append(f"{tensor}: {struct.pack('>f', max(value / STEPS, SMALLEST_SCALE)).hex()}")
    return "\n".join(lines) + "\n"


def _version_number(version: str) -> int:
    """NV_TENSORRT_VERSION: 8601 for 8.6.1, and since TensorRT 10 in another form, 100300 for 10.3.0."""
    match = re.fullmatch(r"(\d+)\.(\d+)(?:\.(\d+))?(?:\.\d+)*", version)
    major, minor, patch = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    if not 5 <= major <= 10:
        raise UserError(f"--tensorrt {version}: give a version as 8.6.1 or 10.3.0; none after 10 reads a calib.cache")
    return major * 10000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch


def _reading(network: Network, layers: dict[str, Layer], without: dict[str, list[str]]) -> dict[str, str]:
    """Node -> reason, for int8 layers that read or write a tensor of `without`, the tensors without a range."""
    return {
        node.name: f"the calib.cache has no range for {tensor}"
        for node in network.nodes
        if node.name in layers and layers[node.name].precision == "int8"
        for tensor in network.stored(node)
        if tensor in without
    }


def _never_negative(network: Network) -> set[str]:
    """The tensors that no image can make negative, judged by the operators that make them."""
    found: set[str] = set()
    for node in network.nodes:
        inputs = [name for name in node.input if name in network.float_tensors]
        keeps = node.op_type in _KEEPING_SIGN and len(inputs) > 0 and found.issuperset(inputs)
        constants_positive = all(
            np.all(network.constants[name] >= 0) for name in node.input if name in network.constants
        )
        if node.op_type in _NEVER_NEGATIVE or (keeps and constants_positive):
            found.update(node.output)
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def main(
    model: Annotated[Path, typer.Argument(help="the float32 ONNX that the plan is for")],
    plan: Annotated[Path, typer.Argument(help="its plan")],
    output: Annotated[Path, typer.Argument(help="the calib.cache to write")],
    tensorrt: Annotated[str, typer.Option(help="version that will read it, such as 8.6.1")],
) -> None:
    """Write a plan's ranges as a calib.cache of TensorRT <= 10."""
    check_output(output)
    check_apart([output], [model, plan])
    network = load_network(model)
    text = cache_of(network, load_plan(plan, network), tensorrt)
    write_text(output, text)
    terminal.note(
        f"wrote {output}: {len(text.splitlines()) - 1} ranges; an implicit engine takes only these from the plan, no "
        "corrected biases, so its accuracy differs from the plan's graphs"
    )


if __name__ == "__main__":
    command_line.run(main)
