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
from sodeploy.runtime.openvino_session import OpenVinoSession
from sodeploy.runtime.processing import preprocess
from tests.zoo.kinds import Kind
from tests.zoo.network import SIZE

TARGETS = ("fp16.sim", "int8.trt", "int8.sim", "int8.cpu", "int8.openvino")
LEAST_DB = {name: 35.0 if name == "fp16.sim" else 20.0 for name in TARGETS}
_STATISTICS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Measured:
    """One network's figures.

    Attributes:
        decibels: target -> variance of the original's maps / mean squared difference, in dB.
        reasons: in the words of the plan, why nodes are above int8 and which layers read an input that int8 leaves
            little of.
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
    decibels = {name: _decibels(wanted, _maps_of(name, built.graphs[name], inputs)) for name in TARGETS}
    assert built.plan is not None
    plan = read_plan(built.plan)
    layers = plan.layers.values()
    reasons = dict.fromkeys(f"{layer.op}: {layer.reason}" for layer in layers if _explains(layer))
    return Measured(decibels, [*reasons, *_few_steps(plan, decibels["int8.cpu"])])


def _few_steps(plan: Plan, decibels: float) -> list[str]:
    """The reason of a graph for any x86 CPU that is low: its weights have half of the steps."""
    steps = plan.target("cpu").weight_steps
    low = decibels < LEAST_DB["int8.cpu"] and steps < STEPS
    return [f"int8.cpu: weights have {steps} steps on each side of zero, for CPUs without VNNI"] if low else []


def _explains(layer: Layer) -> bool:
    """Whether the layer's reason says more than in every network: int8 for features, float for the head."""
    return layer.reason != "features" and not layer.reason.startswith(("head:", "its sum is read in int8"))


def _maps_of(target: str, file: Path, inputs: list[np.ndarray]) -> np.ndarray:
    """The maps of a built graph: that for OpenVINO in OpenVINO, the others in onnxruntime."""
    if target != "int8.openvino":
        return _maps(file, inputs)
    with OpenVinoSession(file, threads=1, cache=False) as session:
        return np.concatenate([session.infer(image) for image in inputs]).astype(np.float64)


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
