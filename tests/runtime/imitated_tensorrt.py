"""A module that answers like TensorRT's, for tests of the session logic where there is no TensorRT.

An engine is JSON: its shapes, its dtype, and what goes wrong. Its network is a kernel (imitated_network.cu) that runs
on a stream of whatever device `device` is: emulated, on an imitated driver, or a real GPU. That its classes have no
method which the real ones lack is itself tested (test_engine_session.py).
"""

import ctypes
import enum
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from emulated_device import EmulatedDevice

from sodeploy.runtime.gpu import kernels

__version__ = "11.4.0.106"
device: Any = None  # a test sets it
NETWORK = Path(__file__).with_name("imitated_network.cu")


class CudaGraphStrategy(enum.Enum):
    DISABLED, WHOLE_GRAPH_CAPTURE = range(2)


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY, EAGER, NONE = range(3)


class IRuntimeCache:
    def __init__(self) -> None:
        self._kernels = b""

    def serialize(self) -> bytes:
        return self._kernels

    def deserialize(self, blob: bytes) -> bool:
        self._kernels = blob if blob.startswith(b"kernels") else b""
        return bool(self._kernels)


class IRuntimeConfig:
    cuda_graph_strategy = CudaGraphStrategy.DISABLED
    dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def __init__(self) -> None:
        self._cache = IRuntimeCache()

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: int, message: str) -> None:
        raise NotImplementedError


class Runtime:
    engine_host_code_allowed = False

    _driver_is_too_old = False

    def __init__(self, logger: ILogger) -> None:
        if self._driver_is_too_old:
            logger.log(ILogger.WARNING, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "ICudaEngine | None":
        try:
            return ICudaEngine(json.loads(serialized_engine), self._logger)
        except ValueError:
            self._logger.log(ILogger.ERROR, "Serialization assertion magicTagRead == kMAGIC_TAG failed.")
            return None


class ICudaEngine:
    """facts: input, output, least, most, dtype, and optionally contexts (how many there is room for)."""

    def __init__(self, facts: dict[str, Any], logger: ILogger) -> None:
        self._facts, self._logger = facts, logger
        self.num_io_tensors = 2
        self._contexts = facts.get("contexts", 100)

    def get_tensor_name(self, index: int) -> str:
        return str(self._facts[("input", "output")[index]])

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self._facts["dtype"]]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        return [self._facts["least"], self._facts["least"], self._facts["most"]]

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: IRuntimeConfig | None = None) -> "IExecutionContext | None":
        self._contexts -= 1
        if self._contexts < 0:
            self._logger.log(ILogger.ERROR, "CUDA out of memory")
            return None
        return IExecutionContext(self._facts, self._logger, runtime_config)


class IExecutionContext:
    """Runs saliency = clip(0.3 R + 0.4 G + 0.3 B, 0, 1).

    facts["fails_on"] is a batch size at which it does not run, facts["fails_at"] the number of a run that does not,
    facts["breaks_on"] a batch size that also ends the context of an emulated device; facts["value"] is what an engine
    that is wrong writes to every pixel,
    facts["makes"] the shape of its output behind the batch.

    Graphs of another shape than the context's are wrong, as CUDA's documentation and TensorRT's say: on an emulated
    device they give NaN.
    """

    def __init__(self, facts: dict[str, Any], logger: ILogger, config: IRuntimeConfig | None) -> None:
        self._facts, self._logger, self._config = facts, logger, config
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()
        self._runs = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = tuple(shape)
        bounds = zip(self._facts["least"], shape, self._facts["most"], strict=True)
        return all(least <= side <= most for least, side, most in bounds)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self._shape[0], *self._facts.get("makes", (1, *self._shape[2:])))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return name in (self._facts["input"], self._facts["output"])

    def execute_async_v3(self, stream_handle: int) -> bool:
        shape = self._shape
        self._runs += 1
        fails = self._runs == self._facts.get("fails_at")
        if fails or shape[0] in (self._facts.get("fails_on"), self._facts.get("breaks_on")):
            if shape[0] == self._facts.get("breaks_on"):
                device.lost = "CUDA_ERROR_ILLEGAL_ADDRESS"
            self._logger.log(ILogger.ERROR, "Error Code 1: Cuda Runtime (an illegal memory access was encountered)")
            return False
        if self._config is not None:
            self._config._cache._kernels = b"kernels for " + str(shape).encode()
        pixels = int(np.prod(shape[2:]))
        value = self._facts.get("value", -1.0)
        kernel = {"FLOAT": "imitated_network_f32", "HALF": "imitated_network_f16"}[self._facts["dtype"]]
        grid, block = (-(-pixels * shape[0] // 128), 1, 1), (128, 1, 1)

        def arguments(value: float) -> tuple[np.generic, ...]:
            places = [np.uint64(self._addresses[self._facts[side]]) for side in ("input", "output")]
            return (*places, np.int32(pixels), np.int32(shape[0]), np.float32(value))

        if isinstance(device, EmulatedDevice):
            stream, right, wrong = device.streams[stream_handle], arguments(value), arguments(np.nan)
            stream.do(lambda: _emulated(kernel, grid, block, right if self._shape == shape else wrong))
        else:
            _launch(kernel, grid, block, arguments(value), stream_handle)
        return True


def _emulated(kernel: str, grid: Any, block: Any, arguments: tuple[np.generic, ...]) -> None:
    device.launch(kernel, grid, block, arguments, device.stream())


_functions: dict[str, ctypes.c_void_p] = {}


def _launch(kernel: str, grid: Any, block: Any, arguments: tuple[np.generic, ...], stream: int) -> None:
    """As TensorRT does it: by the driver itself, whatever Python binding the session uses."""
    driver = ctypes.CDLL("libcuda.so.1")
    if kernel not in _functions:
        imitated = "IMITATED_CUDA_KERNELS" in os.environ
        code = b"" if imitated else kernels.compile_file(NETWORK, device.capability)
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        assert driver.cuModuleLoadData(ctypes.byref(module), code) == 0
        assert driver.cuModuleGetFunction(ctypes.byref(function), module, kernel.encode()) == 0
        _functions[kernel] = function
    values = [np.array(argument) for argument in arguments]
    pointers = (ctypes.c_void_p * len(values))(*[value.ctypes.data for value in values])
    status = driver.cuLaunchKernel(_functions[kernel], *grid, *block, 0, ctypes.c_void_p(stream), pointers, None)
    assert status == 0, f"cuLaunchKernel: {status}"
