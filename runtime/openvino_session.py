"""ONNX models on a CPU in OpenVINO: the session beside onnxruntime's, and the kernels that it really runs."""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Literal

import numpy as np

from sodeploy.artifacts import one_line
from sodeploy.errors import UserError
from sodeploy.runtime.batches import run_in_batches
from sodeploy.runtime.contract import PRECISION_KEY, contract_of
from sodeploy.stages import command
from sodeploy.workers import usable_cores

Body = Literal["fp32", "bf16"]
_HINTS = {"fp32": "f32", "bf16": "bf16"}  # OpenVINO's own default depends on the CPU: bf16 where there is AMX
_COMPILED = 4  # shapes kept ready at a time, for a model of free batch or size
# The messages of newer versions and of 2025.1.
_LACKING = re.compile(r"(?:No conversion rule found for operations|not support the following ONNX operations): (.+)")
_VERSION = re.compile(r"-\d+\b")  # of an operator set, behind an operator's name
# A node that OpenVINO cannot take as it stands: operator, name of its output, and the reason, which ends the paragraph.
_REFUSED = re.compile(r"<Node\((\w+)\): ([^>]*)>'?:(.+?)(?:\n\s*\n|\nSummary|\Z)", re.DOTALL)
_BEHIND = "rank has to be known"
_LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")  # OpenVINO's names


class OpenVinoSession:
    """One ONNX model compiled by OpenVINO for the CPU.

    A static shape runs fastest, so that the model is compiled once for each shape that it meets. Compiled models are
    kept on disk (`$XDG_CACHE_HOME/sodeploy`), in a folder for this version of OpenVINO.
    """

    def __init__(
        self, path: Path, body: Body = "fp32", threads: int | None = None, streams: int = 1, cache: bool = True
    ) -> None:
        """Read and compile the model.

        Args:
            body: precision of the layers that are not int8.
            threads: CPU threads in all; one per core by default.
            streams: images that run at the same time, each with its share of the threads. 1 gives the least latency,
                one per core the most images per second.
            cache: keep the compiled model on disk.

        Raises:
            UserError: OpenVINO is missing or has no CPU plugin; the CPU lacks bf16; the file is broken, holds an
                operator that OpenVINO lacks, or does not keep its contract.
        """
        self._path, self._body, self._streams = path, body, streams
        openvino, self._core = _start(path)
        if body == "bf16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UserError("this CPU does not compute in bf16; choose the engine openvino, whose body is fp32")
        self._config = {
            "INFERENCE_PRECISION_HINT": _HINTS[body],
            "INFERENCE_NUM_THREADS": threads or usable_cores(),
            "NUM_STREAMS": streams,
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        }
        if cache and (folder := _cache_folder(openvino.__version__)):
            self._config["CACHE_DIR"] = str(folder)
        with _failures_named(path):
            self._model: Any = self._core.read_model(path)
        information = self._model.get_rt_info()
        framework = information["framework"] if "framework" in information else {}  # noqa: SIM401 - no dict
        self.metadata: dict[str, str] = {key: str(entry.value) for key, entry in framework.items()}
        self.contract = contract_of(self.metadata, path)
        self.precision = self.metadata.get(PRECISION_KEY, "fp32")
        self._input, self._output, self._dtype = self._tensors()
        self._compiled: dict[tuple[int, ...], Any] = {}
        self._compile((self.contract.batch or 1, 3, self.contract.height, self.contract.width))

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """(N, 3, h, w) float32 -> (N, 1, h, w) float32; a model of fixed batch runs as often as it takes.

        Raises:
            UserError: h, w are not a size that the model takes, the output is not one map per image, or the run fails.
            ValueError: `batch` is not (N, 3, h, w), N >= 1; the session is closed.
        """
        contract = self.contract
        if self._streams > 1 and contract.batch == 1:  # `_run` divides the images over the streams
            contract = contract.model_copy(update={"batch": None})
        return run_in_batches(self._run, batch.astype(self._dtype, copy=False), contract, self._path)

    def kernels(self) -> dict[str, Counter[str]]:
        """See `kernels_of`."""
        return _kernels(self._compile((self.contract.batch or 1, 3, self.contract.height, self.contract.width)))

    def close(self) -> None:
        """Free the compiled models; the session cannot be used any more."""
        self._compiled.clear()
        self._model = None

    def __enter__(self) -> "OpenVinoSession":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tensors(self) -> tuple[str, str, type[np.generic]]:
        """The model's input and output, checked against its contract, and the type of its input."""
        assert self._model is not None
        inputs = {name for port in self._model.inputs for name in port.get_names()}
        outputs = {name for port in self._model.outputs for name in port.get_names()}
        for name, names in ((self.contract.input_name, inputs), (self.contract.output_name, outputs)):
            if name not in names:
                raise UserError(
                    f"{self._path}: the contract names {name}, the graph has {', '.join(sorted(names))}; "
                    f"name them to {command('adopt')}"
                )
        if len(self._model.inputs) > 1:
            raise UserError(f"{self._path} has {len(self._model.inputs)} inputs; a saliency network takes one image")
        dtype = self._model.input(self.contract.input_name).get_element_type().to_dtype()
        if dtype not in (np.float32, np.float16):
            raise UserError(f"{self._path}: its input is {dtype}; export the model with a float32 input")
        return self.contract.input_name, self.contract.output_name, dtype

    def _compile(self, shape: tuple[int, ...]) -> Any:
        if self._model is None:
            raise ValueError(f"the session of {self._path} is closed")
        if shape not in self._compiled:
            if len(self._compiled) == _COMPILED:
                del self._compiled[next(iter(self._compiled))]
            with _failures_named(self._path):
                self._model.reshape({self._input: list(shape)})
                self._compiled[shape] = self._core.compile_model(self._model, "CPU", self._config)
        return self._compiled[shape]

    def _run(self, images: np.ndarray) -> np.ndarray:
        """One run, or one for each image on the streams."""
        split = self._streams > 1 and self.contract.batch in (None, 1) and len(images) > 1
        shape = (1 if split else len(images), *images.shape[1:])
        compiled = self._compile(shape)
        with _failures_named(self._path):
            if not split:
                return np.array(compiled.create_infer_request().infer({self._input: images})[self._output])
            requests = [compiled.create_infer_request() for _ in range(self._streams)]
            maps = []
            for start in range(0, len(images), self._streams):
                running = list(zip(requests, range(start, len(images)), strict=False))
                for request, index in running:
                    request.start_async({self._input: images[index : index + 1]})
                for request, _ in running:
                    request.wait()
                    maps.append(np.array(request.get_tensor(self._output).data))
        return np.concatenate(maps)


