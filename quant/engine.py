"""An ONNX graph -> an engine and its record, by TensorRT 10.8 or newer or by TensorRT-RTX.

    python quant/engine.py out/u2netp.int8.trt.onnx --output out/u2netp.int8.engine [--builder tensorrt|tensorrt_rtx]

The network is strongly typed: the graph decides the precision (quant/emit/tensorrt.py), and no flag changes it.
TensorRT times kernels on the GPU at hand and builds for that GPU. TensorRT-RTX compiles for compute capabilities and
needs no GPU.
"""

import importlib.util
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import onnx
import typer

from sodeploy import command_line, stages, terminal
from sodeploy.artifacts import atomic_write, require_file, write_manifest
from sodeploy.errors import UserError
from sodeploy.quant.emit.checks import check_tensorrt, unequal_scales
from sodeploy.quant.engines.builder import Options, compile_engine, load
from sodeploy.quant.engines.kernels import Kernel, explanations, harmless, summary
from sodeploy.quant.engines.shapes import Profile, checked_profile, parse_profile
from sodeploy.runtime.contract import DIALECT_KEY, PRECISION_KEY, Contract, calibration_of, contract_of
from sodeploy.runtime.gpu.driver import current_gpu, driver_problem
from sodeploy.runtime.gpu.engine_record import INSTALL, Builder
from sodeploy.runtime.onnx_file import read_model

# TensorRT-RTX compiles one plan for all targets of an engine. Ampere and newer share one; a single Turing target makes
# it a plan for Turing, on which int8 convolutions run in fp16 (1.7.1), so sm75 gets an engine of its own.
RTX_TARGETS = ("sm80", "sm86", "sm89", "sm120", "sm121")
TURING = "sm75"


@dataclass(frozen=True)
class EngineReport:
    """An engine that was built.

    Attributes:
        targets: compute capabilities that the engine has code for, such as "sm89".
        gpu: the GPU that kernels were timed on; None for TensorRT-RTX.
        bytes: size of the engine's file.
        warnings: remarks of the parser, the compiler and our check of the graph.
    """

    path: Path
    builder: Builder
    builder_version: str
    precision: str
    targets: tuple[str, ...]
    gpu: str | None
    seconds: float
    bytes: int
    kernels: Sequence[Kernel]
    warnings: Sequence[str]

    def __str__(self) -> str:
        figures = summary(self.kernels)
        convolutions = ", ".join(f"{count} {precision}" for precision, count in figures["convolutions"].items())
        return (
            f"{self.path}: {self.builder} {self.builder_version} for {', '.join(self.targets)}, {self.seconds:.1f} s; "
            f"{self.bytes / 1e6:.2f} MB; {figures['kernels']} kernels; convolutions: {convolutions}; "
            f"{figures['converting']} kernels only convert"
        )

    def explanations(self) -> list[str]:
        """The figures and the compiler's harmless remarks in plain words."""
        remarks = [f"{remark} ({why})" for remark in self.warnings if (why := harmless(remark))]
        return [*explanations(self.kernels), *remarks]

    def serious(self) -> list[str]:
        """The remarks of parser, compiler and our check that may need an action."""
        return [remark for remark in self.warnings if harmless(remark) is None]


def installed_builders() -> list[Builder]:
    """The builders whose packages are here. Nothing is imported: whether one loads shows when it is used."""
    return [name for name in get_args(Builder) if importlib.util.find_spec(name) is not None]


def choose_builder() -> Builder:
    """TensorRT where it is installed and there is a GPU to time kernels on, else TensorRT-RTX.

    Raises:
        UserError: neither can build here; the message says what to install.
    """
    installed = installed_builders()
    if "tensorrt" in installed and driver_problem() is None:
        return "tensorrt"
    if "tensorrt_rtx" in installed:
        return "tensorrt_rtx"
    if "tensorrt" in installed:
        raise UserError(f"tensorrt builds on the GPU that the engine is for, but {driver_problem()}")
    raise UserError(
        f"no engine builder is installed; with a GPU: {INSTALL['tensorrt']}, without: {INSTALL['tensorrt_rtx']}"
    )


