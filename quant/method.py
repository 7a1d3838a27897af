"""Which method of choosing ranges suits a network: the one whose int8 maps are nearest to float32's."""

from collections.abc import Iterable

import numpy as np

from calib_data import Sample
from quant.calibrate import Statistics
from quant.emit import emit_simulation
from quant.graph import Network
from quant.observe import as_input, opened, some
from quant.planning import make_plan
from quant.thresholds import Method
from sodeploy import terminal

CANDIDATES: tuple[Method, ...] = ("kl", "mse")  # the two that weigh clipping against rounding, by different measures
IMAGES = 8


def method_errors(
    network: Network, statistics: Statistics, images: Iterable[Sample], threads: int | None = None
) -> dict[Method, float]:
    """The mean difference of the map to float32's, for each of `CANDIDATES`, on `IMAGES` of `images`.

    It needs no masks, so that calibration images will do.
    """
    inputs = [as_input(sample, network.contract) for sample in some(images, IMAGES)]
    output = [network.contract.output_name]
    exact = opened(network.model, output, threads)
    references = [exact(image)[0] for image in inputs]
    errors: dict[Method, float] = {}
    for method in terminal.progress(CANDIDATES, "comparing methods"):
        simulated = opened(emit_simulation(network, make_plan(network, statistics, method)), output, threads)
        differences = [np.abs(simulated(image)[0] - y).mean() for image, y in zip(inputs, references, strict=True)]
        errors[method] = float(np.mean(differences))
    return errors
