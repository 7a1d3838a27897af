"""The NVIDIA driver and GPU of this machine, asked of the driver itself (libcuda), without CUDA, pycuda or torch.

TensorRT's runtime without a driver hands out objects whose every use is a segmentation fault, so whoever means to touch
it asks here first.
"""

import ctypes
import functools
from typing import NamedTuple

from sodeploy.errors import UserError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR in cuda.h


class Gpu(NamedTuple):
    """A GPU: its product name and its compute capability, for example ("NVIDIA L4", "sm89")."""

    name: str
    capability: str


@functools.cache
def driver_problem() -> str | None:
    """Why no GPU can be used here, in a few words; None where one can."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver is installed (libcuda.so.1 is missing)"
    status = driver.cuInit(0)
    if status:
        return f"the NVIDIA driver finds no usable GPU (cuInit returned {status}; see nvidia-smi)"
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver sees no GPU (see nvidia-smi and CUDA_VISIBLE_DEVICES)"
    return None


def current_gpu() -> Gpu:
    """The first GPU that CUDA_VISIBLE_DEVICES leaves visible.

    Raises:
        UserError: there is none, or no driver.
    """
    problem = driver_problem()
    if problem:
        raise UserError(f"a GPU is needed, but {problem}")
    driver = ctypes.CDLL("libcuda.so.1")
    device = ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    major, minor = ctypes.c_int(), ctypes.c_int()
    failed = (
        driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetName(name, len(name), device)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    )
    if failed:
        raise UserError(f"the NVIDIA driver does not describe its GPU (error {failed}); see nvidia-smi")
    return Gpu(name.value.decode(), f"sm{major.value}{minor.value}")