def kernels_of(model: Path, path: Path) -> dict[str, Counter[str]]:
    """The layers with weights that OpenVINO runs in each precision: i8, u8, bf16, f32 -> its operators, counted.

    Args:
        model: an ONNX file.
        path: what messages call the file.

    Raises:
        UserError: OpenVINO is missing or refuses the graph.
    """
    _, core = _start(path)
    with _failures_named(path):
        return _kernels(core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}))


def runner_of(model: bytes | Path, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A function that runs an ONNX file with an fp32 body: its input -> its first output.

    Args:
        model: the file, or its bytes.
        path: what messages call the file.

    Raises:
        UserError: OpenVINO is missing or refuses the graph; the function raises it where a run fails.
    """
    _, core = _start(path)
    with _failures_named(path):
        compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(image: np.ndarray) -> np.ndarray:
        with _failures_named(path):
            return np.array(compiled([image])[0])

    return run


def _kernels(compiled: Any) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        information = node.get_rt_info()
        kind = str(information["layerType"].value)
        if kind in _LAYERS:
            found.setdefault(str(information["runtimePrecision"].value), Counter())[kind] += 1
    return found


def problem() -> str | None:
    """Why OpenVINO, which is installed, cannot run here; None: it can."""
    try:
        _start()
    except UserError as error:
        return str(error)
    return None


_PACKAGE = "pip install 'sodeploy[openvino]'"
_ANEW = "pip install --force-reinstall --no-deps openvino"


def _start(path: Path | None = None) -> tuple[ModuleType, Any]:
    """OpenVINO and its core, which has a CPU plugin; `path` is the file to run, for messages."""
    where = "" if path is None else f"{path}: "
    try:
        import openvino
    except ImportError as error:
        raise UserError(f"{where}the engine openvino cannot be imported ({error}); install it: {_PACKAGE}") from None
    core = openvino.Core()
    if "CPU" not in core.available_devices:
        raise UserError(f"{where}this OpenVINO has no CPU plugin; install it again: {_ANEW}")
    return openvino, core


def _cache_folder(version: str) -> Path | None:
    """Where compiled models of this version are kept; None where nothing can be written."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "sodeploy" / f"openvino-{version.split('-')[0]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


@contextlib.contextmanager
def _failures_named(path: Path) -> Iterator[None]:
    """OpenVINO's errors as ours, in one line."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(f"{path}: {_in_words(str(error))}") from None


def _in_words(text: str) -> str:
    """The reason in OpenVINO's message, and the remedy."""
    if lacking := _LACKING.search(text):
        return f"OpenVINO lacks {_VERSION.sub('', lacking.group(1)).strip()}; {_ANOTHER_ENGINE}"
    if refused := _REFUSED.findall(text):
        # OpenVINO names last nodes first; those behind the one it refuses have inputs of unknown rank.
        operator, output, said = next((one for one in refused if _BEHIND not in one[2]), refused[0])
        reason = [line.strip() for line in said.splitlines() if line.strip()][-1]
        return f"OpenVINO does not take its {operator} that makes {output} ({one_line(reason)}); {_ANOTHER_ENGINE}"
    if "Unable to read the model" in text:
        return "OpenVINO cannot read it as an ONNX model: it is damaged or of another kind; copy or export it again"
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Exception from")]
    return f"OpenVINO refuses it ({one_line(lines[-1] if lines else text)}); {_ANOTHER_ENGINE}"


_ANOTHER_ENGINE = "use the engine onnxruntime for this model"
