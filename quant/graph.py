"""An ONNX graph with what quantization asks of it: the node that makes a tensor, its readers, its shape."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
from onnx import numpy_helper

from sodeploy.artifacts import sha256
from sodeploy.errors import UserError
from sodeploy.quant.normalize import STANDARD, normalized
from sodeploy.quant.weights_aside import with_weights_aside
from sodeploy.runtime.contract import Contract, contract_of, require_shape
from sodeploy.runtime.onnx_bytes import model_bytes
from sodeploy.runtime.onnx_file import all_nodes, captured, one_line, read_model
from sodeploy.stages import command

OPSET = 19  # the first in which QuantizeLinear takes fp16, which a strongly typed engine's Q/DQ needs

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")

_LARGE = 2**20  # bytes of a constant that is not kept as an array

HEAD_CHANNELS = 4  # a layer at the end with fewer output channels makes a map, not features

QUANTIZING = ("QuantizeLinear", "DequantizeLinear")

# Operators whose output holds values of their first input, or values between those. One scale serves both, and a
# quantization step may move across them.
PASSING = ("MaxPool", "Resize", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Identity", "Split")


class _Constants(Mapping[str, np.ndarray]):
    """The values of tensors. Large ones are read at each access: kept, they would double the memory of a model."""

    def __init__(self, tensors: dict[str, onnx.TensorProto]) -> None:
        self._tensors = tensors
        self._small: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._small:
            return self._small[name]
        values = numpy_helper.to_array(self._tensors[name])
        if values.nbytes < _LARGE:
            self._small[name] = values
        return values

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, without a copy of its values."""
        return tuple(self._tensors[name].dims)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclass
