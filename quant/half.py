"""The fp16 body of a graph: every float tensor in half precision, except around the nodes that must stay in fp32."""

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LARGEST = 65504.0  # fp16's largest finite number

# Inputs that an operator wants in float32 whatever the type of its data.
_FLOAT32_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}


def to_half(model: onnx.ModelProto, keep: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of `model` that computes in fp16.

    Inputs and outputs of the graph stay float32; casts stand behind and before them and around the kept nodes.

    Args:
        model: float32, with inferred types; may hold Q/DQ nodes, whose scales become fp16 with the rest.
        keep: names of nodes that go on computing in fp32.
    """
    return _Halver(model, keep).model


class _Halver:
    """One conversion: walks the nodes in order and knows in which type each float tensor exists."""

    def __init__(self, model: onnx.ModelProto, keep: Collection[str]) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        graph = self.model.graph
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.made: dict[tuple[str, int], str] = {}  # (tensor, type) -> the name under which it exists in that type
        self.type_of = {tensor.name: tensor.data_type for tensor in graph.initializer}
        self.type_of |= {
            info.name: info.type.tensor_type.elem_type for info in (*graph.input, *graph.value_info, *graph.output)
        }
        outputs = {output.name for output in graph.output}
        self.nodes: list[onnx.NodeProto] = []
        self.used: set[str] = set()
        for node in graph.node:
            self._convert(node, TensorProto.FLOAT if node.name in keep else TensorProto.FLOAT16, outputs)
        del graph.node[:]
        graph.node.extend(self.nodes)
        del graph.value_info[:]  # types have changed; engines infer them anew
        kept = [tensor for name, tensor in self.initializers.items() if name in self.used]
        del graph.initializer[:]
        graph.initializer.extend(kept)

    def _convert(self, node: onnx.NodeProto, body: int, outputs: set[str]) -> None:
        is_float = {name for name in (*node.input, *node.output) if self.type_of.get(name, 0) in _FLOATS}
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            # Treated as an initializer: whoever reads it gets it in the type wanted.
            tensor = node.attribute[0].t
            tensor.name = node.output[0]
            self.initializers[tensor.name] = tensor
            self.type_of[tensor.name] = tensor.data_type
            return
        for index, name in enumerate(node.input):
            if name in is_float and index not in _FLOAT32_INPUTS.get(node.op_type, ()):
                node.input[index] = self._as(name, body)
            self.used.add(node.input[index])
        if node.op_type == "Cast" and node.attribute[0].i in _FLOATS:
            node.attribute[0].i = body
        self.nodes.append(node)
        for index, name in enumerate(node.output):
            if self.type_of.get(name, 0) not in _FLOATS:
                continue
            self.type_of[name] = body
            if name in outputs and body != TensorProto.FLOAT:  # the graph's output keeps its name and type
                node.output[index] = f"{name}/fp16"
                self.type_of[node.output[index]] = body
                self.nodes.append(_cast(node.output[index], name, TensorProto.FLOAT))
                self.made[name, body] = node.output[index]
                self.type_of[name] = TensorProto.FLOAT

    def _as(self, name: str, wanted: int) -> str:
        """The name of `name` in type `wanted`; a copy of the initializer or a cast is added if there is none yet."""
        if self.type_of[name] == wanted:
            return name
        if (name, wanted) not in self.made:
            suffix = "fp16" if wanted == TensorProto.FLOAT16 else "fp32"
            new = self.made[name, wanted] = f"{name}/{suffix}"
            if name in self.initializers:
                values = numpy_helper.to_array(self.initializers[name])
                dtype = np.float16 if wanted == TensorProto.FLOAT16 else np.float32
                if wanted == TensorProto.FLOAT16:
                    values = np.clip(values, -LARGEST, LARGEST)
                self.initializers[new] = numpy_helper.from_array(values.astype(dtype), new)
            else:
                self.nodes.append(_cast(name, new, wanted))
            self.type_of[new] = wanted
        return self.made[name, wanted]


_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=to)
