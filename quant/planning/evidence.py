"""The measurements from which a plan is made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sodeploy.quant.calibration.methods import Method
from sodeploy.quant.calibration.statistics import Statistics
from sodeploy.quant.planning.plan import Range, Rounding


@dataclass(frozen=True)
class Evidence:
    """Everything that was measured of a network; a plan depends on nothing else.

    Attributes:
        statistics: counts of the calibration pass.
        steps: `rounded_key` of a node -> int8, the weights that were rounded adaptively (quant/planning/rounding.py),
            in the shape of the weight. The weight of any other node takes the nearest steps.
        rounding: the file that holds `steps`; a plan names it.
        input_errors: input tensor of a layer -> `(C,)`, how far quantizing the tensor moves the mean of each channel
            (quant/planning/input_error.py).
        input_errors_uint8: the same for the uint8 of the graphs for CPUs.
        ranges: method -> the ranges that this method has already read from the counts. A plan by the method takes the
            ranges of its groups of tensors from here.
    """

    statistics: Statistics
    steps: Mapping[str, np.ndarray] = field(default_factory=dict)
    rounding: Rounding | None = None
    input_errors: Mapping[str, np.ndarray] = field(default_factory=dict)
    input_errors_uint8: Mapping[str, np.ndarray] = field(default_factory=dict)
    ranges: Mapping[Method, Sequence[Range]] = field(default_factory=dict)
