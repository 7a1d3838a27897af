"""How far quantizing one layer alone changes the tensors that leave its part of the graph.

One graph measures several layers of a part. It holds the part in float32 and, for each layer, the quantized layer with
a copy of the nodes behind it. So the nodes in front of the layers run once, and only sums of squares leave the graph.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sodeploy.quant.calibration.inspect_graph import inspection_options
from sodeploy.quant.calibration.parts import Part
from sodeploy.quant.emit.fp32_only import rename_captured
from sodeploy.quant.emit.tensorrt import with_fake_quantization
from sodeploy.quant.graph import Network
from sodeploy.quant.planning.plan import Plan
from sodeploy.runtime.onnx_file import reads
from sodeploy.runtime.onnx_memory import share_memory
from sodeploy.runtime.onnx_session import start_session

Changes = dict[str, dict[str, float]]  # layer -> tensor that leaves its part -> sum of the squares of its change

_AT_A_TIME = 16  # layers in one graph


def changes_in(
    part: Part, layers: Sequence[str], network: Network, plan: Plan, state: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], Changes]:
    """The outputs of a part in float32, and the changes by each layer in it.

    Args:
        part: a part of the network.
        layers: names of int8 layers of `plan` in the part, at least one.
        state: the tensors that the part reads, at least.
    """
    outputs: dict[str, np.ndarray] = {}
    changes: Changes = {}
    for first in range(0, len(layers), _AT_A_TIME):
        graph = _PartWithLayers(part, layers[first : first + _AT_A_TIME], network, plan)
        outputs, found = graph.run(state)
        changes |= found
    return outputs, changes


class _PartWithLayers:
    """A part in float32, and beside it the nodes whose results change when one layer is quantized."""

    def __init__(self, part: Part, layers: Sequence[str], network: Network, plan: Plan) -> None:
        self._network = network
        self._part = part
        self._layers = layers
        self._sums: list[tuple[str, str, str]] = []  # output, and the layer and the tensor that it is the change of
        self._model = onnx.ModelProto()
        self._model.CopyFrom(part.model)
        alone = plan.model_copy(update={"layers": {layer: plan.layers[layer] for layer in layers}})
        quantized = self._quantized(with_fake_quantization(network, alone, part.model), layers)
        for layer in layers:
            self._add(layer, quantized[layer])
        self._session = start_session(self._model, share_memory(inspection_options(at_a_time=1)))
        del self._model  # the session has weights of its own

    def run(self, state: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Changes]:
        """The part's outputs in float32, and the changes by each layer.

        Args:
            state: the tensors that exist before the part.
        """
        outputs = [*self._part.outputs, *(output for output, _, _ in self._sums)]
        arrays = self._session.run(outputs, {name: state[name] for name in self._part.inputs})
        found = dict(zip(outputs, map(np.asarray, arrays), strict=True))
        changes: Changes = {layer: {} for layer in self._layers}
        for output, layer, tensor in self._sums:
            changes[layer][tensor] = float(found.pop(output).sum(dtype=np.float64))
        return found, changes

    def _quantized(self, other: onnx.ModelProto, layers: Sequence[str]) -> dict[str, onnx.NodeProto]:
        """The layers as they are in `other`; what they read there is added to the graph."""
        graph = self._model.graph
        made = {name for node in graph.node for name in node.output if name}
        found = {node.name: node for node in other.graph.node if node.name in layers}
        added = [node for node in other.graph.node if made.isdisjoint(node.output)]
        names = {name: f"{name}/of_int8" for node in added for name in node.output}
        read = reads(*added, *found.values())
        for tensor in other.graph.initializer:  # with names of their own: a layer in float32 may read one of the same
            if tensor.name in read:
                names[tensor.name] = f"{tensor.name}/of_int8"
                graph.initializer.add().CopyFrom(tensor)
                graph.initializer[-1].name = names[tensor.name]
        graph.node.extend(_renamed(node, names) for node in added)
        return {layer: _renamed(node, names) for layer, node in found.items()}

    def _add(self, layer: str, quantized: onnx.NodeProto) -> None:
        """Add a quantized layer, the nodes behind it, and the sums of squares of what changes of the part's outputs."""
        graph = self._model.graph
        names: dict[str, str] = {}
        for node in self._part.model.graph.node:
            changed = quantized if node.name == layer else node
            if node.name == layer or not names.keys().isdisjoint(reads(node)):
                names |= {name: f"{layer}/alone/{name}" for name in node.output if name}
                graph.node.append(_renamed(changed, names))
        for tensor in self._part.outputs:
            if tensor in names:
                self._sums.append((self._sum_of_squares(tensor, names[tensor]), layer, tensor))

    def _sum_of_squares(self, tensor: str, changed: str) -> str:
        """Sum up the squares of a change along the last axis: float32 is too short to sum up a whole tensor."""
        graph = self._model.graph

        def node(op: str, *inputs: str, **attributes: int) -> str:
            output = f"{changed}/{op}_{len(graph.node)}"
            graph.node.append(helper.make_node(op, inputs, [output], name=output, **attributes))
            return output

        pair = [changed, tensor]
        if tensor not in self._network.float_tensors:
            pair = [node("Cast", name, to=onnx.TensorProto.FLOAT) for name in pair]
        total = node("ReduceSumSquare", node("Sub", *pair), *self._last_axis(tensor), keepdims=0)
        graph.output.append(helper.make_tensor_value_info(total, onnx.TensorProto.FLOAT, None))
        return total

    def _last_axis(self, tensor: str) -> list[str]:
        if not self._network.has_rank(tensor) or not self._network.shape(tensor):
            return []
        name = "last_axis/of_int8"
        if all(constant.name != name for constant in self._model.graph.initializer):
            self._model.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), name))
        return [name]


def _renamed(node: onnx.NodeProto, names: dict[str, str]) -> onnx.NodeProto:
    """A copy of a node that reads and makes the tensors of these names instead."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    copy.name = f"{node.name}/{copy.output[0]}"
    rename_captured(copy, names)
    return copy
