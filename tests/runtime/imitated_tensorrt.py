"""A module that answers like TensorRT's, for tests of the session logic where there is no GPU.

An engine is JSON: its shapes, its dtype, and what goes wrong. It runs on host memory, so only on an emulated device or
an imitated driver. That its classes have no method which the real ones lack is itself tested (test_engine_session.py).
"""

import ctypes
import enum
import json
from typing import Any

import numpy as np

__version__ = "11.4.0.106"


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

    def create_execution_context(self) -> "IExecutionContext | None":
        self._contexts -= 1
        if self._contexts < 0:
            self._logger.log(ILogger.ERROR, "CUDA out of memory")
            return None
        return IExecutionContext(self._facts, self._logger)


class IExecutionContext:
    """Runs saliency = clip(0.3 R + 0.4 G + 0.3 B, 0, 1); facts["fails_on"] is a batch size at which it does not.

    facts["value"] is what an engine that is wrong writes to every pixel.
    """

    def __init__(self, facts: dict[str, Any], logger: ILogger) -> None:
        self._facts, self._logger = facts, logger
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        bounds = zip(self._facts["least"], shape, self._facts["most"], strict=True)
        return all(least <= side <= most for least, side, most in bounds)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return name in (self._facts["input"], self._facts["output"])

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self._shape[0] == self._facts.get("fails_on"):
            self._logger.log(ILogger.ERROR, "Error Code 1: Cuda Runtime (an illegal memory access was encountered)")
            return False
        dtype = {"FLOAT": np.float32, "HALF": np.float16}[self._facts["dtype"]]
        count, _, height, width = self._shape
        image = _array(self._addresses[self._facts["input"]], self._shape, dtype).astype(np.float32)
        saliency = np.clip(np.einsum("nchw,c->nhw", image, np.float32([0.3, 0.4, 0.3])), 0, 1)
        saliency = np.full_like(saliency, self._facts.get("value")) if "value" in self._facts else saliency
        _array(self._addresses[self._facts["output"]], (count, height, width), dtype)[:] = saliency
        return True


def _array(address: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype).reshape(shape)
