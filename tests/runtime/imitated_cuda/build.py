"""Build the imitation of libcuda.so.1 (driver.c) against CUDA's own header.

Every function of the header that driver.c lacks becomes one that answers CUDA_ERROR_NOT_SUPPORTED, because pycuda is
linked with most of them.
"""

import importlib.util
import re
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("driver.c")
_NOT_SUPPORTED = 801


def cuda_headers() -> Path | None:
    """The folder of cuda.h: of a toolkit, or of the wheel nvidia-cuda-runtime; None where there is neither."""
    folders = [Path("/usr/local/cuda/include")]
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or () if spec else ():
        folders += sorted(Path(root).glob("cu*/include"))
    return next((folder for folder in folders if (folder / "cuda.h").is_file()), None)


def build_driver(folder: Path, headers: Path) -> Path:
    """Write `folder`/libcuda.so.1; returns the folder, which then belongs on LD_LIBRARY_PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "driver.o"
    _gcc("-O1", "-fPIC", "-Wall", "-Werror", f"-I{headers}", "-c", SOURCE, "-o", written)
    have = set(re.findall(r"\b(cu[A-Z]\w*)\(", SOURCE.read_text()))
    text = (headers / "cuda.h").read_text() + (headers / "cudaProfiler.h").read_text()
    declared = set(re.findall(r"CUresult CUDAAPI\s+(cu[A-Z]\w*)\s*\(", text))
    versions = dict(re.findall(r"# *define +(cu[A-Z]\w*) +(?:__CUDA_API_PT(?:DS|SZ)\()?(cu[A-Z]\w*_v\d+)\b", text))
    names = (declared | set(versions.values()) | set(versions)) - have
    rest = folder / "rest.c"
    lines = [f"int {name}(void) {{ return {_NOT_SUPPORTED}; }}" for name in sorted(names)]
    table = [f'{{"{name}", "{version}"}},' for name, version in sorted(versions.items()) if version in have]
    rest.write_text("\n".join([*lines, "const char* const versioned_names[][2] = {", *table, "{0, 0}};"]) + "\n")
    _gcc("-O1", "-fPIC", "-w", "-c", rest, "-o", folder / "rest.o")
    library = folder / "libcuda.so.1"
    _gcc("-shared", "-Wl,-soname,libcuda.so.1", written, folder / "rest.o", "-o", library, "-ldl", "-lpthread")
    return folder


def _gcc(*arguments: str | Path) -> None:
    subprocess.run(["gcc", *map(str, arguments)], check=True, capture_output=True, text=True)
