"""Starts onnxruntime. Every graph of the product, deployed or only inspected, is opened here."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sodeploy.artifacts import one_line
from sodeploy.errors import UserError

if TYPE_CHECKING:
    import onnx
    import onnxruntime


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
        raise UserError(f"{shown} cannot be loaded ({reason}); export it again") from None
