"""The gate of a budget search: measures the loss of each candidate on evaluation images."""

import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx

from sodeploy import terminal
from sodeploy.artifacts import atomic_write, write_text
from sodeploy.calib_data import Dataset, Sample, overlap
from sodeploy.errors import UserError, first_few
from sodeploy.quant.budget.record import FoundVerdict, Results, read_results, read_scores
from sodeploy.quant.calibration.inspect_graph import as_input
from sodeploy.quant.calibration.statistics import load_statistics
from sodeploy.quant.graph import Network
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.measure import metrics
from sodeploy.runtime.measure.budget import Budget, Verdict
from sodeploy.runtime.measure.differences import FEWEST_IMAGES, Delta, bootstrap_deltas
from sodeploy.runtime.processing import predict, to_saliency
from sodeploy.runtime.session import Session, open_session

_FORMAT = 1  # of the record
_PROBES = 4  # images on which the map error of a candidate is measured


def require_disjoint(calibration: Dataset, evaluation: Dataset) -> None:
    """Refuse a calibration set that shares images with the evaluation set.

    Raises:
        UserError: they have images in common; the first are named.
    """
    _refuse(overlap(calibration, evaluation), calibration.name, evaluation.name)


def require_uncounted(statistics: Path, evaluation: Dataset) -> None:
    """Refuse an evaluation set with images that calibration counted.

    Raises:
        UserError: they have images in common, and the first are named; or `statistics` is no file of counts.
    """
    counted = load_statistics(statistics).images
    _refuse([sample.name for sample in evaluation if sample.digest() in counted], statistics, evaluation.name)


def _refuse(common: list[str], calibration: str | Path, evaluation: str) -> None:
    if common:
        raise UserError(
            f"{len(common)} of the calibration images {calibration} are also in {evaluation} ({first_few(common)}); "
            "scores on calibration images are too good: take these images out of one of the two sets"
        )


