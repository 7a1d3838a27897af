"""The graphs that a build writes. A graph for another engine is a file beside this one and an entry in `TARGETS`."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import onnx

from sodeploy.quant.emit.bf16 import emit_bf16, emit_bf16_simulation
from sodeploy.quant.emit.checks import cpu_warnings, openvino_warnings, tensorrt_warnings
from sodeploy.quant.emit.cpu import emit_cpu, emit_openvino
from sodeploy.quant.emit.float_types import FP16_ALONE, FloatName
from sodeploy.quant.emit.fp16 import emit_fp16, emit_fp16_simulation
from sodeploy.quant.emit.rewriter import GraphPrecision
from sodeploy.quant.emit.tensorrt import emit_simulation, emit_tensorrt
from sodeploy.quant.graph import Network
from sodeploy.quant.planning.plan import Plan
from sodeploy.runtime.session import EngineName


def _nothing_to_check(graph: onnx.ModelProto, file: Path, path: Path) -> list[str]:
    return []


@dataclass(frozen=True)
class Target:
    """One graph that a plan is written as.

    Attributes:
        name: its file is NETWORK.`name`.onnx.
        precision: the lowest precision in it. An int8 graph is written only where the plan has ranges.
        runs_on: the engines that take it, or its purpose, for people.
        emit: makes the graph.
        check: (graph, the file that holds it, the name that the file will get) -> warnings for the user, one line each;
            raises UserError for a graph that the engine would refuse.
        measured_in: the engine in which `runtime/bench.py` measures this graph on a CPU; None: it measures the engine
            that is built from it.
        engine: whether TensorRT or TensorRT-RTX builds an engine of it, NETWORK.`precision`.engine.
    """

    name: str
    precision: GraphPrecision
    runs_on: str
    emit: Callable[[Network, Plan], onnx.ModelProto]
    check: Callable[[onnx.ModelProto, Path, Path], list[str]] = _nothing_to_check
    measured_in: EngineName | None = None
    engine: bool = False

    @property
    def suffix(self) -> str:
        """How the name of its file ends."""
        return f".{self.name}.onnx"


TARGETS = (
    Target("fp16", "fp16", "TensorRT, TensorRT-RTX, onnxruntime on a GPU", emit_fp16, engine=True),
    Target(
        "fp16.sim",
        "fp16",
        "any CPU, to measure fp16's accuracy",
        emit_fp16_simulation,
        measured_in="onnxruntime",
    ),
    Target("bf16", "bf16", "TensorRT, TensorRT-RTX", emit_bf16, engine=True),
    Target(
        "bf16.sim",
        "bf16",
        "any CPU, to measure bf16's accuracy",
        emit_bf16_simulation,
        measured_in="onnxruntime",
    ),
    Target("int8.trt", "int8", "TensorRT, TensorRT-RTX", emit_tensorrt, tensorrt_warnings, engine=True),
    Target("int8.cpu", "int8", "onnxruntime on a CPU", emit_cpu, cpu_warnings, measured_in="onnxruntime"),
    Target("int8.openvino", "int8", "OpenVINO on a CPU", emit_openvino, openvino_warnings, measured_in="openvino"),
    Target(
        "int8.sim", "int8", "any CPU, to measure an int8 engine's accuracy", emit_simulation, measured_in="onnxruntime"
    ),
)


def targets_of(plan: Plan, floats: Collection[FloatName] = FP16_ALONE) -> list[Target]:
    """The graphs to write of a plan: those of the float precisions asked for, and int8 where the plan has ranges."""
    wanted = {*floats, "int8"} if plan.calibration is not None else {*floats}
    return [target for target in TARGETS if target.precision in wanted]
