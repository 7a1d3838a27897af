"""A graph that runs in parts, one after the other, so that many of its tensors can be read without holding them all."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx

from sodeploy.quant.calibration.blocked import in_blocks, start_unordered
from sodeploy.quant.calibration.inspect_graph import images_at_a_time, inspection_options, tensor_bytes

if TYPE_CHECKING:
    import onnxruntime

PART_BYTES = 2**28  # for each image that is on its way


@dataclass(frozen=True)
class Part:
    """Consecutive nodes of a graph.

    Attributes:
        model: a graph of these nodes alone.
        inputs: tensors from before the part that it reads.
        outputs: wanted tensors of the part, and those that later parts read.
        read_later: every tensor that later parts read, whichever part made it.
    """

    model: onnx.ModelProto
    inputs: Sequence[str]
    outputs: Sequence[str]
    read_later: Collection[str]


class _Started(NamedTuple):
    """A part whose model was handed to onnxruntime; the other fields are as in `Part`."""

    session: "onnxruntime.InferenceSession"
    inputs: Sequence[str]
    outputs: Sequence[str]
    read_later: Collection[str]
    blocked: Mapping[str, str]  # of `start_unordered`


class GraphInParts:
    """Runs a graph on one input and gives its wanted tensors, part by part, in the order of its nodes.

    Attributes:
        at_a_time: the inputs that may run at the same time.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        wanted: Sequence[str],
        constants: Iterable[onnx.TensorProto] = (),
        *,
        ordered: bool = True,
    ) -> None:
        """Start a session for each part.

        Args:
            model: nodes in topological order; types and shapes inferred, with no dimension left open but the batch.
            wanted: names of tensors. Nodes that none of them needs do not run.
            constants: initializers besides the model's own.
            ordered: give every tensor as (N, C, h, w). Otherwise a tensor may come as (N, C/b, h, w, b), which takes
                less time: the kernels compute it so.
        """
        self._input = model.graph.input[0].name
        self._wanted = set(wanted)
        total = sum(tensor_bytes(info) for info in model.graph.value_info if info.name in self._wanted)
        slightly_more = PART_BYTES * 5 // 4
        part_bytes = slightly_more if total <= slightly_more else PART_BYTES  # a single part keeps its memory
        parts = split(model, self._wanted, part_bytes, constants)
        # An arena keeps what its part once took: all of them together would keep as much as the whole graph in one.
        self.at_a_time = images_at_a_time(model)
        arena = len(parts) == 1
        self._parts: list[_Started] = []
        while parts:  # a session has weights of its own: the model is let go
            part = parts.pop(0)
            options = inspection_options(arena, self.at_a_time)
            unordered = set() if ordered else set(part.outputs) - set(part.read_later)
            session, blocked = start_unordered(part.model, options, unordered)
            self._parts.append(_Started(session, part.inputs, part.outputs, part.read_later, blocked))

    def run(self, image: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """The wanted tensors of each part; those of a part are let go when those of the next are asked for."""
        alive = {self._input: image}
        if self._input in self._wanted:
            yield dict(alive)
        for part in self._parts:
            names = [part.blocked.get(name, name) for name in part.outputs]
            arrays = map(np.asarray, part.session.run(names, {name: alive[name] for name in part.inputs}))
            made = {
                name: in_blocks(array) if name in part.blocked else array
                for name, array in zip(part.outputs, arrays, strict=True)
            }
            alive = {name: array for name, array in (alive | made).items() if name in part.read_later}
            found = {name: array for name, array in made.items() if name in self._wanted}
            del arrays, made
            yield found
            found.clear()


def split(
    model: onnx.ModelProto, wanted: Collection[str], part_bytes: int, constants: Iterable[onnx.TensorProto] = ()
) -> list[Part]:
    """A graph in parts whose wanted tensors take `part_bytes` at most, unless one node alone makes more.

    A graph with subgraphs (If, Loop) stays in one part. If nothing but the input is wanted, there is no part.

    Args:
        model: nodes in topological order; types and shapes inferred.
        constants: initializers besides the model's own.
    """
    graph = model.graph
    typed = {info.name: info for info in (*graph.input, *graph.value_info, *graph.output)}
    stored = {tensor.name: tensor for tensor in (*graph.initializer, *constants)}
    nodes = _needed(graph.node, wanted)
    if not nodes:
        return []
    has_subgraph = any(attribute.HasField("g") for node in nodes for attribute in node.attribute)
    sizes = {name: 0 if has_subgraph else tensor_bytes(typed[name]) for name in wanted if name in typed}
    groups: list[list[onnx.NodeProto]] = [[]]
    used = 0
    for node in nodes:
        size = sum(sizes.get(name, 0) for name in node.output)
        if groups[-1] and used + size > part_bytes:
            groups.append([])
            used = 0
        groups[-1].append(node)
        used += size

    parts: list[Part] = []
    read_later: set[str] = set()
    for group in reversed(groups):
        made = [name for node in group for name in node.output if name]
        read = dict.fromkeys(name for node in group for name in node.input if name)
        inputs = [name for name in read if name not in made and name not in stored]
        if has_subgraph:
            inputs = [graph.input[0].name]
        outputs = [name for name in made if name in wanted or name in read_later]
        part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
        part.graph.name = graph.name
        part.graph.node.extend(group)
        part.graph.input.extend(typed[name] for name in inputs)
        part.graph.output.extend(typed.get(name) or _of_any_shape(name) for name in outputs)
        kept = stored if has_subgraph else {name: stored[name] for name in read if name in stored}
        part.graph.initializer.extend(kept.values())
        parts.insert(0, Part(part, inputs, outputs, frozenset(read_later)))
        read_later = (read_later - set(made)) | set(inputs)
    return parts


def joined(parts: Sequence[Part], wanted: Collection[str]) -> Part:
    """Parts that follow one another as one part. Its outputs are those that later parts read, and wanted tensors."""
    last = parts[-1]
    model = onnx.ModelProto()
    model.CopyFrom(last.model)
    graph = model.graph
    del graph.node[:], graph.input[:], graph.output[:], graph.initializer[:]
    made = {name for part in parts for name in part.outputs}
    inputs: dict[str, onnx.ValueInfoProto] = {}
    outputs: dict[str, onnx.ValueInfoProto] = {}
    constants: dict[str, onnx.TensorProto] = {}
    for part in parts:
        graph.node.extend(part.model.graph.node)
        inputs |= {info.name: info for info in part.model.graph.input if info.name not in made}
        outputs |= {info.name: info for info in part.model.graph.output if info.name in {*last.read_later, *wanted}}
        constants |= {tensor.name: tensor for tensor in part.model.graph.initializer}
    graph.input.extend(inputs.values())
    graph.output.extend(outputs.values())
    graph.initializer.extend(constants.values())
    return Part(model, list(inputs), list(outputs), last.read_later)


def _needed(nodes: Sequence[onnx.NodeProto], wanted: Collection[str]) -> list[onnx.NodeProto]:
    """The nodes that wanted tensors are made by, directly or not; all of them where a subgraph may read any tensor."""
    if any(attribute.HasField("g") for node in nodes for attribute in node.attribute):
        return list(nodes)
    needed, read = [], set(wanted)
    for node in reversed(nodes):
        if not read.isdisjoint(node.output):
            needed.append(node)
            read |= set(node.input)
    return needed[::-1]


def _of_any_shape(name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
