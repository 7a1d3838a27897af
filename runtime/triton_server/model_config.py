"""The configuration of a model for Triton, as messages of Triton's own schema and as the text of `config.pbtxt`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as schema

from sodeploy.errors import UserError
from sodeploy.runtime.contract import METADATA_KEY, PRECISION_KEY, Contract, parse_contract

Backend = Literal["tensorrt", "onnxruntime", "openvino"]
FloatType = Literal["TYPE_FP32", "TYPE_FP16"]
NETWORK_KEY = "sodeploy.network"  # of a mask model: the name of the model that is its network
TYPE_KEY = "sodeploy.input_type"  # of a mask model: the FloatType of the network's input
IMAGE, PNG, MAP = "image", "png", "map"  # the tensors of a mask model


@dataclass(frozen=True)
class Batching:
    """The batches that Triton forms of requests.

    Attributes:
        most: images in one run.
        preferred: sizes at which Triton does not wait for more.
        delay_us: longest wait for more requests, in microseconds.
    """

    most: int
    preferred: tuple[int, ...]
    delay_us: int


@dataclass(frozen=True)
class Network:
    """A network that Triton runs.

    Attributes:
        files: name in the version folder -> compute capability such as "8.9"; "" for any GPU, or a CPU.
        batching: None where the network takes one size of batch only.
        instances: copies on each GPU, or on the CPU.
        on_gpu: whether they run on GPUs.
    """

    name: str
    backend: Backend
    contract: Contract
    precision: str
    files: Mapping[str, str]
    input_type: FloatType
    output_type: FloatType
    batching: Batching | None
    instances: int
    on_gpu: bool


def network_config(network: Network) -> schema.ModelConfig:
    """The configuration of a network: pre-processed images in, its output out."""
    contract = network.contract
    outer = () if contract.batch is None else (contract.batch,)
    sides = (-1, -1) if contract.dynamic_size else (contract.height, contract.width)
    config = schema.ModelConfig(
        name=network.name,
        backend=network.backend,
        max_batch_size=network.batching.most if network.batching else 0,
        input=[_input(contract.input_name, network.input_type, (*outer, 3, *sides))],
        output=[_output(contract.output_name, network.output_type, (*outer, 1, *sides))],
        instance_group=[_instances(network.instances, network.on_gpu)],
        parameters=_parameters(contract, network.precision),
    )
    for file, capability in network.files.items():
        if capability:
            config.cc_model_filenames[capability] = file
        else:
            config.default_model_filename = file
    if network.batching:
        config.dynamic_batching.preferred_batch_size.extend(network.batching.preferred)
        config.dynamic_batching.max_queue_delay_microseconds = network.batching.delay_us
    for size in sorted({1, network.batching.most}) if network.batching else [1]:
        warmup = config.model_warmup.add(name=f"batch of {size}", batch_size=size)
        first = warmup.inputs[contract.input_name]
        first.data_type = schema.DataType.Value(network.input_type)
        first.dims.extend((*outer, 3, contract.height, contract.width))
        first.zero_data = True
    return config


def mask_config(name: str, network: Network, instances: int) -> schema.ModelConfig:
    """The configuration of a mask model: an encoded image in, its saliency map out, as PNG or as pixels."""
    facts = {NETWORK_KEY: network.name, TYPE_KEY: network.input_type}
    return schema.ModelConfig(
        name=name,
        backend="python",
        max_batch_size=0,
        input=[_input(IMAGE, "TYPE_STRING", (1,))],
        output=[_output(PNG, "TYPE_STRING", (1,)), _output(MAP, "TYPE_UINT8", (-1, -1))],
        instance_group=[_instances(instances, on_gpu=False)],
        parameters=_parameters(network.contract, network.precision, facts),
    )


def config_text(config: schema.ModelConfig) -> str:
    """The text of `config.pbtxt`."""
    return str(text_format.MessageToString(config))


def parse_config(text: str, source: str) -> schema.ModelConfig:
    """The configuration in the text of a `config.pbtxt`.

    Raises:
        UserError: it has a field that Triton does not know, or is no such text; `source` is named.
    """
    try:
        return text_format.Parse(text, schema.ModelConfig())
    except text_format.ParseError as error:
        raise UserError(f"{source} is no configuration of Triton ({error}); write the repository again") from None


def contract_of_config(config: schema.ModelConfig, source: str) -> Contract:
    """The contract in the parameters of a configuration.

    Raises:
        UserError: there is none, or it is malformed; `source` is named.
    """
    if METADATA_KEY not in config.parameters:
        raise UserError(f"{source} has no sodeploy contract in its parameters; write its repository by sodeploy triton")
    return parse_contract(config.parameters[METADATA_KEY].string_value, source)


def type_name(tensor: schema.ModelInput | schema.ModelOutput) -> str:
    """The type of a tensor in a configuration, such as "TYPE_FP32"."""
    return str(schema.DataType.Name(tensor.data_type))


def _parameters(
    contract: Contract, precision: str, more: Mapping[str, str] | None = None
) -> dict[str, schema.ModelParameter]:
    facts = {METADATA_KEY: contract.to_json(), PRECISION_KEY: precision, **(more or {})}
    return {key: schema.ModelParameter(string_value=value) for key, value in facts.items()}


def _input(name: str, kind: str, dims: Sequence[int]) -> schema.ModelInput:
    return schema.ModelInput(name=name, data_type=schema.DataType.Value(kind), dims=dims)


def _output(name: str, kind: str, dims: Sequence[int]) -> schema.ModelOutput:
    return schema.ModelOutput(name=name, data_type=schema.DataType.Value(kind), dims=dims)


def _instances(count: int, on_gpu: bool) -> schema.ModelInstanceGroup:
    kind = schema.ModelInstanceGroup.KIND_GPU if on_gpu else schema.ModelInstanceGroup.KIND_CPU
    return schema.ModelInstanceGroup(count=count, kind=kind)