class Gate:
    """Measures candidates on the evaluation images and keeps every result in a file.

    A result is filed under the bytes of its graph. An interrupted search that starts again makes the same graphs and
    finds their results. A context manager, for the processes that score.

    Many candidates are measured on the same images and the best is taken, so its interval is slightly too good. A bench
    on other images shows by how much.
    """

    def __init__(
        self,
        network: Network,
        images: Dataset,
        budget: Budget,
        file: str | Path,
        workers: int | None = None,
    ) -> None:
        """
        Args:
            images: images with masks, none of them used for calibration.
            file: JSON file of the results; the scores of fp32 lie beside it as .npz.
            workers: processes that score; one per core by default.

        Raises:
            UserError: there are fewer than `FEWEST_IMAGES` images, or one has no mask.
        """
        if len(images) < FEWEST_IMAGES:
            raise UserError(
                f"{images.name} holds {len(images)} images, too few to judge a loss at 95 %; give --eval "
                f"{FEWEST_IMAGES} or more images with masks"
            )
        self.network, self.images, self.budget = network, images, budget
        self.measured: set[str] = set()  # digests of the candidates that this run measured; of those an earlier run did
        self.remembered: set[str] = set()
        self._file, self._workers = Path(file), workers
        self._processes = contextlib.ExitStack()
        self._map: Callable[..., Iterator[Any]] | None = None
        self._probes = [
            images[index] for index in np.linspace(0, len(images) - 1, min(_PROBES, len(images)), dtype=int)
        ]
        self._probe_maps: list[np.ndarray] = []
        self._results = self._load(_digest(images))
        self._baseline: metrics.Scores | None = None
        self._has_warned = False

    def __enter__(self) -> "Gate":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._processes.__exit__(kind, error, trace)

    def judge(self, model: onnx.ModelProto, label: str) -> Verdict:
        """The loss of `model`, a candidate, against the fp32 network."""
        key = _graph_digest(model)
        found = self._results.verdicts.get(key)
        if found is None:
            started = time.monotonic()
            scores = self._score(model, label)
            deltas = self._deltas(scores) if scores is not None else {}
            found = FoundVerdict(
                candidate=label,
                deltas={name: (delta.value, delta.low, delta.high) for name, delta in deltas.items()},
                seconds=round(time.monotonic() - started, 1),
            )
            self._results.verdicts[key] = found
            self._write()
            self.measured.add(key)
        elif key not in self.measured:
            self.remembered.add(key)
        return Verdict({name: Delta(*values) for name, values in found.deltas.items()})

    def map_error(self, model: onnx.ModelProto) -> float:
        """Mean absolute difference between the maps of `model` and of fp32 on 4 images, in [0, 1]; NaN counts as 1."""
        key = _graph_digest(model)
        if key not in self._results.map_errors:
            if not self._probe_maps:
                self._probe_maps = [saliency for saliency in self._saliency(self.network.model) if saliency is not None]
            errors = [
                1.0 if saliency is None else float(np.abs(saliency - reference).mean())
                for saliency, reference in zip(self._saliency(model), self._probe_maps, strict=True)
            ]
            self._results.map_errors[key] = float(np.mean(errors))
            self._write()
        return self._results.map_errors[key]

    def baseline(self) -> metrics.Scores:
        """The scores of fp32, measured once."""
        if self._baseline is None:
            self._baseline = self._load_baseline()
        if self._baseline is None:
            self._baseline = self._score(self.network.model, "fp32")
            if self._baseline is None:
                raise UserError(
                    f"{self.network.path}: the float32 network itself gives maps that are NaN or infinite on "
                    f"{self.images.name}; check the checkpoint and the contract's mean, std and divide_by"
                )
            with atomic_write(self._file.with_suffix(".npz")) as temporary:
                arrays: dict[str, Any] = {"key": json.dumps(self._results.key), **self._baseline.values}
                np.savez_compressed(temporary, **arrays)
        return self._baseline

    def baseline_summary(self) -> dict[str, float]:
        """The metrics of fp32, by the keys of `METRICS`."""
        names = [sample.name for sample in self.images]
        (defined,), _ = metrics.without_undefined([self.baseline()], names, self.images.name)
        return defined.summary()

    def _deltas(self, scores: metrics.Scores) -> dict[str, Delta]:
        names = [sample.name for sample in self.images]
        (before, after), left_out = metrics.without_undefined([self.baseline(), scores], names, self.images.name)
        if left_out and not self._has_warned:
            terminal.warn(f"{self.images.name}: {metrics.left_out_in_words(left_out)}")
            self._has_warned = True
        if len(before) < FEWEST_IMAGES:
            raise UserError(
                f"{self.images.name} has {len(before)} masks with defined scores, too few to judge a loss at 95 %; "
                f"give --eval {FEWEST_IMAGES} or more"
            )
        return bootstrap_deltas(before, after)

    def _score(self, model: onnx.ModelProto, label: str) -> metrics.Scores | None:
        """The scores on all images; None if a map is NaN or infinite."""
        if self._map is None:
            self._map = self._processes.enter_context(metrics.parallel_map(self._workers))
        with _opened(model) as session:
            try:  # maps are made here while other processes score earlier ones
                maps = (_map(session, sample) for sample in terminal.progress(self.images, label))
                return metrics.join(list(self._map(_score, maps, self.images)))
            except _NotFiniteError:
                return None

    def _saliency(self, model: onnx.ModelProto) -> list[np.ndarray | None]:
        """The maps of the probe images, `(h, w) float32` in [0, 1]; None for a map that is NaN or infinite."""
        with _opened(model) as session:
            maps = []
            for sample in self._probes:
                output = session.infer(as_input(sample, session.contract))[0, 0]
                maps.append(to_saliency(output, session.contract) if _is_valid(output, session.contract) else None)
            return maps

    def _write(self) -> None:
        write_text(self._file, self._results.model_dump_json(indent=1) + "\n")

    def _load(self, images: str) -> Results:
        """The results of an earlier search on the same network and images."""
        empty = Results(format=_FORMAT, network=self.network.digest, images=images)
        if not self._file.exists():
            return empty
        found = read_results(self._file)
        if found.key != empty.key:
            terminal.note(f"{self._file} is of another network or of other images; searching anew")
            return empty
        if found.verdicts or found.map_errors:
            terminal.note(f"{self._file}: {len(found.verdicts)} candidates are measured already")
        return found

    def _load_baseline(self) -> metrics.Scores | None:
        file = self._file.with_suffix(".npz")
        return read_scores(file, self._results.key, len(self.images)) if file.exists() else None


class _NotFiniteError(Exception):
    """A map has values that are NaN or infinite."""


@contextlib.contextmanager
def _opened(model: onnx.ModelProto) -> Iterator[Session]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidate.onnx"
        onnx.save(model, path)
        with open_session(path) as session:
            yield session


def _map(session: Session, sample: Sample) -> np.ndarray:
    def network(batch: np.ndarray) -> np.ndarray:
        output = session.infer(batch)
        if not _is_valid(output, session.contract):
            raise _NotFiniteError
        return output

    return predict(sample.image(), session.contract, network)


def _is_valid(output: np.ndarray, contract: Contract) -> bool:
    """Whether an output can become a map; a logit may be infinite."""
    return not bool(np.isnan(output).any() if contract.output == "logit" else not np.isfinite(output).all())


def _score(saliency: np.ndarray, sample: Sample) -> metrics.Scores:
    return metrics.score(saliency, sample.mask())


def _digest(images: Dataset) -> str:
    """Hex sha256 of all images and masks, in order."""
    digest = hashlib.sha256()
    for sample in images:
        digest.update(sample.digest().encode() + np.ascontiguousarray(sample.mask()).tobytes())
    return digest.hexdigest()


def _graph_digest(model: onnx.ModelProto) -> str:
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()
