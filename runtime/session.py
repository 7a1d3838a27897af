"""Models opened for inference: one small interface, whatever engine is behind it."""

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, cast, get_args

import numpy as np

from sodeploy import terminal
from sodeploy.artifacts import require_file
from sodeploy.errors import UserError
from sodeploy.file_kinds import CHECKPOINT_SUFFIXES
from sodeploy.runtime.batches import run_in_batches
from sodeploy.runtime.contract import CPU_KEY, DIALECT_KEY, PRECISION_KEY, Contract, contract_of, require_shape
from sodeploy.runtime.cpu import saturates_int8
from sodeploy.runtime.errors import DeviceError, OutOfDeviceMemory
from sodeploy.runtime.onnx_cuda import ASSIGNMENT_OPTION, CUDA_OPTIONS, nodes_on_cpu, prepare_cuda
from sodeploy.runtime.onnx_session import session_options, start_session
from sodeploy.stages import command
from sodeploy.workers import usable_cores

if TYPE_CHECKING:
    import onnxruntime

DeviceName = Literal["cpu", "cuda"]
EngineName = Literal["onnxruntime", "openvino", "openvino-bf16"]  # of ONNX models on a CPU
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


class Session(Protocol):
    """A network ready to run; a context manager that frees what the engine holds."""

    @property
    def contract(self) -> Contract: ...

    @property
    def precision(self) -> str:
        """fp32, fp16 or int8."""

    @property
    def metadata(self) -> dict[str, str]:
        """Further metadata of the model, for example its calibration images."""

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """(N, 3, h, w) float32, pre-processed -> (N, 1, h, w) float32, as the contract describes the output."""

    def close(self) -> None: ...

    def __enter__(self) -> "Session": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def installed_engines() -> list[EngineName]:
    """The engines whose packages are installed here."""
    return [engine for engine in ENGINES if importlib.util.find_spec(engine.removesuffix("-bf16")) is not None]


