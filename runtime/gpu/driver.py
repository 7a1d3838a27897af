"""The NVIDIA driver and GPU of this machine, asked of the driver itself (libcuda), without CUDA, pycuda or torch.

TensorRT's runtime without a driver hands out objects whose every use is a segmentation fault, so whoever means to touch
it asks here first.
"""

import ctypes
import functools
import subprocess
from typing import NamedTuple

from sodeploy.errors import UserError

_STATE = ("driver_version", "clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR in cuda.h
# Errors of cuda.h after which "the process must be terminated and relaunched": uncorrectable ECC and NVLink errors,
# faults of a kernel, a time limit, and a context that is destroyed.
_FATAL = {214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719}


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


def lost_context() -> str | None:
    """The error that has ended the current context, for example CUDA_ERROR_ILLEGAL_ADDRESS; None while it works.

    Waits for all work of the context.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    status = driver.cuCtxSynchronize()
    if status not in _FATAL:
        return None
    name = ctypes.c_char_p()
    driver.cuGetErrorName(status, ctypes.byref(name))
    return (name.value or b"error").decode()


def pop_context() -> None:
    """Take the current context off this thread's stack."""
    ctypes.CDLL("libcuda.so.1").cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


def gpu_state() -> dict[str, str]:
    """The GPU of `current_gpu` at this moment, as nvidia-smi writes it: driver version, clocks (MHz), temperature (°C),
    power (W); {} where there is no nvidia-smi."""
    if driver_problem():
        return {}
    driver = ctypes.CDLL("libcuda.so.1")
    device, bus = ctypes.c_int(), ctypes.create_string_buffer(32)
    if driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetPCIBusId(bus, len(bus), device):
        return {}
    # By its place on the bus: nvidia-smi numbers GPUs in another order, and knows nothing of CUDA_VISIBLE_DEVICES.
    query = ["nvidia-smi", f"--id={bus.value.decode()}", f"--query-gpu={','.join(_STATE)}"]
    try:
        run = subprocess.run([*query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [value.strip() for value in run.stdout.strip().split(",")]
    return dict(zip(_STATE, values, strict=True)) if len(values) == len(_STATE) else {}
