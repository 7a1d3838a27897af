"""The error of the map when one layer alone is quantized, by running only the part of the graph that changes.

The graph is cut into parts. The float32 network runs once and keeps the tensors that pass from part to part. For each
layer its own part runs again, with the layer quantized.

Exact: the parts behind it that read something changed run again too, several as one graph.

Estimated: that is done for one layer only, the reference, of those in a part that change the same tensors that leave
the part: the one that changes them most. The squared error of another layer is the reference's, times the ratio of both
layers' squared changes of these tensors. The layers that then look costliest are measured exactly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sodeploy import terminal
from sodeploy.calib_data import Sample
from sodeploy.errors import UserError
from sodeploy.quant.calibration.inspect_graph import as_input, inspection_options, side_by_side
from sodeploy.quant.calibration.parts import Part, joined, split
from sodeploy.quant.emit.tensorrt import with_fake_quantization
from sodeploy.quant.graph import Network
from sodeploy.quant.layer_changes import Changes, changes_in
from sodeploy.quant.planning.plan import Plan
from sodeploy.runtime.onnx_memory import share_memory
from sodeploy.runtime.onnx_session import start_session
from sodeploy.runtime.processing import to_saliency

COSTLIEST = 5  # layers whose error is never an estimate
_PARTS = 30  # more of them leave less to run again before the next part begins, and each takes a session
_TOGETHER = 4  # parts that run again as one graph: at its ends onnxruntime lays the tensors out anew

_Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class MapError:
    """Mean squared difference of the map, in [0, 1], to the float32 map, when one layer alone is quantized.

    Where the map is NaN or infinite each pixel counts as wrong by 1.

    Attributes:
        squares: one per image.
        exact: False for an estimate.
    """

    squares: Sequence[float]
    exact: bool

    def mean(self) -> float:
        """Over the images."""
        return float(np.mean(self.squares))


def exact_errors(network: Network, plan: Plan, layers: Sequence[str], images: Sequence[Sample]) -> dict[str, MapError]:
    """The error of each layer.

    Args:
        layers: names of int8 layers of `plan`.

    Raises:
        UserError: the float32 map is NaN or infinite.
    """
    return _exact(_Body(network, plan, layers), layers, images)


def estimated_errors(
    network: Network, plan: Plan, layers: Sequence[str], images: Sequence[Sample]
) -> dict[str, MapError]:
    """As `exact_errors`, in less of its time: exact for the `COSTLIEST` layers, estimated for most others."""
    body = _Body(network, plan, layers)
    squares: dict[str, list[float]] = {layer: [] for layer in layers}
    references: dict[str, str] = {}
    for image in terminal.progress(images, "quantizing each layer alone"):
        run = _Run(body, image, layers)
        changes = run.changes
        references = references or _references(body, changes)  # the same in all images, so that they are exact
        errors = run.errors(list(dict.fromkeys(references.values())))
        for layer, reference in references.items():
            change, of_reference = (sum(changes[name].values()) for name in (layer, reference))
            known = change == 0 or (0 < of_reference < np.inf and change < np.inf)
            share = change / of_reference if change and known else 0.0
            squares[layer].append(errors[reference] * share if known else run.error(layer))
    measured = set(references.values())
    found = {layer: MapError(squares[layer], layer in measured) for layer in layers}
    while left := [layer for layer in _costliest(found) if not found[layer].exact]:
        found |= _exact(body, left, images)
    return found


def _exact(body: "_Body", layers: Sequence[str], images: Sequence[Sample]) -> dict[str, MapError]:
    squares: dict[str, list[float]] = {layer: [] for layer in layers}
    for image in terminal.progress(images, "quantizing one layer, all behind it in float"):
        run = _Run(body, image)
        for layer, square in run.errors(layers).items():
            squares[layer].append(square)
    return {layer: MapError(of_images, exact=True) for layer, of_images in squares.items()}


def _references(body: "_Body", changes: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Layer -> the layer that changes most, of those in its part that change the same tensors."""
    alike: dict[tuple[int, frozenset[str]], list[str]] = {}
    for layer, squares in changes.items():
        changed = frozenset(name for name, square in squares.items() if square)
        alike.setdefault((body.part_of[layer], changed), []).append(layer)
    return {
        layer: max(group, key=lambda one: sum(changes[one].values())) for group in alike.values() for layer in group
    }


