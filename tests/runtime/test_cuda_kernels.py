"""Compiling the CUDA kernels; runs without a GPU."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sodeploy.errors import UserError
from sodeploy.runtime.gpu import kernels as cuda_kernels
from sodeploy.runtime.gpu import processing as cuda_processing

ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "sm_121"]
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sodeploy/kernels"


@needs_nvcc
@pytest.mark.parametrize("module", cuda_kernels.MODULES)
def test_every_architecture_compiles_without_a_warning(module: str, tmp_path: Path) -> None:
    targets = [f"-gencode=arch={a.replace('sm', 'compute')},code={a}" for a in ARCHITECTURES]
    source = cuda_kernels.FOLDER / f"{module}.cu"
    command = ["nvcc", "-fatbin", "-Werror", "all-warnings", *targets, str(source), "-o", str(tmp_path / "all.fatbin")]
    done = subprocess.run([*command, *cuda_kernels.OPTIONS], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@needs_nvcc
def test_multiplications_and_additions_are_rounded_one_by_one() -> None:
    command = ["nvcc", "-ptx", "-arch=sm_90", str(cuda_kernels.FOLDER / "preprocess.cu"), "-o", "-"]
    fused = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ours = subprocess.run([*command, *cuda_kernels.OPTIONS], capture_output=True, text=True, check=True).stdout
    assert "fma.rn.f32" in fused
    assert "mul.f32" in ours or "mul.rn.f32" in ours
    assert "fma.rn.f32" not in ours


@needs_nvcc
@pytest.mark.parametrize("module", cuda_kernels.MODULES)
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
def test_no_kernel_spills_registers_to_memory(module: str, architecture: str, tmp_path: Path) -> None:
    command = ["nvcc", "-cubin", f"-arch={architecture}", "-Xptxas", "-v", *cuda_kernels.OPTIONS]
    command += [str(cuda_kernels.FOLDER / f"{module}.cu"), "-o", str(tmp_path / "kernels.cubin")]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", report)
    assert frames == [("0", "0")] * len(cuda_kernels.kernel_names(module))


def test_the_host_knows_how_much_a_block_holds() -> None:
    source = "".join((cuda_kernels.FOLDER / f"{module}.cu").read_text() for module in cuda_kernels.MODULES)
    for name, value in {
        "STAGE_BYTES": cuda_processing._STAGE_PIECES * 16,
        "STRIPES": cuda_processing._STRIPES,
        "PATCH_VALUES": cuda_processing._PATCH_VALUES,
    }.items():
        assert f"#define {name} {value} " in source


@needs_nvcc
def test_a_cubin_is_made_once_and_then_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = cuda_kernels.machine_code("preprocess", "sm89")
    assert code.startswith(b"\x7fELF")
    (file,) = cache.iterdir()
    assert file.name.endswith("-sm89.cubin")
    monkeypatch.setattr(cuda_kernels, "compile_file", lambda *_: pytest.fail("compiled again"))
    assert cuda_kernels.machine_code("preprocess", "sm89") == code


@needs_nvcc
def test_other_sources_are_another_cubin(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kernels"
    shutil.copytree(cuda_kernels.FOLDER, folder)
    monkeypatch.setattr(cuda_kernels, "FOLDER", folder)
    cuda_kernels._digest.cache_clear()
    cuda_kernels.machine_code("preprocess", "sm89")
    (folder / "image.cuh").write_text((folder / "image.cuh").read_text() + "// changed\n")
    cuda_kernels._digest.cache_clear()
    cuda_kernels.machine_code("preprocess", "sm89")
    cuda_kernels._digest.cache_clear()
    assert len(list(cache.iterdir())) == 2


@needs_nvcc
def test_shipped_cubins_need_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kernels"
    shutil.copytree(cuda_kernels.FOLDER, folder)
    monkeypatch.setattr(cuda_kernels, "FOLDER", folder)
    assert len(cuda_kernels.ship(["sm86"], folder)) == 2 * len(cuda_kernels.MODULES)
    monkeypatch.setattr(cuda_kernels, "compile_file", lambda *_: pytest.fail("compiled again"))
    assert cuda_kernels.machine_code("postprocess", "sm86").startswith(b"\x7fELF")
    for module in cuda_kernels.MODULES:  # for every other GPU there is PTX, which contracts nothing either
        ptx = cuda_kernels.machine_code(module, "sm120").decode()
        assert ".target sm_75" in ptx
        assert not re.search(r"\b(mul|add|sub)(\.ftz)?\.f32", ptx)
        assert all(name in ptx for name in cuda_kernels.kernel_names(module))


@needs_nvcc
def test_nvrtc_takes_over_where_nvcc_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """nvcc needs a host compiler, NVRTC does not."""
    monkeypatch.setenv("PATH", str(Path(shutil.which("nvcc") or "").parent))  # no g++ there
    monkeypatch.setattr(
        cuda_kernels, "_by_nvrtc", lambda source, architecture: f"{source.stem} {architecture}".encode()
    )
    assert cuda_kernels.compile_file(cuda_kernels.FOLDER / "preprocess.cu", "sm90") == b"preprocess sm_90"


@needs_nvcc
def test_an_architecture_the_compiler_does_not_know() -> None:
    with pytest.raises(UserError, match="nvcc does not compile the CUDA kernels for sm_20"):
        cuda_kernels.machine_code("preprocess", "sm20")


def test_without_a_compiler_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", None)
    with pytest.raises(UserError, match="no compiler is here; install the CUDA toolkit"):
        cuda_kernels.machine_code("preprocess", "sm90")


def test_every_exported_kernel_is_known() -> None:
    names = [name for module in cuda_kernels.MODULES for name in cuda_kernels.kernel_names(module)]
    assert len(names) == len(set(names)) == 15


def test_nvrtc_compiles_what_nvcc_does() -> None:
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError:
        pytest.skip("NVRTC's library is not installed")
    for module in cuda_kernels.MODULES:
        code = cuda_kernels._by_nvrtc(cuda_kernels.FOLDER / f"{module}.cu", "sm_90")
        assert code.startswith(b"\x7fELF")
        assert all(name.encode() in code for name in cuda_kernels.kernel_names(module))
    with pytest.raises(UserError, match="NVRTC does not compile the CUDA kernels for sm_20"):
        cuda_kernels._by_nvrtc(cuda_kernels.FOLDER / "preprocess.cu", "sm_20")
