"""Starts onnxruntime. Every graph of the product, deployed or only inspected, is opened here."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sodeploy.artifacts import one_line
from sodeploy.errors import UserError
from sodeploy.file_kinds import kind_of_file

if TYPE_CHECKING:
    import onnx
    import onnxruntime


_DAMAGED = "it is damaged, or its graph contradicts itself: copy or export it again"
# Texts in onnxruntime's reasons for refusing a file, and the next steps.
_REMEDIES = (
    ("needs more memory", "end other processes, or take a smaller network"),
    (
        "Unsupported model IR|opset .*under development|only \\*guarantees\\*",
        "install a newer onnxruntime, or adopt it",
    ),
    ("No Op registered|not a registered function", "it has an operator that onnxruntime lacks: export it without that"),
    (
        "NOT_IMPLEMENTED|Could not find an implementation",
        "export it with float32 numbers, or take the .bf16.sim.onnx beside a .bf16.onnx",
    ),
    ("External data path|Absolute path not allowed", "lay its data beside it, and name it by its name alone"),
    ("external data|cannot get file size|No such file", "lay the file that holds its weights beside it"),
)


def session_options(threads: int | None = None) -> "onnxruntime.SessionOptions":
    """Options with onnxruntime's warnings off; its errors become exceptions.

    Args:
        threads: CPU threads within one operator; one per core by default.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    return options


def start_session(
    model: "Path | onnx.ModelProto",
    options: "onnxruntime.SessionOptions | None" = None,
    *,
    provider: str = "CPUExecutionProvider",
    provider_options: Mapping[str, Any] | None = None,
    disabled_optimizers: Sequence[str] = (),
    name: str | Path | None = None,
) -> "onnxruntime.InferenceSession":
    """Load a graph into onnxruntime.

    Args:
        model: a file, or a graph in memory (below 2 GiB, the limit of the format).
        options: of `session_options`; its defaults if left out.
        name: what an error calls the graph; the file's path by default.

    Raises:
        UserError: onnxruntime refuses the graph; its reason is given.
    """
    import onnxruntime

    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(
            source,
            options or session_options(),
            providers=[(provider, dict(provider_options or {}))],
            disabled_optimizers=list(disabled_optimizers),
        )
    except Exception as error:  # onnxruntime's errors have no base class in common
        if isinstance(error, UnicodeDecodeError):  # its message repeats a name of the file
            reason = "a name in it is not UTF-8 text"
        elif isinstance(error, MemoryError):
            reason = "it needs more memory than there is"
        elif type(error).__module__.startswith("onnxruntime"):
            reason = one_line(error, 400)
        else:
            raise
        shown = name or (model if isinstance(model, Path) else "the graph")
        remedy = next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, reason)), _DAMAGED)
        if isinstance(model, Path) and (kind := kind_of_file(model)) is not None:
            remedy = kind.remedy or kind.of_model or "give an .onnx file"
            raise UserError(f"{shown} cannot be loaded: it is {kind.name}; {remedy}") from None
        raise UserError(f"{shown} cannot be loaded ({reason}); {remedy}") from None