def _costliest(errors: Mapping[str, MapError]) -> list[str]:
    return sorted(errors, key=lambda layer: -errors[layer].mean())[:COSTLIEST]


class _Body:
    """The float32 network in parts, any of which can run again with a layer quantized."""

    def __init__(self, network: Network, plan: Plan, layers: Sequence[str]) -> None:
        self.network = network
        self.map = network.model.graph.output[0].name
        self.plan = plan
        made = {node.name: node.output[0] for node in network.nodes if node.name in set(layers)}
        total = sum(4 * int(np.prod([size or 1 for size in network.shape(name)])) for name in made.values())
        parts = split(network.model, [*made.values(), self.map], max(1, total // _PARTS))
        self.parts = [joined([parts.pop(0)], [self.map]) for _ in range(len(parts))]
        self.part_of = {node.name: index for index, part in enumerate(self.parts) for node in part.model.graph.node}
        self.sections = [
            _Started(self._joined(first, first + _TOGETHER)) for first in range(0, len(self.parts), _TOGETHER)
        ]

    def _joined(self, first: int, end: int) -> Part:
        return joined(self.parts[first:end], [self.map])

    def with_layer(self, layer: str, state: _Tensors) -> _Tensors:
        """The tensors that leave the section of a layer when the layer is quantized.

        Args:
            state: the tensors that exist before the layer's part.
        """
        index = self.part_of[layer]
        part = self._joined(index, (index // _TOGETHER + 1) * _TOGETHER)
        alone = self.plan.model_copy(update={"layers": {layer: self.plan.layers[layer]}})
        part = replace(part, model=with_fake_quantization(self.network, alone, part.model))
        return _Started(part).run(state)


class _Run:
    """One image in the float32 network."""

    def __init__(self, body: _Body, image: Sample, layers: Sequence[str] = ()) -> None:
        """Run the network.

        Args:
            layers: those that `changes` will hold.
        """
        self._body = body
        self._states: list[_Tensors] = [{body.network.input: as_input(image, body.network.contract)}]
        self.changes: Changes = {}
        for index, part in enumerate(body.parts):
            state = self._states[-1]
            inside = [layer for layer in layers if body.part_of[layer] == index]
            if inside:
                made, changes = changes_in(part, inside, body.network, body.plan, state)
                self.changes |= changes
            else:
                made = _Started(part, at_a_time=1).run(state)
            alive = state | made
            self._states.append(
                {name: array for name, array in alive.items() if name in part.read_later or name == body.map}
            )
        self._reference = self._saliency(self._states[-1])

    def errors(self, layers: Sequence[str]) -> dict[str, float]:
        """Layer -> its `error`."""
        return dict(zip(layers, side_by_side(self.error, layers), strict=True))

    def error(self, layer: str) -> float:
        """The mean squared difference of the map."""
        body = self._body
        index = body.part_of[layer]
        changed = body.with_layer(layer, self._states[index])
        behind = zip(body.sections, self._states[:-1:_TOGETHER], strict=True)
        for section, state in list(behind)[index // _TOGETHER + 1 :]:
            if not changed.keys().isdisjoint(section.inputs):
                changed |= section.run(state | changed)
        try:
            return float(np.square(self._saliency(self._states[-1] | changed) - self._reference).mean())
        except UserError:
            return 1.0

    def _saliency(self, tensors: _Tensors) -> np.ndarray:
        return to_saliency(tensors[self._body.map][0, 0], self._body.network.contract)


class _Started:
    """A part whose model was handed to onnxruntime."""

    def __init__(self, part: Part, at_a_time: int | None = None) -> None:
        """`at_a_time` is as of `side_by_side`."""
        self.inputs = part.inputs
        self._outputs = part.outputs
        self._session = start_session(part.model, share_memory(inspection_options(at_a_time=at_a_time)))

    def run(self, tensors: Mapping[str, np.ndarray]) -> _Tensors:
        """The outputs.

        Args:
            tensors: the inputs, and any others.
        """
        arrays = self._session.run(self._outputs, {name: tensors[name] for name in self.inputs})
        return {name: np.asarray(array) for name, array in zip(self._outputs, arrays, strict=True)}
