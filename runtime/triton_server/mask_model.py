"""The Python model of a mask model in Triton: an encoded image in, its saliency map out.

`sodeploy triton` copies this file into the repository as `model.py`. Triton's Python back end runs it, where sodeploy
must be installed too. Pre- and post-processing are those of the CPU path; the network is another model of the server.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as backend  # Triton's own, there alone

from sodeploy.errors import UserError
from sodeploy.runtime.batches import run_in_batches
from sodeploy.runtime.contract import METADATA_KEY, parse_contract
from sodeploy.runtime.media.reading import decode_frame
from sodeploy.runtime.media.still import encode_still
from sodeploy.runtime.processing import predict


class TritonPythonModel:
    """The class that Triton looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the contract and the network's name from the parameters of the configuration.

        Args:
            args: of Triton; `model_config` is the configuration as JSON.

        Raises:
            UserError: the contract is malformed.
        """
        found = json.loads(args["model_config"])["parameters"]
        parameters = {key: entry["string_value"] for key, entry in found.items()}
        self._contract = parse_contract(parameters[METADATA_KEY], args["model_name"])
        self._network = parameters["sodeploy.network"]
        self._dtype = backend.triton_string_to_numpy(parameters["sodeploy.input_type"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request; what is wrong with one image is told in its own response."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        data = backend.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
        try:
            if len(data) != 1:
                raise UserError(f"a request holds one encoded image, not {len(data)}")
            image = decode_frame(bytes(data[0]), "the image", whole=False).image
            run = partial(run_in_batches, self._run, contract=self._contract, path=Path(self._network))
            saliency = predict(image, self._contract, run)
            wanted = request.requested_output_names()
            outputs = [backend.Tensor("map", saliency)] if "map" in wanted else []
            if "png" in wanted:
                outputs.append(backend.Tensor("png", np.array([encode_still(saliency, ".png")], np.object_)))
        except UserError as error:
            return backend.InferenceResponse(output_tensors=[], error=backend.TritonError(str(error)))
        return backend.InferenceResponse(output_tensors=outputs)

    def _run(self, images: np.ndarray) -> np.ndarray:
        """One run of the network on this server, (n, 3, h, w) -> (n, 1, h, w)."""
        contract = self._contract
        response = backend.InferenceRequest(
            model_name=self._network,
            requested_output_names=[contract.output_name],
            inputs=[backend.Tensor(contract.input_name, images.astype(self._dtype, copy=False))],
            preferred_memory=backend.PreferredMemory(backend.TRITONSERVER_MEMORY_CPU, 0),
        ).exec()
        if response.has_error():
            raise UserError(f"{self._network}: {response.error().message()}")
        output = backend.get_output_tensor_by_name(response, contract.output_name)
        return np.asarray(output.as_numpy())
