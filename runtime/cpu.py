"""The properties of this CPU that change the results of a graph."""

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def saturates_int8() -> bool:
    """Whether products of uint8 and int8 are added in 16 bits, which saturate: on x86 without VNNI.

    onnxruntime's kernels there (vpmaddubsw) compute other sums than the graph says where large weights meet large
    activations. False where it cannot be told: Linux alone lists what a CPU can do.
    """
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return False
    flags = next((line.split() for line in lines if line.startswith("flags")), [])  # as x86 calls them
    return bool(flags) and not {"avx512_vnni", "avx_vnni"} & set(flags)
