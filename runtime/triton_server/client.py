"""A network on a Triton server as a session: images are prepared here, the network runs there, over gRPC."""

import re
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sodeploy.artifacts import one_line
from sodeploy.errors import UserError
from sodeploy.runtime.batches import run_in_batches
from sodeploy.runtime.contract import PRECISION_KEY

if TYPE_CHECKING:
    pass

PORT = 8001  # Triton's own for gRPC
DEADLINE = 60.0  # seconds
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::(\d{1,5}))?")
_TYPES = {"TYPE_FP32": ("FP32", np.float32), "TYPE_FP16": ("FP16", np.float16)}


def parse_address(text: str) -> str:
    """HOST:PORT of a text such as "gpu1", "gpu1:8001" or "[::1]:8001"; the port is 8001 by default.

    Raises:
        UserError: it is no address.
    """
    found = _ADDRESS.fullmatch(text)
    if not found or not 0 < int(found[2] or PORT) < 1 << 16:
        raise UserError(f"--triton {text}: write it as HOST or HOST:PORT, for example localhost:{PORT}")
    return f"{found[1]}:{found[2] or PORT}"


class TritonServer(NamedTuple):
    """A Triton server.

    Attributes:
        address: HOST or HOST:PORT of its gRPC service; the port is 8001 by default.
        deadline: longest wait for one answer, in seconds.
    """

    address: str
    deadline: float = DEADLINE


class TritonSession:
    """A model of a Triton server whose parameters carry its contract, as `sodeploy triton` writes them."""

    def __init__(self, server: TritonServer, name: str) -> None:
        """Ask the server for the model's configuration.

        Args:
            name: the name of the network there, not of its mask model.

        Raises:
            ModuleNotFoundError: tritonclient is not installed.
            UserError: the server does not answer, or it has no such model, or the model has no contract.
        """
        from tritonclient.grpc import InferenceServerClient

        from sodeploy.runtime.triton_server.model_config import contract_of_config, type_name

        self._address, self._name, self._deadline = parse_address(server.address), name, server.deadline
        self._client: InferenceServerClient | None = InferenceServerClient(self._address)
        try:
            config = self._ask("get_model_config", name).config
            self.contract = contract_of_config(config, self._source)
            types = {one.name: type_name(one) for one in config.input}
            kind = types.get(self.contract.input_name, "")
            if kind not in _TYPES:
                raise UserError(
                    f"{self._source} has no input {self.contract.input_name} of floats; name the network, not a mask "
                    f"model, for example --model {name.removesuffix('_mask')}"
                )
            self._type, self._dtype = _TYPES[kind]
            self._most = config.max_batch_size
            parameters = {key: value.string_value for key, value in config.parameters.items()}
            self.metadata = parameters
            self.precision = parameters.get(PRECISION_KEY, "fp32")
        except BaseException:
            self.close()
            raise

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """(N, 3, h, w) float32 -> (N, 1, h, w) float32, in as many requests as the server's largest batch asks for.

        Raises:
            UserError: h, w are not what the model takes, the server refuses or fails, or it does not answer in time.
            ValueError: `batch` is not (N, 3, h, w), N >= 1; the session is closed.
        """
        return run_in_batches(self._in_parts, batch, self.contract, Path(self._source))

    def _in_parts(self, images: np.ndarray) -> np.ndarray:
        """A free batch may be larger than the server's largest one."""
        if self.contract.batch is not None or not self._most:
            return self._run(images)
        parts = [self._run(images[start : start + self._most]) for start in range(0, len(images), self._most)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, images: np.ndarray) -> np.ndarray:
        from tritonclient.grpc import InferInput, InferRequestedOutput

        sent = InferInput(self.contract.input_name, list(images.shape), self._type)
        sent.set_data_from_numpy(np.ascontiguousarray(images, self._dtype))
        name = self.contract.output_name
        answer = self._ask("infer", self._name, [sent], outputs=[InferRequestedOutput(name)])
        output = answer.as_numpy(name)
        if output is None:
            raise UserError(f"{self._source} gives no output {name}; write its repository again")
        return np.asarray(output)

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        from tritonclient.utils import InferenceServerException

        if self._client is None:
            raise ValueError(f"the session of {self._source} is closed")
        try:
            return getattr(self._client, method)(*arguments, client_timeout=self._deadline, **options)
        except InferenceServerException as error:
            status = (error.status() or "").removeprefix("StatusCode.")
            raise UserError(self._told(status, one_line(error.message()))) from None

    def _told(self, status: str, reason: str) -> str:
        """One line for a failure."""
        if status == "UNAVAILABLE":
            return f"no Triton server answers at {self._address} ({reason}); start it, or correct --triton"
        if status == "DEADLINE_EXCEEDED":
            return f"{self._source} did not answer within {self._deadline:g} s; see the server, or raise --deadline"
        if status == "NOT_FOUND":
            return f"{self._source} is not there ({reason}); give --model the name of a model of that server"
        return f"{self._source} refuses ({reason}); see the server's log"

    @property
    def _source(self) -> str:
        return f"{self._name} on {self._address}"

    def close(self) -> None:
        """End the connection; the session cannot be used any more."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def __enter__(self) -> "TritonSession":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
