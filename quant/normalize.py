"""One spelling for what ONNX can spell in many ways, so that every rewriting of quantization meets a single form.

After `normalized`, a Gemm has neither alpha, beta nor transA; a convolution or a Gemm with a constant weight has a
constant bias of one value per output channel, or none; a convolution states its padding; what does not depend on the
image is an initializer. A computed bias is added by a node of its own. The function of the network stays the same but
for the rounding of float32 in a Gemm's factors.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sodeploy.quant.weights_aside import with_weights_aside
from sodeploy.runtime.onnx_bytes import model_bytes
from sodeploy.runtime.onnx_file import RANDOM_OPERATORS, reads, subgraphs

STANDARD = ("", "ai.onnx")

_LARGEST_FOLDED = 2**26  # bytes; a larger constant stays computed, so that the file does not grow by it


def normalized(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with one spelling for each thing, its types and shapes inferred. The argument is changed.

    Args:
        model: float32, its nodes in order and named.
    """
    fold_constants(model)
    model = with_weights_aside(onnx.shape_inference.infer_shapes, model)
    _Normalizer(model).run()
    del model.graph.value_info[:]
    return with_weights_aside(onnx.shape_inference.infer_shapes, model)


def fold_constants(model: onnx.ModelProto) -> None:
    """Compute what depends on no input, Constant nodes of every form among it, and keep the results as initializers.

    A node that onnxruntime cannot compute stays as it is.
    """
    graph = model.graph
    fed = {tensor.name for tensor in graph.input}
    known = {tensor.name for tensor in graph.initializer} - fed
    constant: list[onnx.NodeProto] = []
    for node in graph.node:
        if _is_foldable(node) and all(name in known for name in node.input if name):
            constant.append(node)
            known |= set(node.output)
    names = {id(node) for node in constant}
    left = [node for node in graph.node if id(node) not in names]
    read = reads(*left) | {output.name for output in graph.output}
    wanted = [name for node in constant for name in node.output if name in read]
    values = _computed(model, constant, wanted)
    if values is None:
        return
    stored = {name: value for name, value in values.items() if _can_be_stored(value)}
    # What is too large, or no tensor, is still computed, from whatever it needs.
    needed = set(wanted) - stored.keys()
    kept: list[onnx.NodeProto] = []
    for node in reversed(constant):
        if needed & set(node.output):
            kept.insert(0, node)
            needed |= set(node.input)
    del graph.node[:]
    graph.node.extend([*kept, *left])
    made = {name for node in kept for name in node.output}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in stored.items() if name not in made)
    _drop_unread(model)


def _is_foldable(node: onnx.NodeProto) -> bool:
    return node.domain in STANDARD and node.op_type not in RANDOM_OPERATORS and not any(subgraphs(node))


def _computed(model: onnx.ModelProto, nodes: list[onnx.NodeProto], outputs: list[str]) -> dict[str, np.ndarray] | None:
    """The values of `outputs`, by onnxruntime; None where it does not run these nodes."""
    import onnxruntime

    if not outputs:
        return {}
    read = {name for node in nodes for name in node.input}
    part = helper.make_graph(
        nodes,
        "constants",
        [],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [tensor for tensor in model.graph.initializer if tensor.name in read],
    )
    whole = helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a failure is no fault here: the nodes stay
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(model_bytes(whole), options, ["CPUExecutionProvider"])
        return dict(zip(outputs, session.run(outputs, {}), strict=True))
    except Exception:  # onnxruntime's errors have no base class in common
        return None


