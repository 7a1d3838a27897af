"""The calibration pass, divided over Ray's workers: each counts some images after others, and the counts are added."""

import contextlib
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from sodeploy.calib_data import Sample
from sodeploy.errors import UserError
from sodeploy.quant.calibration.inspect_graph import distinct
from sodeploy.quant.calibration.observer import Checkpoint, Observer, add_images, keep
from sodeploy.quant.calibration.statistics import Statistics, load_statistics
from sodeploy.quant.graph import Network, load_network
from sodeploy.runtime.fleet import Fleet, answers
from sodeploy.terminal import progress

_IMAGES_IN_A_PART = 128  # adding up the counts of a part takes seconds; a worker that dies loses a part


class Counting:
    """A worker: it opens the network once, and counts one part after another."""

    def __init__(self, model: Path) -> None:
        self._network = load_network(model)
        self._observer = Observer(self._network)

    def __call__(self, part: dict[str, Sample]) -> bytes:
        """The file of the statistics of some images: hardly a tenth of what they take in memory."""
        statistics = Statistics(self._network.digest)
        deque(add_images(statistics, self._observer, part), maxlen=0)
        with tempfile.TemporaryDirectory() as folder:
            statistics.save(Path(folder, "part.npz"))
            return Path(folder, "part.npz").read_bytes()


def calibrate_divided(
    network: Network,
    images: Iterable[Sample],
    statistics: Statistics | None = None,
    checkpoint: Checkpoint | None = None,
    *,
    fleet: Fleet,
) -> Statistics:
    """As `calibrate`, and with the same result, by the workers of a fleet.

    The ONNX file and the images lie where every worker finds them under these names.

    Raises:
        UserError: also where there is no such cluster.
    """
    statistics = statistics or Statistics(network.digest)
    samples = [(digest, image) for digest, image in distinct(images).items() if digest not in statistics.images]
    parts = [dict(samples[at : at + _IMAGES_IN_A_PART]) for at in range(0, len(samples), _IMAGES_IN_A_PART)]

    def added() -> Iterator[None]:
        with contextlib.closing(answers(Counting, parts, fleet, model=network.path)) as found:
            for _, answer in found:
                if isinstance(answer, UserError):
                    raise answer
                statistics.merge(_read(answer))
                yield

    return keep(progress(added(), "calibrating, parts", total=len(parts)), statistics, checkpoint)


def _read(file: bytes) -> Statistics:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "part.npz")
        path.write_bytes(file)
        return load_statistics(path)
