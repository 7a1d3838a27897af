"""The settings with which TensorRT-RTX runs an engine.

TensorRT-RTX compiles kernels for a shape when it first comes. By default it runs slower ones meanwhile, and each
context compiles anew. Here the kernels are compiled before the first run, CUDA graphs are TensorRT-RTX's own, and the
compiled kernels stay in a cache on disk (NVIDIA, "Working with RTX CUDA Graphs" and "Working with Runtime Cache").
"""

import os
from pathlib import Path
from typing import Any

from sodeploy.artifacts import atomic_write
from sodeploy.terminal import note


class RtxRuntime:
    """Makes execution contexts of one engine, which share a cache of kernels."""

    def __init__(self, rtx: Any, engine: Any, sha256: str, capability: str) -> None:
        """
        Args:
            rtx: the module tensorrt_rtx.
            sha256: the engine's, which names its cache.
        """
        self._engine = engine
        self._config = config = engine.create_runtime_config()
        config.cuda_graph_strategy = rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        config.dynamic_shapes_kernel_specialization_strategy = rtx.DynamicShapesKernelSpecializationStrategy.EAGER
        self._cache = config.create_runtime_cache()
        self._path = _folder() / f"{sha256[:16]}-{rtx.__version__}-{capability}.cache"
        self._saved = self._path.read_bytes() if self._path.is_file() else b""
        if self._saved and not self._cache.deserialize(self._saved):  # of another driver: it is made anew
            self._saved = b""
        config.set_runtime_cache(self._cache)

    def context(self) -> Any:
        """A new execution context; None where there is no room for it."""
        return self._engine.create_execution_context(self._config)

    def save(self) -> None:
        """Keep the kernels that were compiled since the cache was read."""
        kernels = bytes(self._cache.serialize())
        if kernels == self._saved:
            return
        try:
            with atomic_write(self._path) as temporary:
                temporary.write_bytes(kernels)
        except OSError as error:
            note(f"the kernels of TensorRT-RTX are not kept ({error}); the next start compiles them again")
        self._saved = kernels


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sodeploy" / "rtx"