class Network:
    """A float32 network and its indices. `model` is not changed; emitters work on copies.

    Attributes:
        digest: sha256 of the file; plans and statistics name their network by it.
    """

    model: onnx.ModelProto
    contract: Contract
    digest: str
    path: Path
    producer: dict[str, onnx.NodeProto] = field(init=False)
    consumers: dict[str, list[onnx.NodeProto]] = field(init=False)

    def __post_init__(self) -> None:
        self.producer = {output: node for node in self.nodes for output in node.output if output}
        self.consumers = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys((*node.input, *captured(node))):
                if name:
                    self.consumers[name].append(node)

    @property
    def nodes(self) -> Iterator[onnx.NodeProto]:
        return iter(self.model.graph.node)

    @property
    def input(self) -> str:
        return self.contract.input_name

    @property
    def outputs(self) -> set[str]:
        return {output.name for output in self.model.graph.output}

    @cached_property
    def constants(self) -> _Constants:
        """Initializers and the outputs of Constant nodes, by name."""
        found = {tensor.name: tensor for tensor in self.model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                found[node.output[0]] = node.attribute[0].t
        return _Constants(found)

    @cached_property
    def _infos(self) -> dict[str, onnx.ValueInfoProto]:
        graph = self.model.graph
        return {info.name: info for info in (*graph.value_info, *graph.input, *graph.output)}

    def shape(self, tensor: str) -> list[int | None]:
        """The shape of a tensor, None for a dimension that is not fixed."""
        dims = self._infos[tensor].type.tensor_type.shape.dim
        return [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]

    def has_rank(self, tensor: str) -> bool:
        """Whether inference found how many dimensions a tensor has."""
        info = self._infos.get(tensor)
        return info is not None and info.type.tensor_type.HasField("shape")

    @cached_property
    def float_tensors(self) -> set[str]:
        """Names of the float32 tensors that depend on the image."""
        float32 = onnx.TensorProto.FLOAT
        typed = {name for name, info in self._infos.items() if info.type.tensor_type.elem_type == float32}
        return typed - self.constants.keys()

    def is_weighted(self, node: onnx.NodeProto) -> bool:
        """Whether it is a Conv, ConvTranspose, Gemm or MatMul with a constant weight, all of which is understood."""
        return node.op_type in WEIGHTED and self.why_left_alone(node) is None

    def why_left_alone(self, node: onnx.NodeProto) -> str | None:
        """Why no rewriting may touch a Conv, ConvTranspose, Gemm or MatMul; None where all may."""
        if node.name not in self._left_alone:
            self._left_alone[node.name] = _why_left_alone(self, node)
        return self._left_alone[node.name]

    @cached_property
    def _left_alone(self) -> dict[str, str | None]:
        return {}

    def weight(self, node: onnx.NodeProto) -> np.ndarray:
        """The weight of a node that `is_weighted`, in the node's layout."""
        return self.constants[node.input[1]]

    def weight_shape(self, node: onnx.NodeProto) -> tuple[int, ...]:
        """The shape of that weight, of which no copy is made."""
        return self.constants.shape(node.input[1])

    def bias(self, node: onnx.NodeProto) -> np.ndarray | None:
        return self.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None

    def stored(self, node: onnx.NodeProto) -> list[str]:
        """The tensors that an int8 layer reads and, in engines that keep results in int8, writes."""
        inputs = list(node.input) if node.op_type == "Add" else [node.input[0]]
        return [*inputs, self.scope(node)]

    def scope(self, node: onnx.NodeProto) -> str:
        """The tensor with the result of a node, or of the ReLU that is its only reader."""
        output: str = node.output[0]
        readers = self.consumers[output]
        if len(readers) == 1 and readers[0].op_type == "Relu" and output not in self.outputs:
            return str(readers[0].output[0])
        return output


def _why_left_alone(network: Network, node: onnx.NodeProto) -> str | None:
    if node.domain not in STANDARD:
        return f"an operator of {node.domain}, not of ONNX itself"
    weight = network.constants.get(node.input[1])
    if weight is None:
        on_the_left = network.constants.get(node.input[0]) is not None
        return "its weight stands on the left" if on_the_left else "a product of two computed tensors"
    if weight.dtype != np.float32 or weight.ndim < 2 or not weight.size:
        return f"its weight is {weight.dtype} of shape {weight.shape}"
    if node.op_type == "MatMul" and weight.ndim != 2:
        return f"its weight has {weight.ndim} dimensions"
    if not np.isfinite(weight).all():
        return "its weight holds NaN or infinity"
    if not network.has_rank(node.input[0]):
        return "how many dimensions its input has is not known"
    if len(node.input) > 2 and node.input[2]:
        bias = network.constants.get(node.input[2])
        if bias is None or bias.shape != (weight.shape[channel_axis(node)] * _groups(node),):
            return "its bias is not one constant for each output channel"
        if not np.isfinite(bias).all():
            return "its bias holds NaN or infinity"
    if any((a.name in ("alpha", "beta") and a.f != 1) or (a.name == "transA" and a.i) for a in node.attribute):
        return "it has alpha, beta or transA"
    return None


def _groups(node: onnx.NodeProto) -> int:
    """How many times its output channels a weight has: a ConvTranspose stores those of one group."""
    return attribute(node, "group", 1) if node.op_type == "ConvTranspose" else 1


def _drop_unused_domains(model: onnx.ModelProto) -> None:
    """Forget the operator sets that no node is of: the version converter takes files of ONNX's own alone."""
    used = {node.domain for node in all_nodes(model)} | set(STANDARD)
    kept = {entry.domain or "ai.onnx": entry for entry in model.opset_import if entry.domain in used}
    entries = [onnx.helper.make_opsetid(entry.domain, entry.version) for entry in kept.values()]
    del model.opset_import[:]
    model.opset_import.extend(entries)


def attribute(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    """An integer attribute of a node."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def integers(node: onnx.NodeProto, name: str, default: Sequence[int] = ()) -> list[int]:
    """An attribute of a node that is a list of integers."""
    return next((list(a.ints) for a in node.attribute if a.name == name), list(default))


def pads_itself(node: onnx.NodeProto) -> bool:
    """Whether a convolution computes its padding (`auto_pad`)."""
    return any(a.name == "auto_pad" and a.s not in (b"", b"NOTSET") for a in node.attribute)


def is_residual(network: Network, node: onnx.NodeProto) -> bool:
    """Whether a node is an Add of two feature maps of one shape."""
    if node.op_type != "Add" or not all(name in network.float_tensors for name in node.input):
        return False
    shapes = [network.shape(name) for name in node.input]
    return shapes[0] == shapes[1] and len(shapes[0]) == 4


def heads_of(network: Network) -> set[str]:
    """Names of the layers that make maps, not features: few output channels, and no features are computed from them."""
    heads: set[str] = set()
    made_into_features: set[str] = set()  # tensors that a layer reads, directly or not, which is no head
    for node in reversed(network.model.graph.node):
        if network.is_weighted(node):
            few = network.weight_shape(node)[channel_axis(node)] < HEAD_CHANNELS
            if few and node.output[0] not in made_into_features:
                heads.add(node.name)
            else:
                made_into_features |= set(node.input)
        elif made_into_features & set(node.output):
            made_into_features |= set(node.input)
    return heads


def feature_heads(network: Network) -> set[str]:
    """Names of the convolutions among the heads that read features, and not the maps of other heads."""
    heads = heads_of(network)
    made_of_maps: set[str] = set()
    found = set()
    for node in network.nodes:
        reads_maps = not made_of_maps.isdisjoint(node.input)
        if node.name in heads and not reads_maps and node.op_type == "Conv" and node.input[0] in network.float_tensors:
            found.add(node.name)
        if node.name in heads or reads_maps:
            made_of_maps |= set(node.output)
    return found


def channel_axis(node: onnx.NodeProto) -> int:
    """The axis of output channels in a weighted node's weight.

    ConvTranspose stores (in, out / groups, ...), and a matrix product (in, out).
    """
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB") else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}[node.op_type]


def channel_axis_read(node: onnx.NodeProto) -> int:
    """The axis of channels in a weighted node's input."""
    return 1 if node.op_type in ("Conv", "ConvTranspose") else -1


def load_network(path: str | Path) -> Network:
    """Read a float32 ONNX file that carries its contract, its opset raised to `OPSET` if lower, and normalize it.

    Raises:
        UserError: not a file, not ONNX, without a contract, or already quantized or fp16.
    """
    path = Path(path)
    model = read_model(path, f"make it: {command('to_onnx')}")
    try:
        onnx.checker.check_model(model_bytes(model), full_check=True)
    except Exception as error:  # protobuf and onnx raise types of their own, undocumented
        raise UserError(
            f"{path} is not a valid ONNX model: {one_line(error)}; see what it holds: {command('doctor')} {path}"
        ) from None
    contract = contract_of({entry.key: entry.value for entry in model.metadata_props}, path)
    _require_contract_kept(model, contract, path)
    if any(node.op_type in QUANTIZING for node in model.graph.node):
        raise UserError(f"{path} is quantized already; give the float32 model it was made from")
    if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer):
        raise UserError(f"{path} holds fp16 weights; give the float32 model, or raise it: {command('adopt')}")
    _drop_unused_domains(model)
    if next(entry.version for entry in model.opset_import if entry.domain in STANDARD) < OPSET:
        try:
            model = with_weights_aside(lambda light: onnx.version_converter.convert_version(light, OPSET), model)
        except Exception as error:  # RuntimeError of C++, and others
            raise UserError(f"{path} cannot be raised to opset {OPSET} ({one_line(error)}); adopt it first") from None
        model.ir_version = max(model.ir_version, onnx.helper.find_min_ir_version_for(model.opset_import))
    model = with_weights_aside(onnx.shape_inference.infer_shapes, model)
    names: set[str] = set()
    for index, node in enumerate(model.graph.node):  # the plan speaks of nodes by name
        if not node.name or node.name in names:
            node.name = f"{node.op_type}_{index}"
        names.add(node.name)
    return Network(normalized(model), contract, sha256(path), path)


def _require_contract_kept(model: onnx.ModelProto, contract: Contract, path: Path) -> None:
    """Raise UserError unless the graph's one input and its output are those of its contract."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in constants}
    outputs = [value.name for value in model.graph.output]
    if list(inputs) != [contract.input_name]:
        raise UserError(f"{path}: the contract names input {contract.input_name}, the graph has {', '.join(inputs)}; "
                        f"see {command('adopt')} --help")  # fmt: skip
    if contract.output_name not in outputs:
        raise UserError(f"{path}: the contract names output {contract.output_name}, the graph has "
                        f"{', '.join(outputs)}; see {command('adopt')} --help")  # fmt: skip
    dims = inputs[contract.input_name].type.tensor_type.shape.dim
    require_shape(contract, [dim.dim_value for dim in dims], path)
