"""The calls to TensorRT or TensorRT-RTX that turn an ONNX file into an engine. All majors from 10 have them.

Nothing here is specific to saliency; quant/engine.py chooses the options and records the result.
"""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sodeploy.errors import UserError
from sodeploy.quant.engines.kernels import Kernel, kernels_in_inspector, kernels_in_log
from sodeploy.runtime.engine_operators import REMEDIES
from sodeploy.runtime.gpu.engine_record import INSTALL, Builder
from sodeploy.stages import command
from sodeploy.terminal import Step, report

OLDEST_TENSORRT = (10, 8)
_ELSEWHERE = "onnxruntime may run the file as it is"


@dataclass(frozen=True)
class Options:
    """How to build.

    Attributes:
        targets: compute capabilities for TensorRT-RTX, as "SM89"; none for TensorRT.
        profile: (min, opt, max) shapes (N, 3, H, W) of the input, or None for a graph of fixed shape.
        workspace_mib: the most scratch memory a kernel may use.
    """

    input_name: str
    targets: Sequence[str] = ()
    profile: tuple[Sequence[int], Sequence[int], Sequence[int]] | None = None
    workspace_mib: int | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    refit: bool = False


@dataclass(frozen=True)
class Compiled:
    """The result of a build. `kernels` run in the engine; `warnings` come from parser and builder, each one once."""

    engine: bytes
    kernels: Sequence[Kernel]
    warnings: Sequence[str]
    timing_cache: bytes


def load(builder: Builder) -> Any:
    """The builder's module.

    Raises:
        UserError: it is not installed, does not load, or is older than `OLDEST_TENSORRT`.
    """
    try:
        if builder == "tensorrt":
            import tensorrt as trt
        else:
            import tensorrt_rtx as trt
    except ImportError as error:
        if error.name == builder:
            raise UserError(f"{builder} is not installed: {INSTALL[builder]}") from None
        raise UserError(f"{builder} is installed but does not load ({error}); {INSTALL[builder]}") from None
    except OSError as error:  # the bindings are there, a library they need is not
        raise UserError(f"{builder} is installed but does not load ({error}); {INSTALL[builder]}") from None
    if builder == "tensorrt" and tuple(map(int, trt.__version__.split(".")[:2])) < OLDEST_TENSORRT:
        raise UserError(f"tensorrt {trt.__version__} is too old, 10.8 or newer is needed: {INSTALL[builder]}")
    return trt


def compile_engine(name: Builder, onnx_path: Path, options: Options, timing_cache: bytes = b"") -> Compiled:
    """Build the engine of a graph.

    Args:
        timing_cache: of an earlier build by the same TensorRT on the same GPU; another one's is ignored.

    Raises:
        UserError: the parser refuses the graph (which node, and why), or the builder the options.
        KeyboardInterrupt: the user interrupted; the builder stopped at its next step.
    """
    trt = load(name)
    is_rtx = name == "tensorrt_rtx"
    logger = _logger(name)
    try:
        builder = trt.Builder(logger)
    except TypeError:  # its bindings' answer to CUDA that cannot be initialised, as with a driver older than it
        reason = [*logger.errors, *logger.warnings, "no reason given"][0]
        raise UserError(
            f"{name} does not start ({reason}); update the NVIDIA driver, or install an older one"
        ) from None
    network = _made(_made(builder, name, logger).create_network(_strongly_typed(trt)), name, logger)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        raise UserError(_parser_error(parser, onnx_path, name))

    config = _made(builder.create_builder_config(), name, logger)
    config.clear_flag(trt.BuilderFlag.TF32)  # it keeps 10 bits of a float32's 23; a baseline for fp16 needs them
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else an engine cannot say what it runs
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.profile is not None:
        profile = builder.create_optimization_profile()
        profile.set_shape(options.input_name, *map(tuple, options.profile))
        config.add_optimization_profile(profile)
    if is_rtx:
        config.num_compute_capabilities = len(options.targets)
        for index, target in enumerate(options.targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target), index)
    else:
        cache = config.create_timing_cache(timing_cache)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)

    with _monitor(name, f"building {onnx_path.name}") as monitor:
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        reason = logger.errors[-1] if logger.errors else "no reason given"
        remedy = (
            "free memory, or allow kernels less of it: --workspace MIB"
            if "memory" in reason.lower()
            else f"set the nodes that it names to another precision ({command('plan')} edit), or export them in "
            f"another form; {_ELSEWHERE}"
        )
        raise UserError(f"{name} cannot build {onnx_path}: {reason}; {remedy}")

    engine = bytes(memoryview(plan))
    return Compiled(
        engine,
        kernels_in_log("\n".join(logger.layers)) if is_rtx else _inspect(name, logger, engine),
        list(dict.fromkeys(logger.warnings)),
        b"" if is_rtx else bytes(memoryview(config.get_timing_cache().serialize())),
    )


