"""What quantizing inputs does to means: measured right, and made up for."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from sodeploy.quant.calibration import inspect_graph
from sodeploy.quant.calibration.inspect_graph import as_input, opened
from sodeploy.quant.calibration.statistics import Statistics
from sodeploy.quant.emit.tensorrt import emit_simulation
from sodeploy.quant.graph import Network
from sodeploy.quant.int8 import fp16_scale
from sodeploy.quant.planning.decide import int8_layer
from sodeploy.quant.planning.evidence import Evidence
from sodeploy.quant.planning.input_error import input_errors
from sodeploy.quant.planning.plan import Plan
from tests.quant.conftest import Picture

Run = Callable[[onnx.ModelProto, np.ndarray], np.ndarray]


def clipping(plan: Plan) -> Plan:
    """The plan with ranges of a third."""
    narrow = plan.model_copy(deep=True)
    for shared in narrow.ranges:
        shared.amax /= 3
    return narrow


def test_errors_are_those_of_the_range(unet: Network, plan: Plan, pictures: list[Picture]) -> None:
    narrow = clipping(plan)
    found = input_errors(unet, narrow.ranges, pictures).int8
    scale = fp16_scale(narrow.range_of()["joined"].amax / 127)
    moved = []
    for picture in pictures:
        (x,) = opened(unet.model, ["joined"])(as_input(picture, unet.contract))
        moved.append((np.clip(np.rint(x / scale), -128, 127) * scale - x).mean(axis=(0, 2, 3)))
    assert found["joined"] == pytest.approx(np.mean(moved, axis=0), abs=1e-5)
    assert found["joined"].min() < -0.1  # it does clip


def test_errors_of_uint8_are_those_of_its_own_interval(unet: Network, plan: Plan, pictures: list[Picture]) -> None:
    narrow = plan.model_copy(deep=True)
    shared = narrow.range_of()["image"]
    shared.uint8 = (-0.5, 1.5)
    scale, zero = 2 / 255, round(0.5 / (2 / 255))
    moved = []
    for picture in pictures:
        x = as_input(picture, unet.contract)
        steps = np.clip(np.rint(x / np.float32(scale)) + zero, 0, 255)
        moved.append(((steps - zero) * scale - x).mean(axis=(0, 2, 3)))
    assert input_errors(unet, narrow.ranges, pictures).uint8["image"] == pytest.approx(np.mean(moved, axis=0), abs=1e-5)


def test_order_makes_no_difference(unet: Network, plan: Plan, pictures: list[Picture]) -> None:
    once = input_errors(unet, plan.ranges, pictures).int8
    again = input_errors(unet, plan.ranges, pictures[::-1]).int8
    assert all(np.array_equal(once[tensor], again[tensor]) for tensor in once)


def test_means_of_a_clipping_network_are_restored(
    unet: Network, plan: Plan, statistics: Statistics, pictures: list[Picture], run: Run
) -> None:
    """Layer d alone, whose input is clipped at a third of its range."""
    narrow = clipping(plan)
    corrected = Evidence(statistics, input_errors=input_errors(unet, narrow.ranges, pictures).int8)
    (node,) = [node for node in unet.nodes if node.name == "d_pre/Conv"]

    def moved(evidence: Evidence) -> float:
        """How far the mean of each channel of d is from that of fp32 over the pictures, at most."""
        layer = int8_layer(unet, node, evidence)
        graph = emit_simulation(unet, narrow.model_copy(update={"layers": {"d_pre/Conv": layer}}))
        errors = []
        for picture in pictures:
            x = as_input(picture, unet.contract)
            (ours,), (theirs,) = opened(graph, ["d_pre"])(x), opened(unet.model, ["d_pre"])(x)
            errors.append((ours - theirs)[:, :, 1:-1, 1:-1].mean(axis=(0, 2, 3)))
        return float(np.abs(np.mean(errors, axis=0)).max())

    assert moved(corrected) < moved(Evidence(statistics)) / 5


@pytest.mark.parametrize("cores", [1, 3])
def test_the_number_of_cores_changes_no_byte(
    unet: Network, plan: Plan, pictures: list[Picture], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = input_errors(unet, plan.ranges, pictures)
    monkeypatch.setattr(inspect_graph, "usable_cores", lambda: cores)
    found = input_errors(unet, plan.ranges, pictures)
    for ours, theirs in zip(found, wanted, strict=True):
        assert all(ours[tensor].tobytes() == theirs[tensor].tobytes() for tensor in theirs)
