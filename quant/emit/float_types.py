"""The short float types that a graph may compute in. A new one costs one entry here and two in `targets.TARGETS`."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from sodeploy.quant.int8 import LARGEST_FP16

FloatName = Literal["fp16", "bf16"]
FP16_ALONE: tuple[FloatName, ...] = ("fp16",)


@dataclass(frozen=True)
class FloatType:
    """A float type of 16 bits.

    Attributes:
        element: ONNX's number of the type.
        text: ONNX's text for the type in a schema.
        largest: the largest finite number.
        opset: the first opset in which ONNX defines convolutions for it.
        refused: operators that TensorRT-RTX refuses in it.
    """

    name: FloatName
    element: int
    text: str
    largest: float
    opset: int
    refused: frozenset[str] = frozenset()

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """The values in this type, rounded to nearest; values beyond its largest number become that number."""
        with np.errstate(over="ignore"):
            return np.clip(values, -self.largest, self.largest).astype(self._dtype)

    def tensor(self, values: np.ndarray, name: str) -> onnx.TensorProto:
        """A constant with the values in this type."""
        return numpy_helper.from_array(self.rounded(values), name)

    @property
    def _dtype(self) -> np.dtype:
        if self.element == TensorProto.FLOAT16:
            return np.dtype(np.float16)
        import ml_dtypes  # here, so that a build without bf16 does not need it

        return np.dtype(ml_dtypes.bfloat16)


FP16 = FloatType("fp16", TensorProto.FLOAT16, "tensor(float16)", LARGEST_FP16, opset=1)
BF16 = FloatType(
    "bf16",
    TensorProto.BFLOAT16,
    "tensor(bfloat16)",
    (2 - 2.0**-7) * 2.0**127,
    opset=22,
    # 1.7.1 says of it: "Could not infer output types for operation: deconv".
    refused=frozenset({"ConvTranspose"}),
)
