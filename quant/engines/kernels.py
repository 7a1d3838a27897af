"""The kernels of an engine: their precision, and which of them only convert between precisions.

An int8 graph does not make every kernel int8. A compiler may choose int8 convolutions that write fp32, each followed by
a kernel that scales the result back to int8, or no int8 at all (TensorRT-RTX for Turing). The list of kernels shows it.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_PRECISIONS = {"Float": "fp32", "FP32": "fp32", "Half": "fp16", "FP16": "fp16", "BFloat16": "bf16", "BF16": "bf16",
               "Int8": "int8"}  # fmt: skip
_HARMLESS = {
    r"Converting conv (activation|weight) scales to fp32": "scales are kept in fp32, which loses nothing",
}
_SYNCHRONIZATION = ("signal", "wait")  # between streams; they compute nothing
_CONVOLUTION = re.compile("corr|conv|gemm", re.IGNORECASE)  # of the kind, or in the name of fused code
_LAYER = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>.*?), Inputs: (?P<inputs>.*?), Constants: .*?, "
    r"Outputs: (?P<outputs>.*?), TacticName: .*?Metadata: (?P<metadata>.*)$",
    re.MULTILINE,
)
_LAYER_DATATYPE = re.compile(r"Datatype: (\w+)")
_ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\]")


@dataclass(frozen=True)
class Kernel:
    """One kernel of an engine.

    Attributes:
        kind: the builder's name for what it does: correlation (a convolution), maxpool, kgen (generated code), ...
        inputs: precisions of the activations it reads (fp32, fp16, int8); weights and other constants not counted.
        outputs: precisions of what it writes.
        nodes: names of the ONNX nodes it computes, or computes a part of.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]

    def __str__(self) -> str:
        reads, writes = ("+".join(dict.fromkeys(precisions)) for precisions in (self.inputs, self.outputs))
        return f"{self.name}: {self.kind} {reads} -> {writes}; {', '.join(self.nodes)}"

    @property
    def is_convolution(self) -> bool:
        return bool(
            _CONVOLUTION.search(self.kind) or (self.kind == "runtime_fusion" and _CONVOLUTION.search(self.name))
        )

    @property
    def converts(self) -> bool:
        """It is no convolution, and what it writes is of another precision than what it reads."""
        return not self.is_convolution and bool(self.inputs and self.outputs) and set(self.inputs) != set(self.outputs)


def kernels_in_log(log: str) -> list[Kernel]:
    """The kernels that TensorRT-RTX lists while it builds, with verbose logging and detailed profiling verbosity."""
    return [
        Kernel(
            layer["name"],
            layer["kind"],
            _precisions(_LAYER_DATATYPE.findall(layer["inputs"])),
            _precisions(_LAYER_DATATYPE.findall(layer["outputs"])),
            tuple(_ONNX_NODE.findall(layer["metadata"])),
        )
        for layer in _LAYER.finditer(log)
        if layer["kind"] not in _SYNCHRONIZATION
    ]


def kernels_in_inspector(information: str) -> list[Kernel]:
    """The kernels in an engine inspector's JSON, as TensorRT 10 or as 11 writes it.

    10 joins a tensor's layout and type in "Format/Datatype" ("Thirty-two wide channel vectorized row major Int8
    format", or a bare "Half"), 11 has them apart. An engine without detailed profiling verbosity gives bare names.
    """
    return [
        Kernel(
            layer["Name"],
            layer.get("LayerType", ""),
            _precisions(map(_tensor_type, layer.get("Inputs", ()))),
            _precisions(map(_tensor_type, layer.get("Outputs", ()))),
            tuple(_ONNX_NODE.findall(layer.get("Metadata", ""))),
        )
        for layer in json.loads(information).get("Layers", ())
        if isinstance(layer, dict) and layer.get("LayerType") not in _SYNCHRONIZATION
    ]


def summary(kernels: Sequence[Kernel]) -> dict[str, Any]:
    """The report's figures, as JSON values: kernels, convolutions by precision of their input, converting kernels."""
    convolutions = [kernel for kernel in kernels if kernel.is_convolution]
    return {
        "kernels": len(kernels),
        "convolutions": dict(sorted(Counter(precision_read(kernel) for kernel in convolutions).items())),
        "converting": sum(kernel.converts for kernel in kernels),
    }


def explanations(kernels: Sequence[Kernel]) -> list[str]:
    """The meaning of the figures of `summary` for this engine, a sentence each; none where they need no explanation."""
    figures = summary(kernels)
    found = []
    if figures["converting"]:
        found.append(
            f"{figures['converting']} of {figures['kernels']} kernels only convert: they change the precision or the "
            "scale of a tensor between layers and compute nothing else, so each costs time that int8 must win back"
        )
    if "int8" in figures["convolutions"]:
        found.append(
            "an engine holds compiled kernels besides the weights: int8 makes the weights smaller, but each kernel "
            "that converts adds code, so the int8 file of a small network can be larger than the fp16 file"
        )
    if "fp32" in figures["convolutions"] and len(figures["convolutions"]) > 1:
        found.append("convolutions in fp32 are those that the graph leaves in fp32, or that have no faster kernel")
    return found


def harmless(remark: str) -> str | None:
    """Why a remark of the compiler needs no action; None for a remark that may need one."""
    return next((why for pattern, why in _HARMLESS.items() if re.search(pattern, remark)), None)


def precision_read(kernel: Kernel) -> str:
    """In what precision a kernel computes: the narrowest it reads ("none" where it reads no floating-point data)."""
    return min(kernel.inputs, key=("int8", "fp16", "bf16", "fp32").index, default="none")


def _tensor_type(tensor: dict[str, Any]) -> str:
    text = str(tensor.get("Datatype") or tensor.get("DataType") or tensor.get("Format/Datatype") or "")
    return next((word for word in reversed(text.split()) if word in _PRECISIONS), "")


def _precisions(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(_PRECISIONS[name] for name in names if name in _PRECISIONS)