def _can_be_stored(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype != object and value.nbytes <= _LARGEST_FOLDED


def _drop_unread(model: onnx.ModelProto) -> None:
    graph = model.graph
    read = reads(*graph.node) | {output.name for output in graph.output}
    for index in reversed(range(len(graph.initializer))):  # a list that is written anew would copy all weights
        if graph.initializer[index].name not in read:
            del graph.initializer[index]


class _Normalizer:
    """Writes the nodes anew, in order; new nodes and constants are named after the node that they come from."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        infos = {info.name: info for info in (*graph.value_info, *graph.input, *graph.output)}
        self.shapes = {name: _shape(info) for name, info in infos.items()}
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> None:
        for node in self.model.graph.node:
            if node.domain in STANDARD and len(node.input) > 1 and self._is_known(node.input[1]):
                if node.op_type == "Gemm":
                    self._gemm(node)
                    continue
                if node.op_type in ("Conv", "ConvTranspose"):
                    self._convolution(node)
                    continue
            self.nodes.append(node)
        nodes = [*self.nodes]
        del self.model.graph.node[:]
        self.model.graph.node.extend(nodes)
        _drop_unread(self.model)

    def _gemm(self, node: onnx.NodeProto) -> None:
        weight = self._values(node.input[1])
        assert weight is not None
        alpha, beta, transposed = (_taken(node, name, default) for name, default in _FACTORS)
        if transposed:
            turned = f"{node.name}/transposed"
            self.nodes.append(helper.make_node("Transpose", [node.input[0]], [turned], name=turned, perm=[1, 0]))
            node.input[0] = turned
        if alpha != 1:
            node.input[1] = self._constant(f"{node.name}/weight/alpha", weight * np.float32(alpha))
        if len(node.input) < 3 or not node.input[2]:
            self.nodes.append(node)
            return
        outputs = weight.shape[0 if _taken(node, "transB", 0, keep=True) else 1]
        bias = self._values(node.input[2])
        if bias is not None and beta != 1:
            bias = bias * np.float32(beta)
            node.input[2] = self._constant(f"{node.name}/bias/beta", bias)
        if bias is not None and bias.size in (1, outputs) and bias.shape[-1:] in ((), (1,), (outputs,)):
            if bias.shape != (outputs,):
                spread = np.broadcast_to(bias.reshape(-1), outputs)
                node.input[2] = self._constant(f"{node.name}/bias/spread", np.ascontiguousarray(spread))
            self.nodes.append(node)
            return
        added = node.input[2]
        if bias is None and beta != 1:
            factor = self._constant(f"{node.name}/beta", np.float32(beta))
            scaled = f"{node.name}/bias/scaled"
            self.nodes.append(helper.make_node("Mul", [added, factor], [scaled], name=scaled))
            added = scaled
        self._add(node, added)

    def _convolution(self, node: onnx.NodeProto) -> None:
        self._state_padding(node)
        if len(node.input) < 3 or not node.input[2] or self._is_known(node.input[2]):
            self.nodes.append(node)
            return
        weight = self._values(node.input[1])
        assert weight is not None
        shape = self._constant(f"{node.name}/bias/shape", np.array([1, -1, *[1] * (weight.ndim - 2)], np.int64))
        along = f"{node.name}/bias/along_channels"
        self.nodes.append(helper.make_node("Reshape", [node.input[2], shape], [along], name=along))
        self._add(node, along)

    def _add(self, node: onnx.NodeProto, bias: str) -> None:
        """Append `node` without its bias, and an addition of `bias` that makes its output."""
        output = node.output[0]
        node.output[0] = f"{node.name}/without_bias"
        del node.input[2:]
        self.nodes.append(node)
        self.nodes.append(helper.make_node("Add", [node.output[0], bias], [output], name=f"{node.name}/computed_bias"))

    def _state_padding(self, node: onnx.NodeProto) -> None:
        """Replace `auto_pad` and `output_shape` by the pads they stand for, where the sizes are known."""
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if not attributes.keys() & {"auto_pad", "output_shape"}:
            return
        mode = attributes.get("auto_pad", b"NOTSET").decode()
        if mode != "NOTSET" or "output_shape" in attributes:
            weight = self._values(node.input[1])
            assert weight is not None
            missing = self._missing(node, mode, weight.shape[2:])
            if missing is None:
                return
            begin = [total // 2 if mode == "SAME_UPPER" else total - total // 2 for total in missing]
            pads = [*begin, *(total - first for total, first in zip(missing, begin, strict=True))]
        else:
            pads = _integers(node, "pads", [])
        for old in [a for a in node.attribute if a.name in ("auto_pad", "output_shape", "pads")]:
            node.attribute.remove(old)
        if pads:
            node.attribute.append(helper.make_attribute("pads", pads))

    def _missing(self, node: onnx.NodeProto, mode: str, kernel: Sequence[int]) -> list[int] | None:
        """The padding of each side's length, both ends together (ONNX, Conv and ConvTranspose); None if unknown."""
        if mode == "VALID" and node.op_type == "Conv":
            return [0] * len(kernel)
        inputs, outputs = ((self.shapes.get(name) or [])[2:] for name in (node.input[0], node.output[0]))
        ones = [1] * len(kernel)
        steps = [_integers(node, name, ones) for name in ("strides", "dilations")]
        extra = _integers(node, "output_padding", [0] * len(kernel))
        if not (len(inputs) == len(outputs) == len(kernel) and all(inputs) and all(outputs)):
            return None
        if any(extra) and mode.startswith("SAME"):  # shape inference and onnxruntime differ
            return None
        found = []
        for into, out, size, stride, dilation, more in zip(inputs, outputs, kernel, *steps, extra, strict=True):
            assert into is not None
            assert out is not None
            reach = (size - 1) * dilation + 1
            if node.op_type == "Conv":
                found.append(max((out - 1) * stride + reach - into, 0))
            else:
                found.append((into - 1) * stride + more + reach - out)
        return found if min(found) >= 0 else None

    def _values(self, name: str) -> np.ndarray | None:
        """A float32 constant, or None."""
        return np.asarray(numpy_helper.to_array(self.constants[name])) if self._is_known(name) else None

    def _is_known(self, name: str) -> bool:
        """Whether it is a float32 constant."""
        tensor = self.constants.get(name)
        return tensor is not None and tensor.data_type == TensorProto.FLOAT

    def _constant(self, name: str, values: np.ndarray | np.float32) -> str:
        tensor = numpy_helper.from_array(np.asarray(values), name)
        self.model.graph.initializer.append(tensor)
        self.constants[name] = tensor
        return name


_FACTORS = (("alpha", 1.0), ("beta", 1.0), ("transA", 0.0))


def _taken(node: onnx.NodeProto, name: str, default: float, keep: bool = False) -> float:
    """A number among a node's attributes, which loses it unless `keep`."""
    for attribute in node.attribute:
        if attribute.name == name:
            value = helper.get_attribute_value(attribute)
            if not keep:
                node.attribute.remove(attribute)
            return float(value)
    return default


def _integers(node: onnx.NodeProto, name: str, default: list[int]) -> list[int]:
    return next((list(a.ints) for a in node.attribute if a.name == name), default)


def _shape(info: onnx.ValueInfoProto) -> list[int | None]:
    return [dim.dim_value or None for dim in info.type.tensor_type.shape.dim]
