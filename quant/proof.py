"""The proof of a build: every graph runs on a few images, and its map is compared with the map of the float32 file.

A graph whose map is NaN, constant where the float32 map is not, or far worse than its plan explains, is refused. The
plan explains the noise of a layer: the steps of its input's range and of its weight's scales. Where a map is off, each
layer of the graph is run again by itself in float32, on the very values that it read in the graph, and the difference
is held against that noise. So a layer that lost its bias or its factor is found, and a network that is sensitive to
rounding is not blamed on a layer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from sodeploy.calib_data import Sample
from sodeploy.errors import UserError
from sodeploy.quant.calibration.inspect_graph import (
    as_input,
    images_at_a_time,
    inspection_options,
    opened,
    side_by_side,
)
from sodeploy.quant.emit.rewriter import quantized_weight
from sodeploy.quant.emit.targets import Target
from sodeploy.quant.graph import Network, channel_axis
from sodeploy.quant.int8 import STEPS, UINT8_STEPS, dequantize_weight, fp16_scale
from sodeploy.quant.planning.plan import Plan
from sodeploy.runtime import openvino_session
from sodeploy.runtime.onnx_floats import to_float32
from sodeploy.runtime.onnx_session import start_session
from sodeploy.runtime.processing import to_saliency
from sodeploy.runtime.session import installed_engines, open_session

IMAGES = 4
_LARGE = 512 * 512  # pixels of an input; above, half as many images are run
_HEALTHY_DB = {"fp16": 30.0, "bf16": 15.0, "int8": 15.0}  # of a map; below, the layers are looked at one by one
_WORTHLESS_DB = {"fp16": 10.0, "bf16": 0.0, "int8": 0.0}  # no such graph gets its name, whatever the plan explains
_UNEXPLAINED_DB = 10.0  # more noise than the plan explains
_WORST_LAYER_DB = 20.0  # of a layer by itself; no unexplained noise above matters
_FLOAT_LAYER_DB = {"fp16": 50.0, "bf16": 32.0, "int8": 50.0}  # of a layer in a short float by itself, in these graphs
_WORSE_THAN_SIMULATION_DB = 6.0
_BLOCK = 2**14  # numbers that stay in the first-level cache
_NEGLIGIBLE = 1e-3  # of the float32 map's spread: a map that varies less is constant

_IN_FP32 = "onnxruntime's CPU computes fp16 and bf16 in float32; the simulation shows the roundings of this graph"
_WITHOUT_OPENVINO = "OpenVINO is not installed"


@dataclass(frozen=True)
class Proof:
    """How close the map of a graph is to the float32 map.

    Attributes:
        sqnr_db: variance of the float32 map / mean squared difference, in dB; None where the maps are equal or the
            float32 map is constant.
        largest_difference: of a pixel; maps reach from 0 to 1.
        images: the number of images compared.
        limits: what the run does not show, if anything.
        engine: the runtime or the builder that computed the map.
    """

    sqnr_db: float | None
    largest_difference: float
    images: int
    limits: str | None = None
    engine: str = "onnxruntime"

    def __str__(self) -> str:
        ratio = "no difference that counts" if self.sqnr_db is None else f"{self.sqnr_db:.1f} dB"
        images = "1 image" if self.images == 1 else f"{self.images} images"
        where = "" if self.engine == "onnxruntime" else f" in {self.engine}"
        return f"{ratio} to float32, largest difference {self.largest_difference:.2g}, on {images}{where}"

    def facts(self) -> dict[str, Any]:
        """The fields of a manifest."""
        return {key: value for key, value in asdict(self).items() if value is not None}


class Disproved(Exception):
    """A graph does not compute what it should; the message says what is wrong with it."""


class Prover:
    """Compares graphs with one float32 network on the same images."""

    def __init__(self, file: Path, network: Network, samples: Sequence[Sample]) -> None:
        """
        Args:
            file: the float32 file as it was given, not normalized.
            network: that network as the graphs are made from it.
            samples: images, of which the first few are used.
        """
        contract = network.contract
        count = IMAGES if contract.height * contract.width <= _LARGE else IMAGES // 2
        self._network = network
        self._contract = contract.model_copy(update={"stretch": False})
        self._inputs = [as_input(sample, contract) for sample in samples[:count]]
        self._at_a_time = images_at_a_time(network.model)
        self._reference = self._maps(_run(file, self._at_a_time), "the float32 network", self._at_a_time)

    def prove(self, target: Target, file: Path, plan: Plan) -> tuple[Proof, str | None]:
        """The proof of a graph, and a warning for the user, if it is worse than is usual.

        Args:
            file: holds the graph.

        Raises:
            Disproved: the graph is not fit for use.
        """
        graph: Path | onnx.ModelProto = file
        if target.precision == "bf16":  # which no CPU kernel reads
            graph = onnx.load(file)
            to_float32(graph)
        if target.measured_in != "openvino":
            proof = self._in_onnxruntime(graph)
        elif lacking := _WITHOUT_OPENVINO if "openvino" not in installed_engines() else openvino_session.problem():
            proof = replace(self._in_onnxruntime(graph), limits=f"{lacking}; onnxruntime ran its graph")
        else:
            proof = replace(self.compare(_run_in_openvino(file, target), "it"), engine="openvino")
        if target.engine:
            proof = replace(proof, limits=_IN_FP32)
        if proof.sqnr_db is None or proof.sqnr_db >= _HEALTHY_DB[target.precision]:
            return proof, None
        own = {f"int8.{name}": decisions.weight_steps for name, decisions in plan.targets.items()}
        steps = own.get(target.name, STEPS)
        uint8 = target.name in own
        graph = onnx.load(graph) if isinstance(graph, Path) else graph
        for node, x, wanted, measured in _layers(self._network, graph, self._inputs[0]):
            if measured >= _WORST_LAYER_DB:
                continue
            explained = _FLOAT_LAYER_DB[target.precision]
            if node.name in plan.nodes("int8"):
                explained = _decibels(wanted, _explained(self._network, node, plan, x, steps, uint8))
            if measured < explained - _UNEXPLAINED_DB:
                raise Disproved(
                    f"its map has {proof.sqnr_db:.1f} dB to float32, and layer {node.name} by itself "
                    f"{measured:.1f} dB where the plan explains {explained:.1f} dB"
                )
        if proof.sqnr_db < _WORTHLESS_DB[target.precision]:
            raise Disproved(f"its map has {proof.sqnr_db:.1f} dB to float32: hardly anything of the map is left")
        return proof, (
            f"its map has {proof.sqnr_db:.1f} dB to float32 on {proof.images} images; no layer is worse than planned, "
            "so the network is sensitive to rounding: measure it on your data"
        )

    def _in_onnxruntime(self, graph: Path | onnx.ModelProto) -> Proof:
        return self.compare(_run(graph, self._at_a_time), "it", self._at_a_time)

    def compare(self, run: Callable[[np.ndarray], np.ndarray], what: str, at_a_time: int = 1) -> Proof:
        """The figures of whatever computes maps of the network's inputs.

        Args:
            run: `(N, 3, h, w) float32` -> `(N, 1, h, w)`.
            at_a_time: images that it may run at the same time.

        Raises:
            Disproved: a map is NaN, infinite, or constant where the float32 map is not.
        """
        maps = self._maps(run, what, at_a_time)
        noise = float(np.mean(np.square(maps - self._reference)))
        spread, got = float(self._reference.std()), float(maps.std())
        if spread > 1e-6 and got < _NEGLIGIBLE * spread:
            raise Disproved(f"its map is constant ({maps.mean():.3g}); the float32 map is not")
        known = spread > 1e-6 and noise > 0
        return Proof(
            round(float(10 * np.log10(spread**2 / noise)), 2) if known else None,
            float(f"{np.abs(maps - self._reference).max():.3g}"),
            len(self._inputs),
        )

    def _maps(self, run: Callable[[np.ndarray], np.ndarray], what: str, at_a_time: int) -> np.ndarray:
        """`(images, h, w) float64`"""
        found = side_by_side(run, self._inputs, at_a_time) if at_a_time > 1 else map(run, self._inputs)
        try:
            maps = [to_saliency(np.asarray(batch, np.float32)[0, 0], self._contract) for batch in found]
            return np.stack(maps).astype(np.float64)
        except UserError:
            raise Disproved(f"{what} gives NaN or infinite values") from None


def worse_than_simulated(engine: Proof, simulation: Proof) -> bool:
    """Whether a graph or an engine loses clearly more than the simulation of its roundings does."""
    if engine.sqnr_db is None or simulation.sqnr_db is None:
        return False
    return engine.sqnr_db < min(simulation.sqnr_db, 30.0) - _WORSE_THAN_SIMULATION_DB


def prove_engine(path: Path, prover: Prover, graph: Proof) -> Proof:
    """Run an engine on the images of the proof.

    Args:
        graph: the proof of the ONNX graph that the engine was built from.

    Raises:
        Disproved: its maps are NaN or constant, or clearly worse than those of its graph.
        UserError: it cannot run here.
    """
    with open_session(path) as session:
        proof = replace(prover.compare(session.infer, "the engine"), engine="the engine")
    if worse_than_simulated(proof, graph):
        raise Disproved(f"the engine's map has {proof.sqnr_db:.1f} dB to float32, its graph's {graph.sqnr_db:.1f} dB")
    return proof


def _run(graph: onnx.ModelProto | Path, at_a_time: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    """The first output of a graph in onnxruntime."""
    session = start_session(graph, inspection_options(at_a_time=at_a_time))
    name = session.get_inputs()[0].name
    return lambda image: np.asarray(session.run(None, {name: image})[0])


def _run_in_openvino(file: Path, target: Target) -> Callable[[np.ndarray], np.ndarray]:
    """As `_run`, in OpenVINO; a graph that it does not run is disproved."""
    try:
        run = openvino_session.runner_of(file, Path(f"the {target.name} graph"))
    except UserError as error:
        raise Disproved(str(error)) from None

    def checked(image: np.ndarray) -> np.ndarray:
        try:
            return run(image)
        except UserError as error:
            raise Disproved(str(error)) from None

    return checked


def _layers(
    network: Network, graph: onnx.ModelProto, image: np.ndarray
) -> Iterator[tuple[onnx.NodeProto, np.ndarray, np.ndarray, float]]:
    """(layer, the values that it reads in the graph, its float32 result of these values, the graph's dB to that result)

    For every layer with weights. The graph gets other outputs.
    """
    made = {name for node in graph.graph.node for name in node.output} | {network.input}
    nodes = [node for node in network.nodes if network.is_weighted(node) and node.input[0] in network.float_tensors]
    nodes = [node for node in nodes if {node.input[0], network.scope(node)} <= made]
    names = list(dict.fromkeys(name for node in nodes for name in (node.input[0], network.scope(node))))
    del graph.graph.output[:]
    for name in names:
        out = f"{name}/looked_at"
        graph.graph.node.append(helper.make_node("Cast", [name], [out], to=TensorProto.FLOAT))
        graph.graph.output.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, None))
    values = dict(zip(names, opened(graph)(image), strict=True))
    for node in nodes:
        x, y = values[node.input[0]], values[network.scope(node)]
        wanted = opened(_alone(network, node))(x)[0]
        yield node, x, wanted, _decibels(wanted, _mean_square(y - wanted))


def _alone(network: Network, node: onnx.NodeProto) -> onnx.ModelProto:
    """A float32 model of one layer and the ReLU that follows it."""
    nodes = [node, *(one for one in network.consumers[node.output[0]] if network.scope(node) in one.output)]
    read = set(node.input[1:])
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(network.scope(node), TensorProto.FLOAT, None)],
        [tensor for tensor in network.model.graph.initializer if tensor.name in read],
    )
    return helper.make_model(graph, opset_imports=network.model.opset_import, ir_version=network.model.ir_version)


def _explained(
    network: Network, node: onnx.NodeProto, plan: Plan, x: np.ndarray, weight_steps: int, uint8: bool
) -> float:
    """The mean squared error that rounding the input and the weight of an int8 layer gives its output.

    Rounding errors of a layer's products are taken as independent: their variances add up.
    """
    shared = plan.range_of()[node.input[0]]
    if uint8:
        scale, zero = (float(value) for value in shared.uint8_parameters)
        rounded = np.clip(np.rint(x / scale), -zero, UINT8_STEPS - zero) * scale
    else:
        scale, shift = float(fp16_scale(shared.amax / STEPS)), shared.shift or 0.0
        rounded = np.clip(np.rint((x - shift) / scale), -STEPS, STEPS) * scale + shift
    weight, scales, axis = quantized_weight(network, node, plan.layers[node.name])
    real = dequantize_weight(weight, scales, axis)
    outputs = real.shape[channel_axis(node)]
    taps = real.size / outputs
    steps = scales.astype(np.float64) * (STEPS / weight_steps)
    by_input = float(np.mean(np.square(rounded - x))) * float(np.square(real).sum()) / outputs
    by_weight = float(np.mean(np.square(steps))) / 12 * taps * float(np.mean(np.square(x)))
    return by_input + by_weight


def _decibels(signal: np.ndarray, noise: float) -> float:
    return 10 * float(np.log10(max(_mean_square(signal), 1e-30) / max(noise, 1e-30)))


def _mean_square(values: np.ndarray) -> float:
    """In float64, of which no whole copy is made."""
    flat = values.reshape(-1)
    blocks = (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))
    return sum(float(np.square(block, dtype=np.float64).sum()) for block in blocks) / flat.size
