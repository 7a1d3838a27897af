"""An imitation of Triton Inference Server: its real gRPC protocol, models of a repository in onnxruntime."""

import contextlib
import importlib.util
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import grpc
import numpy as np
import onnxruntime
from google.protobuf import json_format
from tritonclient.grpc import service_pb2, service_pb2_grpc

from sodeploy.runtime.triton_server.model_config import parse_config

_FLOATS = {"FP32": np.float32, "FP16": np.float16}


class Repository:
    """The networks of a repository, each run as its configuration says."""

    def __init__(self, folder: Path) -> None:
        texts = {path.parent.name: path.read_text() for path in folder.glob("*/config.pbtxt")}
        self.configs = {name: parse_config(text, name) for name, text in texts.items()}
        self._folder = folder

    def run(self, name: str, images: np.ndarray) -> np.ndarray:
        """Raises ValueError as Triton refuses: the shape is not the configuration's."""
        config = self.configs[name]
        first, most = config.input[0], config.max_batch_size
        shape = images.shape[1:] if most else images.shape
        fits = len(shape) == len(first.dims) and all(
            dim in (-1, side) for dim, side in zip(first.dims, shape, strict=True)
        )
        if not fits or (most and len(images) > most):
            raise ValueError(f"unexpected shape for input '{first.name}' for model '{name}': {list(images.shape)}")
        file = self._folder / name / "1" / (config.default_model_filename or "model.onnx")
        (output,) = onnxruntime.InferenceSession(file).run([config.output[0].name], {first.name: images})
        return np.asarray(output)


@dataclass
class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The two calls that the client makes.

    Attributes:
        slow_s: seconds that a run takes.
        drop: leave the last row out of each output.
        batches: sizes of the batches that came.
    """

    repository: Repository
    slow_s: float = 0.0
    drop: bool = False
    batches: list[int] = field(default_factory=list)

    def ModelConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        if request.name not in self.repository.configs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        return service_pb2.ModelConfigResponse(config=self.repository.configs[request.name])

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        time.sleep(self.slow_s)
        sent = request.inputs[0]
        images = np.frombuffer(request.raw_input_contents[0], _FLOATS[sent.datatype]).reshape(sent.shape)
        self.batches.append(len(images))
        try:
            output = self.repository.run(request.model_name, images)
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        output = np.ascontiguousarray(output[..., :-1, :]) if self.drop else output
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, raw_output_contents=[output.tobytes()])
        kind = next(name for name, dtype in _FLOATS.items() if dtype == output.dtype)
        answer.outputs.add(name=request.outputs[0].name, datatype=kind, shape=output.shape)
        return answer


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[str, Servicer]]:
    """Serve a repository at the address given, until the block ends."""
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = Servicer(Repository(folder))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", servicer
    finally:
        server.stop(0).wait()


class Tensor:
    def __init__(self, name: str, values: np.ndarray) -> None:
        self.name, self.values = name, values

    def as_numpy(self) -> np.ndarray:
        return self.values


class Response(SimpleNamespace):
    def __init__(self, output_tensors: Sequence[Tensor] = (), error: Any = None) -> None:
        super().__init__(tensors={one.name: one for one in output_tensors}, failure=error)

    def has_error(self) -> bool:
        return self.failure is not None

    def error(self) -> Any:
        return self.failure


class TritonError:
    def __init__(self, text: str) -> None:
        self._text = text

    def message(self) -> str:
        return self._text


def python_backend(repository: Repository) -> ModuleType:
    """`triton_python_backend_utils`, as far as a mask model needs it; a call of another model runs that at once."""

    class InferenceRequest(SimpleNamespace):
        def exec(self) -> Response:
            try:
                output = repository.run(self.model_name, self.inputs[0].as_numpy())
            except ValueError as error:
                return Response(error=TritonError(str(error)))
            return Response([Tensor(self.requested_output_names[0], output)])

    module: Any = ModuleType("triton_python_backend_utils")
    module.Tensor, module.InferenceResponse, module.TritonError = Tensor, Response, TritonError
    module.InferenceRequest = InferenceRequest
    module.PreferredMemory = lambda kind, index: None
    module.TRITONSERVER_MEMORY_CPU = 1
    module.get_input_tensor_by_name = lambda request, name: request.tensors[name]
    module.get_output_tensor_by_name = lambda response, name: response.tensors[name]
    module.triton_string_to_numpy = {"TYPE_FP32": np.float32, "TYPE_FP16": np.float16}.__getitem__
    return module  # type: ignore[no-any-return]


def mask_model(folder: Path, name: str, monkeypatch: Any) -> Any:
    """The Python model of a repository, started as Triton starts it."""
    repository = Repository(folder)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", python_backend(repository))
    spec = importlib.util.spec_from_file_location("model", folder / name / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    config = json_format.MessageToDict(repository.configs[name], preserving_proto_field_name=True)
    model.initialize({"model_config": json.dumps(config), "model_name": name})
    return model


def mask_request(data: Sequence[bytes], *wanted: str) -> Any:
    """A request of a mask model."""
    tensors = {"image": Tensor("image", np.array(data, np.object_))}
    return SimpleNamespace(tensors=tensors, requested_output_names=lambda: list(wanted))