def parse_engines(text: str) -> list[EngineName]:
    """The engines in a text such as "onnxruntime,openvino".

    Raises:
        UserError: a name is unknown, or stands twice.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in ENGINES:
            raise UserError(f"--engine {text}: there is no engine {name!r}; choose among {', '.join(ENGINES)}")
        if names.count(name) > 1:
            raise UserError(f"--engine {text}: {name} stands twice; name each engine once")
    return cast(list[EngineName], names)


_CHECKPOINT_SESSION = "sodeploy.training.session"  # imported by name: this room does without PyTorch


def open_session(
    path: str | Path,
    device: DeviceName = "cpu",
    threads: int | None = None,
    engine: EngineName = "onnxruntime",
    *,
    gpu: int = 0,
    network: str | None = None,
    compiled: bool = False,
) -> Session:
    """Open the model at `path`.

    Args:
        device: where an ONNX model or a checkpoint runs; an engine runs on the GPU it was built for.
        threads: CPU threads within one operator of an ONNX model; one per core by default.
        engine: the runtime of an ONNX model on a CPU. Its float layers compute in fp32, in `openvino-bf16` in bf16.
        gpu: index of the GPU, among those that are visible.
        network: the registered network that a checkpoint belongs to; by default the one that fits.
        compiled: a checkpoint's network goes through torch.compile.

    Raises:
        ModuleNotFoundError: a checkpoint needs PyTorch.
        UserError: the file is missing, broken or of no known kind, has no contract or does not keep it; more threads
            than cores; or `device` or `engine` cannot be had: nothing ever falls back to another one.
    """
    path = require_file(path, "give the path of a model")
    if device == "cpu" and (threads or 0) > (cores := usable_cores()):
        raise UserError(f"{threads} threads were asked of {cores} cores; give at most {cores}")
    if path.suffix.lower() in CHECKPOINT_SUFFIXES:
        opener = importlib.import_module(_CHECKPOINT_SESSION).open_checkpoint
        session: Session = opener(path, network, f"cuda:{gpu}" if device == "cuda" else device, threads, compiled)
        return session
    if network is not None or compiled:
        raise UserError(f"{path} is no checkpoint: leave --network and --compile out, or give a .pth file")
    if path.suffix == ".engine":
        from sodeploy.runtime.gpu.engine_session import open_engine

        return open_engine(path, gpu=gpu)
    if path.suffix == ".onnx" and engine == "onnxruntime":
        return OnnxRuntimeSession(path, device, threads, gpu=gpu)
    if path.suffix == ".onnx":
        from sodeploy.runtime.openvino_session import OpenVinoSession

        if device != "cpu":
            raise UserError(f"the engine {engine} runs on a CPU; leave --device {device} out, or take onnxruntime")
        return OpenVinoSession(path, "bf16" if engine == "openvino-bf16" else "fp32", threads)
    raise UserError(f"{path} is not a model that can be opened here; give an .onnx or .engine file, or a checkpoint")


class OnnxRuntimeSession:
    """An ONNX model in onnxruntime, on the CPU or on an NVIDIA GPU."""

    def __init__(
        self,
        path: Path,
        device: DeviceName = "cpu",
        threads: int | None = None,
        stream: int | None = None,
        gpu: int = 0,
    ) -> None:
        """
        Args:
            path, device, threads: see `open_session`.
            stream: handle of the CUDA stream to run on; one of its own by default.
            gpu: index of the GPU, among those that are visible.

        Raises:
            UserError: see `open_session`.
        """
        self._path, self._device, self._gpu = path, device, gpu
        session = _load(path, device, threads, stream, gpu)
        try:
            self.metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
        except UnicodeDecodeError:
            raise UserError(f"{path}: its metadata is not UTF-8 text; write it anew: {command('adopt')}") from None
        self._session: onnxruntime.InferenceSession | None = session
        self.contract = contract_of(self.metadata, path)
        self.precision = self.metadata.get(PRECISION_KEY, "fp32")
        may_saturate = DIALECT_KEY not in self.metadata or self.metadata.get(CPU_KEY) == "vnni"
        if device == "cpu" and self.precision == "int8" and may_saturate and saturates_int8():
            terminal.warn(
                f"{path}: this CPU has no VNNI and saturates int8 sums, so its maps may be worse than on another; "
                f"{command('build_engine')} with --cpu any makes a graph that does not saturate"
            )
        self.input_dtype = _require_contract_kept(session, self.contract, path)
        types = {tensor.name: tensor.type for tensor in session.get_outputs()}
        self.output_dtype = np.float16 if types[self.contract.output_name] == "tensor(float16)" else np.float32

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """(N, 3, h, w) float32 -> (N, 1, h, w) float32; a model of fixed batch runs as often as it takes.

        Raises:
            OutOfDeviceMemory: there is no room for the run.
            UserError: h, w are not what the model takes, the output is not one map per image, or the run fails.
            ValueError: `batch` is not (N, 3, h, w), N >= 1; the session is closed.
        """
        return run_in_batches(self._run, batch.astype(self.input_dtype, copy=False), self.contract, self._path)

    def enqueue(self, input_address: int, output_address: int, shape: tuple[int, int, int, int]) -> None:
        """Run from and to memory of the session's device, (N, 3, h, w) input_dtype to (N, 1, h, w) output_dtype.

        On a GPU this returns before the run has ended; it takes place on the session's stream.

        Raises:
            OutOfDeviceMemory: there is no room for the run.
            DeviceError: it fails.
            ValueError: the session is closed.
        """
        if self._session is None:
            raise ValueError(f"the session of {self._path} is closed")
        from onnxruntime import RunOptions

        binding, contract = self._session.io_binding(), self.contract
        binding.bind_input(contract.input_name, self._device, self._gpu, self.input_dtype, shape, input_address)
        maps = (shape[0], 1, *shape[2:])
        binding.bind_output(contract.output_name, self._device, self._gpu, self.output_dtype, maps, output_address)
        options = RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        with _failures_named(self._path):
            self._session.run_with_iobinding(binding, options)

    def _run(self, images: np.ndarray) -> np.ndarray:
        if self._session is None:
            raise ValueError(f"the session of {self._path} is closed")
        with _failures_named(self._path):
            (output,) = self._session.run([self.contract.output_name], {self.contract.input_name: images})
        return np.asarray(output)

    def close(self) -> None:
        """Free the engine; the session cannot be used any more."""
        self._session = None

    def __enter__(self) -> "OnnxRuntimeSession":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _load(
    path: Path, device: DeviceName, threads: int | None, stream: int | None, gpu: int
) -> "onnxruntime.InferenceSession":
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{path} needs onnxruntime; install it: pip install 'sodeploy[cpu]'") from None

    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device)
    if provider is None:
        raise UserError(f"device {device} is unknown; choose cpu or cuda")
    if provider not in onnxruntime.get_available_providers():
        raise UserError(
            f"this onnxruntime cannot use {device}; install its GPU build: pip uninstall -y onnxruntime && "
            "pip install 'sodeploy[gpu]'"
        )
    if device == "cuda":
        prepare_cuda()
    options = session_options(threads)  # without warnings: the one that matters, a lost device, is checked below
    # Idle workers would otherwise spin on into whatever runs next: pre-processing here, another model in a bench.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    provider_options = {}
    if device == "cuda":
        provider_options = {"device_id": str(gpu)} | CUDA_OPTIONS
        options.add_session_config_entry(*ASSIGNMENT_OPTION)
    if stream is not None:
        provider_options["user_compute_stream"] = str(stream)
    session = start_session(
        path,
        options,
        provider=provider,
        provider_options=provider_options,
    )
    if session.get_providers()[0] != provider:
        raise UserError(
            f"{path} did not get the device {device}: onnxruntime found no usable GPU, driver or CUDA libraries; "
            "see `nvidia-smi`, or run on the CPU"
        )
    if device == "cuda" and (left := nodes_on_cpu(session)):
        shown = ", ".join(left[:5]) + (", ..." if len(left) > 5 else "")
        terminal.warn(f"{path}: {len(left)} nodes run on the CPU, which copies their tensors at every run: {shown}")
    return session


@contextlib.contextmanager
def _failures_named(path: Path) -> Iterator[None]:
    """onnxruntime's errors in a run, as ours. Only their text tells that memory was lacking."""
    try:
        yield
    except Exception as error:  # they have no base class in common; with an I/O binding they are RuntimeError
        if not isinstance(error, UnicodeDecodeError | RuntimeError) and not type(error).__module__.startswith(
            "onnxruntime"
        ):
            raise
        reason = " ".join(str(error).split())  # of a UnicodeDecodeError: a name in onnxruntime's message is no text
        if "allocate memory" in reason or "out of memory" in reason:
            raise OutOfDeviceMemory(
                f"{path}: there is no room for this batch ({reason}); choose a smaller one, or end other processes"
            ) from None
        raise DeviceError(f"{path} does not run ({reason})") from None


def _require_contract_kept(session: "onnxruntime.InferenceSession", contract: Contract, path: Path) -> type[np.generic]:
    """The input's dtype, if the graph has the tensors its contract names."""
    inputs = {tensor.name: tensor for tensor in session.get_inputs()}
    outputs = [tensor.name for tensor in session.get_outputs()]
    for name, names in ((contract.input_name, list(inputs)), (contract.output_name, outputs)):
        if name not in names:
            raise UserError(
                f"{path}: the contract names {name}, the graph has {', '.join(names)}; "
                f"write the contract again: {command('adopt')}"
            )
    if len(inputs) > 1:
        raise UserError(f"{path} has {len(inputs)} inputs ({', '.join(inputs)}); a saliency network takes one image")
    require_shape(contract, inputs[contract.input_name].shape, path)
    dtype = inputs[contract.input_name].type
    if dtype not in ("tensor(float)", "tensor(float16)"):
        raise UserError(f"{path}: input {contract.input_name} is {dtype}; export the model with a float32 input")
    return np.float16 if dtype == "tensor(float16)" else np.float32