def _strongly_typed(trt: Any) -> int:
    """The flag that 10 requires and 11 ignores. Its number differs between majors."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _made(thing: Any, name: Builder, logger: Any) -> Any:
    """`thing`, which the bindings return as None where they cannot make it.

    Raises:
        UserError: it is None; the reason is the logger's.
    """
    if thing is None:
        reason = [*logger.errors, *logger.warnings, "no reason given"][0]
        raise UserError(f"{name} does not start ({reason}); see nvidia-smi, or install {INSTALL[name]} anew")
    return thing


def _inspect(name: Builder, logger: Any, plan: bytes) -> list[Kernel]:
    """The kernels of a TensorRT engine. Needs the GPU that it was just built on."""
    trt = load(name)
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = True  # a version-compatible engine carries its own runtime; this one is ours
    engine = _made(runtime.deserialize_cuda_engine(plan), name, logger)
    return kernels_in_inspector(
        engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    )


def _parser_error(parser: Any, onnx_path: Path, name: Builder) -> str:
    """The parser's first complaint in one line."""
    error = parser.get_error(0)
    reason = " ".join(str(error.desc()).split())
    where = f" at node {error.node_name()} ({error.node_operator()})" if error.node_operator() else ""
    more = f" (and {parser.num_errors - 1} more)" if parser.num_errors > 1 else ""
    operator = error.node_operator()
    # An operator may be known and need a plugin that is not there.
    if operator and (not parser.supports_operator(operator) or "plugin" in reason.lower()):
        remedy = REMEDIES.get(operator, "export the network without it")
        return (
            f"{onnx_path}: {name} has no operator {operator} (node {error.node_name()}){more}; {remedy}, and adopt it "
            f"again: {command('adopt')}"
        )
    remedy = f"export its {operator} in another form; {_ELSEWHERE}" if operator else _ELSEWHERE
    return f"{name} cannot read {onnx_path}{where}: {reason}{more}; {remedy}"


def _logger(name: Builder) -> Any:
    trt = load(name)

    class Logger(trt.ILogger):  # type: ignore[name-defined]
        """Keeps what we report of the thousands of lines a build logs."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.layers: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(" ".join(message.split()))
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(" ".join(message.split()))
            elif "LayerType: " in message:
                self.layers.append(message)

    return Logger()


@contextmanager
def _monitor(name: Builder, label: str) -> Iterator[Any]:
    """A monitor that reports the builder's phases, and stops the builder when the user interrupts."""
    trt = load(name)

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, Step] = {}
            self.interrupted = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phase = label if parent_phase is None else f"  {phase_name}"
            self.phases[phase_name] = Step(phase, 0, num_steps)
            report(self.phases[phase_name])

        def step_complete(self, phase_name: str, step: int) -> bool:
            report(self.phases[phase_name]._replace(done=step + 1))
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            phase = self.phases.pop(phase_name)
            report(phase._replace(done=phase.total or 0, finished=True))  # builders leave out the last step

        def end(self) -> None:
            """Finish the phases that a failed build left open."""
            for phase in reversed(self.phases.values()):
                report(phase._replace(finished=True))
            self.phases.clear()

    monitor = Monitor()

    def stop(*_: Any) -> None:  # a KeyboardInterrupt must not be raised inside a callback that C++ called
        monitor.interrupted = True

    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, stop) if is_main else None
    try:
        yield monitor
    finally:
        monitor.end()
        if is_main:
            signal.signal(signal.SIGINT, before)
