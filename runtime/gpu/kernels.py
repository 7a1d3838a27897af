"""Compile the CUDA kernels: once per GPU architecture, kept in a cache or shipped beside the sources.

    python runtime/gpu/kernels.py --arch sm86 --arch sm90    # for an image without a compiler: cubins beside the .cu

Without a shipped or cached cubin `nvcc` makes it, or NVRTC where there is no toolkit. A cubin's name carries a digest
of the sources, so an old one is never taken for the present kernels.
"""

import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from sodeploy import command_line, terminal
from sodeploy.artifacts import atomic_write
from sodeploy.errors import UserError

FOLDER = Path(__file__).resolve().parents[1] / "kernels"
MODULES = ("preprocess", "postprocess")
OPTIONS = ["-fmad=false"]  # a fused multiply-add rounds once where cv2 and numpy round twice
_INSTALL = "install the CUDA toolkit (nvcc), or: pip install cuda-bindings nvidia-cuda-nvrtc"


def cubin(module: str, capability: str) -> bytes:
    """Machine code of `module`, one of MODULES, for GPUs of `capability`, for example "sm90".

    Raises:
        UserError: there is none yet, and no compiler to make it, or the compiler does not know the capability.
    """
    name = _file_name(module, capability)
    for folder in (FOLDER, _cache()):
        if (folder / name).is_file():
            return (folder / name).read_bytes()
    code = _compile(module, capability)
    with atomic_write(_cache() / name) as temporary:
        temporary.write_bytes(code)
    return code


def kernel_names(module: str) -> list[str]:
    """The kernels that `module` exports."""
    return re.findall(r'extern "C" __global__ void (\w+)\(', (FOLDER / f"{module}.cu").read_text())


def ship(capabilities: list[str], folder: Path = FOLDER) -> list[Path]:
    """Compile all kernels for each capability into `folder`; returns the files.

    Raises:
        UserError: as `cubin`.
    """
    paths = []
    for capability in capabilities:
        for module in MODULES:
            code = _compile(module, capability)
            paths.append(folder / _file_name(module, capability))
            with atomic_write(paths[-1]) as temporary:
                temporary.write_bytes(code)
    return paths


def _file_name(module: str, capability: str) -> str:
    return f"{module}-{_digest()}-{capability}.cubin"


@functools.cache
def _digest() -> str:
    digest = hashlib.sha256(" ".join(OPTIONS).encode())
    for path in sorted([*FOLDER.glob("*.cu"), *FOLDER.glob("*.cuh")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sodeploy" / "kernels"


def _compile(module: str, capability: str) -> bytes:
    architecture = f"sm_{capability.removeprefix('sm')}"
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    return _by_nvcc(nvcc, module, architecture) if nvcc else _by_nvrtc(module, architecture)


def _by_nvcc(nvcc: str, module: str, architecture: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "kernels.cubin"
        source = FOLDER / f"{module}.cu"
        command = [nvcc, "-cubin", f"-arch={architecture}", *OPTIONS, str(source), "-o", str(code)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(_failed("nvcc", architecture, done.stderr))
        return code.read_bytes()


def _by_nvrtc(module: str, architecture: str) -> bytes:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError):  # the bindings are there, the library they load is not
        raise UserError(
            f"the CUDA kernels are not compiled for {architecture} and no compiler is here; {_INSTALL}"
        ) from None

    headers = sorted(FOLDER.glob("*.cuh"))
    source = (FOLDER / f"{module}.cu").read_bytes()
    texts, names = [path.read_bytes() for path in headers], [path.name.encode() for path in headers]
    _, program = nvrtc.nvrtcCreateProgram(source, f"{module}.cu".encode(), len(headers), texts, names)
    options = [option.encode() for option in (f"-arch={architecture}", *OPTIONS)]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = b" " * nvrtc.nvrtcGetProgramLogSize(program)[1]
        nvrtc.nvrtcGetProgramLog(program, log)
        raise UserError(_failed("NVRTC", architecture, log.rstrip(b"\0 ").decode() or str(status)))
    code = b" " * nvrtc.nvrtcGetCUBINSize(program)[1]
    nvrtc.nvrtcGetCUBIN(program, code)
    nvrtc.nvrtcDestroyProgram(program)
    return code


def _failed(compiler: str, architecture: str, message: str) -> str:
    reason = " ".join(message.split()) or "no reason given"
    return f"{compiler} does not compile the CUDA kernels for {architecture} ({reason}); update it, or {_INSTALL}"


def main(
    arch: Annotated[list[str], typer.Option(help="compute capability, for example sm90; may be given several times")],
    output: Annotated[
        Path | None, typer.Option(help="folder for the cubins; by default the folder that the runtime reads")
    ] = None,
) -> None:
    """Compile the CUDA kernels ahead of time, for machines without a compiler."""
    for path in ship(arch, output or FOLDER):
        terminal.results.print(str(path), soft_wrap=True)


if __name__ == "__main__":
    command_line.run(main)
