"""One arena for the sessions of onnxruntime that share it, where many of them each run a few times.

An arena of each session's own keeps what the others could use. Without an arena the system zeroes every new block.
"""

import functools
from typing import TYPE_CHECKING

import numpy as np

from sodeploy.runtime.onnx_session import session_options, start_session

if TYPE_CHECKING:
    import onnxruntime


def share_memory(options: "onnxruntime.SessionOptions") -> "onnxruntime.SessionOptions":
    """Let a session take its memory from the shared arena, which keeps it until `free_shared_memory`.

    Returns:
        `options`, changed.
    """
    _start_arena()
    options.enable_cpu_mem_arena = True
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


def free_shared_memory() -> None:
    """Give the memory that no session and no result holds back to the system."""
    import onnx
    import onnxruntime

    # onnxruntime frees an arena at the end of a run, so something has to run.
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Abs", ["x"], ["y"])], "abs", values[:1], values[1:])
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 13)])
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    session = start_session(model, share_memory(session_options(threads=1)))
    session.run(None, {"x": np.zeros(1, np.float32)}, options)


@functools.cache
def _start_arena() -> None:
    import onnxruntime as ort

    where = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # It grows by what is asked for; by default it grows by powers of two.
    ort.create_and_register_allocator(where, ort.OrtArenaCfg({"arena_extend_strategy": 1}))
