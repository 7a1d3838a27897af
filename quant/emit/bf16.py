"""The bf16 graph and its simulation: float32's range with 8 bits, for networks whose values go beyond fp16.

The file has opset 22, the first in which ONNX defines convolutions for bf16. No CPU runs it in onnxruntime; the
simulation shows its accuracy.
"""

import onnx
import onnx.version_converter

from sodeploy.errors import UserError
from sodeploy.quant.emit.convert import converted, rounded
from sodeploy.quant.emit.float_types import BF16
from sodeploy.quant.emit.rewriter import label
from sodeploy.quant.graph import Network
from sodeploy.quant.normalize import STANDARD
from sodeploy.quant.planning.plan import Plan
from sodeploy.quant.weights_aside import with_weights_aside
from sodeploy.runtime.onnx_file import one_line


def emit_bf16(network: Network, plan: Plan | None = None) -> onnx.ModelProto:
    """The bf16 graph; nodes that bf16 would change, and those of `coordinates`, stay in fp32.

    Raises:
        UserError: onnx cannot raise the network to the opset of bf16.
    """
    return label(converted(_raised(network), BF16, _kept(network, plan)), "bf16")


def emit_bf16_simulation(network: Network, plan: Plan | None = None) -> onnx.ModelProto:
    """The bf16 graph's roundings, computed in fp32, for onnxruntime on a CPU."""
    return label(rounded(network, BF16, _kept(network, plan)), "bf16", "simulation")


def coordinates(network: Network) -> set[str]:
    """Names of the GridSample nodes and of those between a layer and their grids, in which 8 bits are too few.

    A coordinate at the edge of 640 pixels has steps of more than a pixel in bf16. TensorRT-RTX samples only values that
    have the type of the grid, so the GridSample itself stays in fp32 too.
    """
    grids: set[str] = set()
    found = set()
    for node in reversed(network.model.graph.node):
        if node.op_type == "GridSample":
            grids.add(node.input[1])
            found.add(node.name)
        elif not grids.isdisjoint(node.output) and not network.is_weighted(node):
            grids |= set(node.input)
            found.add(node.name)
    return found


def _kept(network: Network, plan: Plan | None) -> set[str]:
    return coordinates(network) | (plan.needs_fp32() if plan else set())


def _raised(network: Network) -> onnx.ModelProto:
    """The network in the opset that has bf16, with types inferred; names of nodes and results stay."""
    if next(entry.version for entry in network.model.opset_import if entry.domain in STANDARD) >= BF16.opset:
        return network.model
    try:
        model = with_weights_aside(
            lambda light: onnx.version_converter.convert_version(light, BF16.opset), network.model
        )
    except Exception as error:  # RuntimeError of C++, and others
        raise UserError(
            f"{network.path} cannot be raised to opset {BF16.opset}, which bf16 needs ({one_line(error)}); build it "
            "without --bf16"
        ) from None
    model.ir_version = max(model.ir_version, onnx.helper.find_min_ir_version_for(model.opset_import))
    return with_weights_aside(onnx.shape_inference.infer_shapes, model)
