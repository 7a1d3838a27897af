"""onnxruntime on an NVIDIA GPU: the libraries it needs, and the nodes it leaves on the CPU."""

import contextlib
import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime

ASSIGNMENT_OPTION = ("session.record_ep_graph_assignment_info", "1")
CUDA_OPTIONS = {
    "use_tf32": "0",  # TF32, the default, keeps 10 bits of a float32's 23: no baseline for fp16 and int8
    # The default tries every algorithm for every new shape. Two sessions that do so at a time fail with "operation not
    # permitted when stream is capturing" (cuDNN 9), and disturb each other's times. On an H200, U2-Netp in fp16 took
    # twice the time and twice the memory with the algorithms that it chose.
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kSameAsRequested",  # the default doubles the memory at every extension
}
_NO_MESSAGES = 4  # severity "fatal"
# The CUDA provider has these for every number. It leaves them to the CPU where they compute shapes, a few bytes each.
_OF_SHAPES = {"Shape", "Gather", "Unsqueeze", "Squeeze", "Concat", "Slice", "Cast", "Add", "Sub", "Mul", "Div", "Floor"}


def prepare_cuda() -> None:
    """Load the CUDA libraries, and silence onnxruntime's logger of the process.

    That one prints what cuDNN cannot do, for every convolution that then takes another algorithm. An error that counts
    becomes an exception.
    """
    import onnxruntime

    preload_libraries()
    onnxruntime.set_default_logger_severity(_NO_MESSAGES)


def preload_libraries() -> None:
    """Load CUDA and cuDNN from the nvidia-* wheels, where the system has none.

    onnxruntime looks into its own site-packages. In another one they may lie beside torch.
    """
    import onnxruntime

    if not hasattr(onnxruntime, "preload_dlls"):
        return
    own = Path(onnxruntime.__file__).resolve().parents[1]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its search; a GPU that is missing is said later
        onnxruntime.preload_dlls()
        for folder in library_folders():
            if own not in folder.parents:
                onnxruntime.preload_dlls(directory=str(folder))


def library_folders() -> list[Path]:
    """The folders with libraries of the nvidia-* wheels, in every site-packages on the path."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root).resolve() for root in (spec.submodule_search_locations or ())] if spec else []
    return [folder for root in roots for folder in sorted(root.glob("*/lib")) if any(folder.glob("lib*.so*"))]


def nodes_on_cpu(session: "onnxruntime.InferenceSession") -> list[str]:
    """The nodes of a session that the CPU computes, as "Resize /up/Resize", without the arithmetic of shapes.

    Their tensors cross the bus at every run. [] for an onnxruntime before 1.24, which does not tell.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return []
    return [
        f"{node.op_type} {node.name}"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == "CPUExecutionProvider"
        for node in part.get_nodes()
        if node.op_type not in _OF_SHAPES
    ]