def build(
    onnx_path: str | Path,
    engine_path: str | Path,
    builder: Builder,
    *,
    targets: Sequence[str] | None = None,
    profile: Profile | None = None,
    workspace_mib: int | None = None,
    hardware_compatible: bool = False,
    version_compatible: bool = False,
    refit: bool = False,
) -> EngineReport:
    """Build the engine of a graph that carries a contract; beside it, `engine_path`.json says what it is.

    TensorRT also keeps its timing cache beside the engine, one for all engines of that folder, version and GPU.

    Args:
        targets: TensorRT-RTX only: compute capabilities, as "sm89"; default `RTX_TARGETS`.
        profile: needed exactly by a graph of dynamic batch or size.
        workspace_mib: the most scratch memory a kernel may use; by default all there is.
        hardware_compatible: TensorRT only: runs on every GPU from Ampere on, somewhat slower.
        version_compatible: TensorRT only: runs on later versions too (`sodeploy.runtime.gpu.engine_record` says which).
        refit: the engine's weights can be replaced.

    Raises:
        UserError: the graph, the options or the machine do not allow it; nothing is written.
    """
    onnx_path = require_file(onnx_path, f"make it: {stages.command('build_engine')}")
    graph = _read_graph(onnx_path)
    profile = checked_profile(profile, graph.dims, graph.contract, onnx_path)
    trt = load(builder)
    if builder == "tensorrt":
        if targets:
            raise UserError("tensorrt builds for the GPU at hand; leave the targets out, or use tensorrt_rtx")
        problem = driver_problem()
        if problem:
            raise UserError(f"tensorrt builds on the GPU that the engine is for, but {problem}; or use tensorrt_rtx")
        gpu = current_gpu()
        gpu_name: str | None = gpu.name
        built_for: tuple[str, ...] = (gpu.capability,)
        cache_file = Path(engine_path).parent / f"tensorrt-{trt.__version__}-{gpu.capability}.timing"
    else:
        built_for, gpu_name = _rtx_targets(targets, trt.ComputeCapability.__members__), None
        _refuse_on_rtx(hardware_compatible=hardware_compatible, version_compatible=version_compatible, refit=refit)
        cache_file = None

    started = time.perf_counter()
    compiled = compile_engine(
        builder,
        onnx_path,
        Options(
            graph.contract.input_name,
            [target.upper() for target in built_for],
            profile,
            workspace_mib,
            hardware_compatible,
            version_compatible,
            refit,
        ),
        cache_file.read_bytes() if cache_file is not None and cache_file.exists() else b"",
    )
    seconds = time.perf_counter() - started
    warnings = [*graph.slow, *compiled.warnings]
    with atomic_write(engine_path) as temporary:
        temporary.write_bytes(compiled.engine)
    if cache_file is not None:
        with atomic_write(cache_file) as temporary:
            temporary.write_bytes(compiled.timing_cache)
    flags = {"hardware-compatible": hardware_compatible, "version-compatible": version_compatible, "refit": refit}
    rebuild = ["sodeploy", "engine", str(onnx_path), "--output", str(engine_path), "--builder", builder]
    rebuild += [f"--target={target}" for target in targets or ()]
    rebuild += [f"--shapes={profile}"] if profile else []
    rebuild += [f"--workspace={workspace_mib}"] if workspace_mib is not None else []
    rebuild += [f"--{flag}" for flag, on in flags.items() if on]
    write_manifest(
        engine_path,
        {"onnx": onnx_path},
        contract=graph.contract.model_dump(mode="json"),
        precision=graph.precision,
        calibration=graph.calibration,
        builder=builder,
        builder_version=trt.__version__,
        input_dtype=graph.input_dtype,
        output_dtype=graph.output_dtype,
        targets=built_for,
        gpu=gpu_name,
        any_newer_gpu=hardware_compatible,
        any_newer_version=version_compatible,
        refit=refit,
        profile=profile and profile._asdict(),
        rebuild=shlex.join(rebuild),
        summary=summary(compiled.kernels),
        kernels=[str(kernel) for kernel in compiled.kernels],
        warnings=warnings,
    )
    return EngineReport(
        Path(engine_path),
        builder,
        trt.__version__,
        graph.precision,
        built_for,
        gpu_name,
        seconds,
        len(compiled.engine),
        compiled.kernels,
        warnings,
    )


