"""Compile the CUDA kernels: once per GPU architecture, kept in a cache or shipped beside the sources.

    python runtime/gpu/kernels.py --arch sm86 --arch sm90    # for an image without a compiler: files beside the .cu

A cubin runs on GPUs of its own compute capability alone. So PTX is shipped beside the cubins, which the driver of any
GPU from Turing on turns into machine code. Without a shipped or cached file `nvcc` makes a cubin, or NVRTC where `nvcc`
is missing or does not work. A file's name carries a digest of the sources, so an old one is never taken for the present
kernels.
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
PTX = "compute_75"  # Turing, the oldest that CUDA 13 compiles for
_INSTALL = "install the CUDA toolkit (nvcc), or: pip install cuda-bindings nvidia-cuda-nvrtc"


def machine_code(module: str, capability: str) -> bytes:
    """Code of `module`, one of MODULES, that runs on GPUs of `capability`, for example "sm90": a cubin, or PTX.

    Raises:
        UserError: there is none yet, and no compiler to make it, or the compiler does not know the capability.
    """
    cubin, ptx = _file_name(module, capability), _file_name(module, PTX)
    for path in (FOLDER / cubin, _cache() / cubin, FOLDER / ptx):
        if path.is_file():
            return path.read_bytes()
    code = compile_file(FOLDER / f"{module}.cu", capability)
    with atomic_write(_cache() / cubin) as temporary:
        temporary.write_bytes(code)
    return code


def kernel_names(module: str) -> list[str]:
    """The kernels that `module` exports."""
    return re.findall(r'extern "C" __global__ void (\w+)\(', (FOLDER / f"{module}.cu").read_text())


def ship(capabilities: list[str], folder: Path = FOLDER) -> list[Path]:
    """Compile all kernels for each capability, and to PTX for the others, into `folder`; returns the files.

    Raises:
        UserError: as `machine_code`.
    """
    paths = []
    for capability in [*capabilities, PTX]:
        for module in MODULES:
            code = compile_file(FOLDER / f"{module}.cu", capability)
            paths.append(folder / _file_name(module, capability))
            with atomic_write(paths[-1]) as temporary:
                temporary.write_bytes(code)
    return paths


def _file_name(module: str, capability: str) -> str:
    return f"{module}-{_digest()}-{capability}.{'ptx' if capability == PTX else 'cubin'}"


@functools.cache
def _digest() -> str:
    digest = hashlib.sha256(" ".join(OPTIONS).encode())
    for path in sorted([*FOLDER.glob("*.cu"), *FOLDER.glob("*.cuh")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sodeploy" / "kernels"


def compile_file(source: Path, capability: str) -> bytes:
    """A cubin of a .cu file that includes headers of kernels/ only; PTX for the virtual architecture PTX.

    Raises:
        UserError: as `machine_code`.
    """
    architecture = PTX if capability == PTX else f"sm_{capability.removeprefix('sm')}"
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        return _by_nvrtc(source, architecture)
    try:
        return _by_nvcc(nvcc, source, architecture)
    except UserError as error:  # for example there is no host compiler, which NVRTC does not need
        try:
            return _by_nvrtc(source, architecture)
        except UserError:
            raise error from None


def _by_nvcc(nvcc: str, source: Path, architecture: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "kernels"
        kind = "-ptx" if architecture == PTX else "-cubin"
        command = [nvcc, kind, f"-arch={architecture}", *OPTIONS, f"-I{FOLDER}", str(source), "-o", str(code)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(_failed("nvcc", architecture, done.stderr))
        return code.read_bytes()


def _by_nvrtc(source: Path, architecture: str) -> bytes:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError):  # the bindings are there, the library they load is not
        raise UserError(
            f"the CUDA kernels are not compiled for {architecture} and no compiler is here; {_INSTALL}"
        ) from None

    headers = sorted(FOLDER.glob("*.cuh"))
    texts, names = [path.read_bytes() for path in headers], [path.name.encode() for path in headers]
    _, program = nvrtc.nvrtcCreateProgram(source.read_bytes(), source.name.encode(), len(headers), texts, names)
    options = [option.encode() for option in (f"-arch={architecture}", *OPTIONS)]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = b" " * nvrtc.nvrtcGetProgramLogSize(program)[1]
        nvrtc.nvrtcGetProgramLog(program, log)
        raise UserError(_failed("NVRTC", architecture, log.rstrip(b"\0 ").decode() or str(status)))
    size, get = (
        (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
        if architecture == PTX
        else (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
    )
    code = b" " * size(program)[1]
    get(program, code)
    nvrtc.nvrtcDestroyProgram(program)
    return code


def _failed(compiler: str, architecture: str, message: str) -> str:
    reason = " ".join(message.split()) or "no reason given"
    return f"{compiler} does not compile the CUDA kernels for {architecture} ({reason}); update it, or {_INSTALL}"


def main(
    arch: Annotated[list[str], typer.Option(help="compute capability, for example sm90; may be given several times")],
    output: Annotated[
        Path | None, typer.Option(help="folder for the files; by default the folder that the runtime reads")
    ] = None,
) -> None:
    """Compile the CUDA kernels ahead of time, for machines without a compiler."""
    for path in ship(arch, output or FOLDER):
        terminal.results.print(str(path), soft_wrap=True)


if __name__ == "__main__":
    command_line.run(main)
