"""This CPU: its name, and the properties that change the results of a graph."""

import contextlib
import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def saturates_int8() -> bool:
    """Whether products of uint8 and int8 are added in 16 bits, which saturate: on x86 without VNNI.

    onnxruntime's kernels there (vpmaddubsw) compute other sums than the graph says where large weights meet large
    activations. False where it cannot be told: Linux alone lists what a CPU can do.
    """
    flags = _flags()
    return bool(flags) and not {"avx512_vnni", "avx_vnni"} & flags


# Flags of Linux for x86 -> the name of the instructions that multiply small integers or bf16.
_MATRIX = {"avx512_vnni": "VNNI", "avx_vnni": "VNNI", "amx_int8": "AMX int8", "amx_bf16": "AMX bf16"}


def matrix_instructions() -> list[str]:
    """The instructions of this CPU that int8 or bf16 layers gain by: VNNI, AMX int8, AMX bf16. Empty where unknown."""
    return list(dict.fromkeys(name for flag, name in _MATRIX.items() if flag in _flags()))


def _flags() -> set[str]:
    """The features of an x86 CPU as Linux names them; empty elsewhere."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.split() for line in lines if line.startswith("flags")), []))


def processor_name() -> str:
    """The model name of the CPU; its architecture where that is not known."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in _CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
    return name
