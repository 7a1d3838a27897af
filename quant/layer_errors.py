"""The error of the map when one layer alone is quantized, by running only the part of the graph that changes.

The graph is cut into parts. The float32 network runs once and keeps the tensors that pass from part to part. For each
layer its own part runs again, with the layer quantized, and then the parts behind it that read something changed.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sodeploy.calib_data import Sample
from sodeploy.errors import UserError
from sodeploy.quant.calibration.inspect_graph import as_input, inspection_options, side_by_side
from sodeploy.quant.calibration.parts import Part, split
from sodeploy.quant.emit.tensorrt import with_fake_quantization
from sodeploy.quant.graph import Network
from sodeploy.quant.planning.plan import Plan
from sodeploy.runtime.onnx_session import start_session
from sodeploy.runtime.processing import to_saliency

if TYPE_CHECKING:
    import onnxruntime

_PARTS = 30  # more of them leave less to run again before the next part begins, and each takes a session

_Tensors = dict[str, np.ndarray]


def layer_errors(
    network: Network, plan: Plan, layers: Sequence[str], images: Sequence[Sample]
) -> Iterator[tuple[str, float]]:
    """For each image and each layer: (layer, mean squared difference of the map, in [0, 1], to the float32 map)

    Where the map is NaN or infinite each pixel counts as wrong by 1.

    Args:
        layers: names of int8 layers of `plan`.

    Raises:
        UserError: the float32 map is NaN or infinite.
    """
    body = _Body(network, layers)
    for sample in images:
        states, reference = body.run(as_input(sample, network.contract))

        def error(layer: str, states: Sequence[_Tensors] = states, reference: np.ndarray = reference) -> float:
            output = body.with_layer(plan, layer, states)
            try:
                return float(np.square(to_saliency(output, network.contract) - reference).mean())
            except UserError:
                return 1.0

        yield from zip(layers, side_by_side(error, layers), strict=True)


class _Body:
    """The float32 network in parts, any of which can run again with a layer quantized."""

    def __init__(self, network: Network, layers: Sequence[str]) -> None:
        self._network = network
        self._map = network.model.graph.output[0].name
        made = {node.name: node.output[0] for node in network.nodes if node.name in set(layers)}
        total = sum(4 * int(np.prod([size or 1 for size in network.shape(name)])) for name in made.values())
        parts = split(network.model, [*made.values(), self._map], max(1, total // _PARTS))
        self._parts = [self._passing_on(part) for part in parts]
        self._part_of = {node.name: index for index, part in enumerate(self._parts) for node in part.model.graph.node}
        self._sessions = [start_session(part.model, inspection_options()) for part in self._parts]

    def _passing_on(self, part: Part) -> Part:
        """The part with no other outputs than later parts read, and the map."""
        outputs = [name for name in part.outputs if name in part.read_later or name == self._map]
        model = copy.deepcopy(part.model)
        kept = [value for value in model.graph.output if value.name in outputs]
        del model.graph.output[:]
        model.graph.output.extend(kept)
        return Part(model, part.inputs, outputs, part.read_later)

    def run(self, image: np.ndarray) -> tuple[list[_Tensors], np.ndarray]:
        """The tensors that exist before each part and are still read, and the map, `(h, w)`."""
        states = [{self._network.input: image}]
        for part, session in zip(self._parts, self._sessions, strict=True):
            alive = states[-1] | _results(part, session, states[-1])
            states.append(
                {name: array for name, array in alive.items() if name in part.read_later or name == self._map}
            )
        return states, to_saliency(states[-1][self._map][0, 0], self._network.contract)

    def with_layer(self, plan: Plan, layer: str, states: Sequence[_Tensors]) -> np.ndarray:
        """The network's output, `(h, w)`, with one layer quantized."""
        first = self._part_of[layer]
        alone = plan.model_copy(update={"layers": {layer: plan.layers[layer]}})
        model = with_fake_quantization(self._network, alone, self._parts[first].model)
        changed = _results(self._parts[first], start_session(model, inspection_options()), states[first])
        for part, session, state in list(zip(self._parts, self._sessions, states[:-1], strict=True))[first + 1 :]:
            if not changed.keys().isdisjoint(part.inputs):
                changed |= _results(part, session, state | changed)
        return changed.get(self._map, states[-1][self._map])[0, 0]


def _results(part: Part, session: "onnxruntime.InferenceSession", tensors: _Tensors) -> _Tensors:
    arrays = session.run(part.outputs, {name: tensors[name] for name in part.inputs})
    return {name: np.asarray(array) for name, array in zip(part.outputs, arrays, strict=True)}
