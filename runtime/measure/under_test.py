"""A model while it is measured: its properties and the results so far."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sodeploy.errors import UserError
from sodeploy.runtime.contract import DIALECT_KEY, PRECISION_KEY, calibration_of
from sodeploy.runtime.measure.complexity import Complexity, complexity
from sodeploy.runtime.measure.metrics import Scores
from sodeploy.runtime.measure.record import Percentiles
from sodeploy.runtime.measure.runners import Runner, stand_in
from sodeploy.runtime.measure.throughput import Throughput

_TARGETS = {"cpu": "cpu", "openvino": "openvino", "tensorrt": "trt", "simulation": "sim"}


@dataclass(eq=False)
class ModelUnderTest:
    """One model of a bench.

    Attributes:
        path: as the user gave it.
        runner: the model, ready to run.
        name: the short name in tables and sentences.
        own_memory_mib: device memory that it took to become ready.
        times: by stage, ms of each image.
        map_errors: of each image with times, the mean absolute difference of its map to the first model's; maps are
            from 0 to 1.
        scores: of each image; empty until it has been scored.
        throughput: on a GPU, once it has been measured.
        calibrated_on: how many of the images it was calibrated on; None: it does not say.
    """

    path: str
    runner: Runner
    name: str
    own_memory_mib: float = 0.0
    times: dict[str, list[float]] = field(default_factory=dict)
    map_errors: list[float] = field(default_factory=list)
    scores: Scores = field(default_factory=lambda: Scores({}))
    throughput: Throughput | None = None
    calibrated_on: int | None = None

    def __post_init__(self) -> None:
        session = self.runner.session
        self.is_engine = Path(self.path).suffix == ".engine"
        self.counted: Complexity | None = None if self.is_engine else complexity(self.path, session.contract)
        graph_precision = self.counted.weights if self.counted else session.precision
        self.precision = session.metadata.get(PRECISION_KEY) or graph_precision
        if self.precision == "fp32" and self.runner.engine == "openvino-bf16":
            self.precision = "bf16"
        self.target = "engine" if self.is_engine else _TARGETS.get(session.metadata.get(DIALECT_KEY, ""), "")
        self.stand_in = stand_in(self.runner)
        self._calibration = calibration_of(session.metadata, self.path)

    @property
    def method(self) -> str | None:
        """The calibration method; None if it does not say."""
        return self._calibration.get("method") if self.precision == "int8" else None

    @property
    def calibration_digests(self) -> set[str]:
        """The digests of the images it was calibrated on; empty if it does not say."""
        return set(self._calibration.get("digests_sha256", ()))

    @property
    def input_shape(self) -> list[int | str]:
        contract = self.runner.session.contract
        return [contract.batch or "N", 3, contract.height, contract.width]

    def run(self, image: np.ndarray, sample: str) -> np.ndarray:
        """The (H, W) uint8 saliency map of an image; the time of each stage is appended to `times`.

        Raises:
            UserError: the network or the device fails; the model and the sample are named.
        """
        saliency, taken = self._attempt(image, sample)
        for stage, milliseconds in taken.items():
            self.times.setdefault(stage, []).append(milliseconds)
        return saliency

    def warm_up(self, image: np.ndarray, sample: str) -> None:
        """Run once without counting the time."""
        self._attempt(image, sample)

    def again(self, image: np.ndarray, sample: str) -> np.ndarray:
        """As `run`, without counting the time."""
        return self._attempt(image, sample)[0]

    def _attempt(self, image: np.ndarray, sample: str) -> tuple[np.ndarray, dict[str, float]]:
        try:
            return self.runner.run(image)
        except UserError as error:
            raise UserError(f"{self.path} on {sample}: {error}") from None

    def inference_ms(self) -> np.ndarray:
        """(N,) ms of inference of each image."""
        return np.array(self.times["infer"])

    def latency(self) -> dict[str, Percentiles]:
        """The percentiles of each stage."""
        return {
            stage: Percentiles(**{f"p{rank}": float(np.percentile(values, rank)) for rank in (50, 90, 99)})
            for stage, values in self.times.items()
        }
