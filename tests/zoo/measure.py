"""Adopts and builds a network of the zoo, and says how close each graph comes to the original file."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from sodeploy.calib_data import open_dataset
from sodeploy.export.adopt import adopt
from sodeploy.export.foreign import Choices
from sodeploy.quant.build_engine import build
from sodeploy.quant.int8 import STEPS
from sodeploy.quant.planning.plan import Layer, Plan, read_plan
from sodeploy.quant.sources import Images
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.processing import preprocess
from tests.zoo.kinds import Kind
from tests.zoo.network import SIZE

TARGETS = ("fp16.sim", "int8.trt", "int8.sim", "int8.cpu")
LEAST_DB = {"fp16.sim": 35.0, "int8.trt": 20.0, "int8.sim": 20.0, "int8.cpu": 13.0}
LOW_RANGE_DB = 15.0  # that a range leaves of its tensors, as the plan predicts
_STATISTICS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Measured:
    """One network's figures.

    Attributes:
        decibels: target -> variance of the original's maps / mean squared difference, in dB.
        reasons: why nodes are above int8, in the words of the plan, and ranges that lose much by the plan's prediction.
    """

    decibels: dict[str, float]
    reasons: list[str] = field(default_factory=list)

    @property
    def low(self) -> list[str]:
        """Targets below the least that a healthy network reaches."""
        return [name for name, value in self.decibels.items() if not value >= LEAST_DB[name]]


def measure(kind: Kind, folder: Path) -> Measured:
    """Write, adopt and build a network, and run its graphs on images that it was not calibrated on."""
    file = folder / "original.onnx"
    onnx.save(kind.network(), file)
    adopted = folder / "adopted.onnx"
    adopt(file, adopted, {"network": "zoo", **_STATISTICS}, Choices(size=(SIZE, SIZE)))
    built = build(adopted, folder, Images(open_dataset(f"synthetic:calib:8:{SIZE}", masks=False)), engines=False)
    contract = Contract(network="zoo", height=SIZE, width=SIZE, **_STATISTICS)
    samples = open_dataset(f"synthetic:eval:4:{SIZE}", masks=False)
    inputs = [preprocess(sample.image(), contract)[None] for sample in samples]
    wanted = _maps(file, inputs, plain=True)
    decibels = {name: _decibels(wanted, _maps(built.graphs[name], inputs)) for name in TARGETS}
    assert built.plan is not None
    plan = read_plan(built.plan)
    layers = plan.layers.values()
    reasons = dict.fromkeys(
        f"{layer.op}: {layer.reason}" for layer in layers if layer.precision != "int8" and not _is_head(layer)
    )
    clipped = [
        f"{plan.calibration.method if plan.calibration else ''} clips {shared.tensors[0]}: {shared.decibels} dB"
        for shared in plan.ranges
        if shared.decibels is not None and shared.decibels < LOW_RANGE_DB
    ]
    found = [*reasons, *clipped]
    return Measured(decibels, found or _few_steps(plan, decibels["int8.cpu"]))


def _few_steps(plan: Plan, decibels: float) -> list[str]:
    """The reason of a graph for any x86 CPU that is low: its weights have half of the steps."""
    steps = plan.target("cpu").weight_steps
    low = decibels < LEAST_DB["int8.cpu"] and steps < STEPS
    return [f"int8.cpu: weights have {steps} steps on each side of zero, for CPUs without VNNI"] if low else []


def _is_head(layer: Layer) -> bool:
    """Whether the layer is in float because it makes the map, which is so in every network and explains nothing."""
    return layer.reason.startswith("head:")


def _maps(file: Path, inputs: list[np.ndarray], plain: bool = False) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        str(file), options, providers=["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
    )
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: image})[0] for image in inputs]).astype(np.float64)


def _decibels(wanted: np.ndarray, got: np.ndarray) -> float:
    noise = float(np.mean(np.square(wanted - got)))
    return round(float(10 * np.log10(wanted.var() / max(noise, 1e-20))), 1)
