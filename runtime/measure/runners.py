"""A model made ready to be measured: one image in, its saliency map and the time of every stage out."""

import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

import numpy as np

from sodeploy.errors import UserError
from sodeploy.runtime.contract import DIALECT_KEY
from sodeploy.runtime.gpu.device import Device
from sodeploy.runtime.gpu.pipeline import Lane
from sodeploy.runtime.gpu.session import DeviceSession, open_on_device
from sodeploy.runtime.gpu.timeline import Timeline
from sodeploy.runtime.processing import postprocess, preprocess
from sodeploy.runtime.session import EngineName, Session, open_session

CPU_STAGES = ("pre", "infer", "post", "total")
# upload to download are GPU time, between events; host is what the CPU does meanwhile; total is from image to map.
GPU_STAGES = ("host", "upload", "pre", "infer", "post", "download", "total")
_HOST_SPANS = ("copy images, enqueue", "copy pictures")


class Runner(Protocol):
    """A model that takes one image at a time; a context manager that frees what it holds."""

    @property
    def where(self) -> Literal["cpu", "cuda"]: ...

    @property
    def engine(self) -> str: ...

    @property
    def session(self) -> Session | DeviceSession: ...

    def run(self, image: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        """(H, W, 3) uint8 RGB -> (H, W) uint8, and the ms of each of CPU_STAGES or GPU_STAGES.

        Raises:
            UserError: the network or the device fails at it.
        """

    def __enter__(self) -> "Runner": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class CpuRunner:
    """OpenCV before and after an ONNX model on a CPU."""

    where: Literal["cpu", "cuda"] = "cpu"

    def __init__(self, path: Path, threads: int | None = None, engine: EngineName = "onnxruntime") -> None:
        """See `sodeploy.runtime.session.open_session`."""
        self.engine: str = engine
        self.session: Session = open_session(path, "cpu", threads, engine)

    def run(self, image: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        contract = self.session.contract
        start = time.perf_counter()
        tensor = preprocess(image, contract)[None]
        ready = time.perf_counter()
        output = self.session.infer(tensor)
        done = time.perf_counter()
        saliency = postprocess(output[0, 0], contract, (image.shape[0], image.shape[1]))
        end = time.perf_counter()
        return saliency, _milliseconds(pre=ready - start, infer=done - ready, post=end - done, total=end - start)

    def __enter__(self) -> "CpuRunner":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.session.close()


class GpuRunner:
    """Our CUDA kernels before and after an engine, or an ONNX model in onnxruntime on the GPU."""

    where: Literal["cpu", "cuda"] = "cuda"

    def __init__(self, path: Path, device: Device) -> None:
        self.session: DeviceSession = open_on_device(path, device)
        self.engine: str = "onnxruntime" if path.suffix == ".onnx" else "tensorrt"
        self._timeline = Timeline()
        with device.current():
            self._lane = Lane(self.session, "map", "GPU", self._timeline)

    def run(self, image: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        self._timeline.clear()
        start = time.perf_counter()
        (picture,) = self._lane.run([image])
        total = time.perf_counter() - start
        if isinstance(picture, UserError):
            raise picture
        stages = {"pre": "preprocess", "post": "postprocess"}
        seconds = {stage: sum(self._timeline.seconds(stages.get(stage, stage))) for stage in GPU_STAGES[1:-1]}
        host = sum(sum(self._timeline.seconds(span)) for span in _HOST_SPANS)
        return picture, _milliseconds(host=host, **seconds, total=total)

    def __enter__(self) -> "GpuRunner":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.session.device.current():
            self._lane.close()
        self.session.close()


def stand_in(runner: Runner) -> str:
    """The reason why nobody would deploy a model as it is measured here; "" if there is none."""
    session, dialect = runner.session, runner.session.metadata.get(DIALECT_KEY)
    if dialect == "simulation":
        return "simulates an engine"
    if runner.where == "cpu" and dialect == "tensorrt":
        return "is made for TensorRT"
    if runner.engine == "onnxruntime" and dialect == "openvino":
        return "is made for OpenVINO"
    if runner.where == "cpu" and session.precision == "fp16":
        return "is computed in fp32 on a CPU"
    return ""


def _milliseconds(**seconds: float) -> dict[str, float]:
    return {stage: 1e3 * value for stage, value in seconds.items()}
