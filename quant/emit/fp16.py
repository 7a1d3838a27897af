"""The fp16 graph and its simulation."""

from collections.abc import Collection

import onnx

from sodeploy.quant.emit.convert import converted, rounded
from sodeploy.quant.emit.float_types import FP16
from sodeploy.quant.emit.rewriter import label
from sodeploy.quant.graph import Network
from sodeploy.quant.planning.plan import Plan


def emit_fp16(network: Network, plan: Plan | None = None) -> onnx.ModelProto:
    """The fp16 graph; the nodes that the plan keeps in fp32 stay in fp32."""
    return label(to_fp16(network.model, keep=plan.nodes("fp32") if plan else ()), "fp16")


def emit_fp16_simulation(network: Network, plan: Plan | None = None) -> onnx.ModelProto:
    """The fp16 graph's roundings, computed in fp32, for onnxruntime on a CPU."""
    return label(round_to_fp16(network, keep=plan.nodes("fp32") if plan else ()), "fp16", "simulation")


def to_fp16(model: onnx.ModelProto, keep: Collection[str] = ()) -> onnx.ModelProto:
    """`converted` to fp16."""
    return converted(model, FP16, keep)


def round_to_fp16(network: Network, keep: Collection[str] = ()) -> onnx.ModelProto:
    """`rounded` to fp16."""
    return rounded(network, FP16, keep)