class _Graph(NamedTuple):
    """The metadata of an ONNX file."""

    contract: Contract
    precision: str
    calibration: dict[str, Any] | None
    dims: list[int | None]  # of its input; None: dynamic
    input_dtype: str  # a name of numpy, which the engine keeps
    output_dtype: str
    slow: list[str]  # what may be slow in it


def _read_graph(path: Path) -> _Graph:
    model = read_model(path, f"make it: {stages.command('build_engine')}")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    contract = contract_of(metadata, path)
    if metadata.get(DIALECT_KEY, "tensorrt") != "tensorrt":
        raise UserError(f"{path} is quantized for {metadata[DIALECT_KEY]}; give the .int8.trt.onnx made with it")
    check_tensorrt(model, path)
    tensors = {tensor.name: tensor.type.tensor_type for tensor in (*model.graph.input, *model.graph.output)}
    for kind, name in (("input", contract.input_name), ("output", contract.output_name)):
        if name not in tensors:
            raise UserError(
                f"{path} has no {kind} {name}, which its contract names; see {stages.command('adopt')} --help"
            )
    image, saliency = tensors[contract.input_name], tensors[contract.output_name]
    return _Graph(
        contract,
        metadata.get(PRECISION_KEY, "fp32"),
        calibration_of(metadata, path) or None,
        [dim.dim_value or None for dim in image.shape.dim],
        onnx.helper.tensor_dtype_to_np_dtype(image.elem_type).name,
        onnx.helper.tensor_dtype_to_np_dtype(saliency.elem_type).name,
        unequal_scales(model),
    )


def _rtx_targets(targets: Sequence[str] | None, known: Any) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(targets or RTX_TARGETS))
    names = [name.lower() for name in known if name.startswith("SM")]
    for target in chosen:
        if target not in names:
            raise UserError(f"tensorrt_rtx has no target {target}; choose from {', '.join(names)}")
    if TURING in chosen and len(chosen) > 1:
        raise UserError(f"{TURING} beside newer targets would give all of them its slower plan; build two engines")
    return chosen


def _refuse_on_rtx(hardware_compatible: bool, version_compatible: bool, refit: bool) -> None:
    if hardware_compatible:
        raise UserError("tensorrt_rtx has no hardware compatibility; name all compute capabilities as targets instead")
    if version_compatible:
        raise UserError("tensorrt_rtx builds for its own version only; leave version compatibility out")
    if refit and driver_problem():
        raise UserError(f"a refittable engine is built on a GPU, but {driver_problem()}; leave --refit out")


def main(
    model: Annotated[Path, typer.Argument(help="ONNX graph with a contract: fp32, .fp16.onnx or .int8.trt.onnx")],
    output: Annotated[Path, typer.Option(help="the engine to write")],
    builder: Annotated[str | None, typer.Option(help="tensorrt or tensorrt_rtx; by default the one installed")] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="tensorrt_rtx: compute capability, such as sm89; repeatable")
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(help="range of input shapes, min:opt:max, such as 1x3x320x320:4x3x320x320:8x3x320x320"),
    ] = None,
    workspace: Annotated[int | None, typer.Option(help="largest scratch memory of a kernel, MiB", min=1)] = None,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="tensorrt: for every GPU from Ampere on; somewhat slower")
    ] = False,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="tensorrt: for later versions too")
    ] = False,
    refit: Annotated[bool, typer.Option("--refit", help="the weights can be replaced later")] = False,
) -> None:
    """Build one engine from one ONNX graph."""
    name = builder or choose_builder()
    if name not in get_args(Builder):
        raise UserError(f"no builder is called {name}; choose tensorrt or tensorrt_rtx")
    report = build(
        model,
        output,
        name,  # type: ignore[arg-type]
        targets=target,
        profile=parse_profile(shapes) if shapes else None,
        workspace_mib=workspace,
        hardware_compatible=hardware_compatible,
        version_compatible=version_compatible,
        refit=refit,
    )
    for remark in report.serious():
        terminal.warn(remark)
    terminal.results.print(str(report), soft_wrap=True)
    for sentence in report.explanations():
        terminal.note(sentence)


if __name__ == "__main__":
    command_line.run(main)
