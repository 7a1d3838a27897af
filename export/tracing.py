"""A network of PyTorch -> its graph in ONNX, and their comparison.

Traced by PyTorch's TorchScript exporter, not by the newer torch.export one: for U²-Netp the same 365 nodes come out in
1 s instead of 10 s, and its nodes are named after the modules (`/stage1/rebnconvin/conv_s1/Conv`), by which plans and
reports speak of layers.
"""

import io
import warnings

import numpy as np
import onnx
import torch

from sodeploy.export.parity import Parity, Shape, compare, runner
from sodeploy.export.simplify import strip_module_prefix
from sodeploy.runtime.contract import Contract
from sodeploy.training.models.network import SaliencyNetwork


class Prediction(torch.nn.Module):
    """A network as it is deployed: one output."""

    def __init__(self, network: SaliencyNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network.predict(image)


def trace(network: SaliencyNetwork, contract: Contract, opset: int) -> onnx.ModelProto:
    """The graph as PyTorch exports it, not simplified yet; `network` is in eval mode."""
    dynamic: dict[int, str] = {0: "batch"} if contract.batch is None else {}
    if contract.dynamic_size:
        dynamic |= {2: "height", 3: "width"}
    file = io.BytesIO()
    with warnings.catch_warnings():
        # The exporter warns that it is deprecated, and about Python values that it freezes. The comparison with
        # PyTorch finds a value that is frozen wrongly.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Prediction(network).eval(),
            (torch.zeros(contract.batch or 2, 3, contract.height, contract.width),),
            file,  # type: ignore[arg-type]  # takes files too, its annotation does not say so
            dynamo=False,
            opset_version=opset,
            input_names=[contract.input_name],
            output_names=[contract.output_name],
            dynamic_axes={contract.input_name: dynamic, contract.output_name: dynamic},
        )
    model = onnx.load_from_string(file.getvalue())
    strip_module_prefix(model, "network")
    return model


def parity_with(network: SaliencyNetwork, graph: onnx.ModelProto, contract: Contract) -> Parity:
    def torch_prediction(batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network.predict(torch.from_numpy(batch)).numpy()

    return compare(
        torch_prediction,
        runner(graph, contract.output_name),
        parity_shapes(contract, network.multiple),
        contract.network,
    )


def parity_shapes(contract: Contract, multiple: int) -> list[Shape]:
    """Input shapes to compare on: the native one, then another batch and another size where the graph takes them."""
    height, width = contract.height, contract.width
    shapes = [(contract.batch or 1, 3, height, width)]
    if contract.batch is None:
        shapes.append((3, 3, height, width))
    if contract.dynamic_size:
        # Not a multiple of 32 unless the network wants one: where pooling rounds up, traced sizes go wrong first.
        shapes.append((contract.batch or 1, 3, height + 5 * multiple, width + 3 * multiple))
    return shapes
