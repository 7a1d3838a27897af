"""A layer that reads tensors of very different magnitudes in one scale stays in float where its plan predicts noise."""

from pathlib import Path

import numpy as np
import pytest

from sodeploy.quant.calibration.observer import calibrate
from sodeploy.quant.graph import load_network
from sodeploy.quant.planning.decide import make_plan
from sodeploy.quant.planning.evidence import Evidence
from sodeploy.quant.planning.plan import Layer
from tests.quant.conftest import NetworkWriter, Picture


class Joined(NetworkWriter):
    """A tensor and its hundredth, pooled, joined, and read by weights that differ by a factor."""

    def save(self, path: Path, factor: float, groups: int = 1) -> Path:
        a = self.conv("image", 3, 8, "a")
        small = self.node("Mul", [a, self.constant("hundredth", np.float32(0.01))], "small")
        pooled = self.node("MaxPool", [small], "pooled", kernel_shape=[3, 3], pads=[1] * 4)
        joined = self.node("Concat", [a, pooled], "joined", axis=1)
        weight = self.rng.standard_normal((8, 16 // groups, 3, 3)).astype(np.float32) / 12
        weight[4 * (groups - 1) :, 8 // groups * (2 - groups) :] *= factor
        self.node("Conv", [joined, self.constant("weight", weight)], "b_pre", pads=[1] * 4, group=groups)
        b = self.node("Relu", ["b_pre"], "b")
        self.node("Sigmoid", [self.conv(self.conv(b, 8, 8, "c"), 8, 1, "head", relu=False)], "saliency")
        return self.write(path)


def planned(path: Path, pictures: list[Picture]) -> dict[str, Layer]:
    network = load_network(path)
    return make_plan(network, Evidence(calibrate(network, pictures))).layers


@pytest.mark.parametrize("groups", [1, 2])
def test_large_weights_on_a_small_part_stay_in_float(tmp_path: Path, pictures: list[Picture], groups: int) -> None:
    layers = planned(Joined().save(tmp_path / "joined.onnx", 100, groups), pictures)
    assert layers["b_pre/Conv"].precision == "fp16"
    assert "joins tensors of different magnitudes: one int8 scale would leave" in layers["b_pre/Conv"].reason
    assert {layers[name].precision for name in ("a_pre/Conv", "c_pre/Conv")} == {"int8"}


def test_equal_weights_are_int8(tmp_path: Path, pictures: list[Picture]) -> None:
    assert planned(Joined().save(tmp_path / "joined.onnx", 1), pictures)["b_pre/Conv"].precision == "int8"
