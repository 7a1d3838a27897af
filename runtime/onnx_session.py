"""Starts onnxruntime. Every graph of the product, deployed or only inspected, is opened here."""

import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sodeploy.artifacts import one_line
from sodeploy.errors import UserError
from sodeploy.file_kinds import kind_of_file
from sodeploy.runtime.onnx_bytes import model_bytes

if TYPE_CHECKING:
    import onnx
    import onnxruntime


_DAMAGED = "it is damaged, or its graph contradicts itself: copy or export it again"
_LACKING = r"onnxruntime has no operator \1"
_WITHOUT = "export the network without it"
# Patterns in onnxruntime's reasons for refusing a file, the reason in plain words ("" for its own), and the next step.
_REMEDIES = (
    ("needs more memory", "", "end other processes, or take a smaller network"),
    (
        r"Opset (\d+) is under development.* till opset (\d+)",
        r"it has opset \1, and this onnxruntime reads opsets up to \2",
        "install a newer onnxruntime, or export it with an older opset",
    ),
    ("Unsupported model IR", "", "install a newer onnxruntime, or adopt it"),
    (r"No Op registered for (\w+) with", _LACKING, _WITHOUT),
    (r"([\w.]+:\w+)\(-?\d+\) is not a registered function", _LACKING, _WITHOUT),
    (
        r"Could not find an implementation for (\w+)\(\d+\) node with name '([^']*)'",
        r"onnxruntime has no kernel for the numbers of its node \2 (\1)",
        "export it with float32 numbers, or take the .bf16.sim.onnx beside a .bf16.onnx",
    ),
    (
        r"Exception during initialization: (?:\S+:\d+ )?(.*)",
        r"a node of it is not as onnxruntime can run it: \1",
        "export that part of the network in another way",
    ),
    ("External data path|Absolute path not allowed", "", "lay its data beside it, and name it by its name alone"),
    ("external data|cannot get file size|No such file", "", "lay the file that holds its weights beside it"),
)
# Where in onnxruntime's source a reason comes from, and its number.
_PLACES = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src/\S+ .*?\)(?: const)?(?: \[with .*?\])? ")


def session_options(threads: int | None = None) -> "onnxruntime.SessionOptions":
    """Options with onnxruntime's messages off; its errors become exceptions.

    Args:
        threads: CPU threads within one operator; one per core by default.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # an error is printed beside the exception that it becomes
    options.intra_op_num_threads = threads or 0
    return options


_HARMFUL_OPTIMIZERS = [
    # Where a quantized graph has fp16 scales, it makes bias scales that underflow: map MAE .020 instead of .0008. Our
    # graphs for the CPU have integer biases already and lose nothing without it.
    "WeightBiasQuantization",
    # It removes a Transpose although its result is an output of the graph, which then does not load (1.31).
    "GemmTransposeFusion",
]


def start_session(
    model: "Path | onnx.ModelProto",
    options: "onnxruntime.SessionOptions | None" = None,
    *,
    provider: str = "CPUExecutionProvider",
    provider_options: Mapping[str, Any] | None = None,
    name: str | Path | None = None,
    constants: "Iterable[onnx.TensorProto]" = (),
) -> "onnxruntime.InferenceSession":
    """Load a graph into onnxruntime.

    Args:
        model: a file, or a graph in memory (below 2 GiB, the limit of the format).
        options: of `session_options`; its defaults if left out.
        name: what an error calls the graph; the file's path by default.
        constants: initializers of a graph in memory besides its own.

    Raises:
        UserError: onnxruntime refuses the graph; its reason is given.
    """
    import onnxruntime

    source = str(model) if isinstance(model, Path) else model_bytes(model, constants)
    try:
        session = onnxruntime.InferenceSession(
            source,
            options or session_options(),
            providers=[(provider, dict(provider_options or {}))],
            disabled_optimizers=_HARMFUL_OPTIMIZERS,
            enable_fallback=0,  # it would try the CPU, and print
        )
    except Exception as error:  # onnxruntime's errors have no base class in common
        if isinstance(error, UnicodeDecodeError):  # its message repeats a name of the file
            reason = "a name in it is not UTF-8 text"
        elif isinstance(error, MemoryError):
            reason = "it needs more memory than there is"
        elif type(error).__module__.startswith("onnxruntime") or isinstance(error, RuntimeError):
            reason = _PLACES.sub("", str(error))
        else:
            raise
        shown = name or (model if isinstance(model, Path) else "the graph")
        reason, remedy = _explained(reason)
        if isinstance(model, Path) and (kind := kind_of_file(model)) is not None:
            remedy = kind.remedy or kind.of_model or "give an .onnx file"
            raise UserError(f"{shown} cannot be loaded: it is {kind.name}; {remedy}") from None
        raise UserError(f"{shown} cannot be loaded ({reason}); {remedy}") from None
    session._model_bytes = None  # kept for a change of providers, beside the weights that were read from them
    return session


def start_optimized(
    model: "Path | onnx.ModelProto", options: "onnxruntime.SessionOptions", name: str | Path | None = None
) -> "tuple[onnxruntime.InferenceSession, onnx.ModelProto]":
    """As `start_session`; also the graph that onnxruntime made of the model for this processor."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        session = start_session(model, options, name=name)
        optimized = onnx.load(options.optimized_model_filepath)
    options.optimized_model_filepath = ""
    return session, optimized


def _explained(reason: str) -> tuple[str, str]:
    """A reason of onnxruntime in one line, in plain words where they are known, and the next step."""
    for pattern, words, remedy in _REMEDIES:
        if found := re.search(pattern, reason, re.DOTALL):
            return one_line(found.expand(words) if words else reason, 400), remedy
    return one_line(reason, 400), _DAMAGED
