"""Equalization: the same function, channels of one magnitude, and a better int8 network for it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sodeploy.calib_data import Dataset
from sodeploy.errors import UserError
from sodeploy.quant import build_engine
from sodeploy.quant.calibration.observer import calibrate
from sodeploy.quant.emit.tensorrt import emit_simulation
from sodeploy.quant.equalize import Channels, channel_maxima, needs_equalization, write_equalized
from sodeploy.quant.graph import Network, load_network
from sodeploy.quant.planning.decide import make_plan
from sodeploy.quant.planning.evidence import Evidence
from sodeploy.quant.planning.plan import read_plan
from sodeploy.quant.sources import Edited, Images
from sodeploy.runtime.processing import preprocess
from tests.quant.conftest import NetworkWriter, Picture

Run = Callable[[onnx.ModelProto, np.ndarray], np.ndarray]


class Uneven(NetworkWriter):
    """PReLU, depthwise layers, an octave's sum and a concatenation; some channels are a thousandth of others."""

    def prelu(self, x: str) -> str:
        slopes = self.constant(f"{x}.slope", self.rng.uniform(0, 0.5, (8, 1, 1)).astype(np.float32))
        return self.node("PRelu", [x, slopes], f"{x}_prelu")

    def save(self, path: Path) -> Path:
        a = self.prelu(self.conv("image", 3, 8, "a", relu=False))
        b = self.prelu(self.conv(a, 8, 8, "b", relu=False, groups=8))
        half = self.node("MaxPool", [b], "half", kernel_shape=[2, 2], strides=[2, 2])
        scales = self.constant("scales", np.array([1, 1, 2, 2], np.float32))
        up = self.node("Resize", [self.conv(half, 8, 8, "c", relu=False), "", scales], "up", mode="linear")
        total = self.prelu(self.node("Add", [self.conv(b, 8, 8, "d", relu=False), up], "total"))
        joined = self.node("Concat", [b, total], "joined", axis=1)
        e = self.conv(joined, 16, 16, "e", groups=16)
        self.node("Sigmoid", [self.conv(e, 16, 1, "head", relu=False)], "saliency")
        spread = np.geomspace(1, 1e-3, 8, dtype=np.float32)
        self._scale(spread.reshape(8, 1, 1, 1), "a.weight")
        self._scale(spread, "a.bias")
        self._scale(1 / spread.reshape(8, 1, 1, 1), "b.weight")
        return self.write(path)

    def _scale(self, factors: np.ndarray, name: str) -> None:
        constant = next(constant for constant in self.constants if constant.name == name)
        constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant) * factors, name))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return load_network(Uneven(seed=3).save(tmp_path_factory.mktemp("uneven") / "uneven.onnx"))


@pytest.fixture(scope="module")
def equalized(uneven: Network, pictures: list[Picture], tmp_path_factory: pytest.TempPathFactory) -> Network:
    path = tmp_path_factory.mktemp("equalized") / "equalized.onnx"
    write_equalized(uneven, pictures, path)
    return load_network(path)


@pytest.fixture(scope="module")
def inputs(uneven: Network) -> list[np.ndarray]:
    return [preprocess(Picture("", seed).image(), uneven.contract)[None] for seed in range(20, 26)]


def test_the_function_stays(uneven: Network, equalized: Network, inputs: list[np.ndarray], run: Run) -> None:
    for x in inputs:
        np.testing.assert_allclose(run(equalized.model, x), run(uneven.model, x), rtol=0, atol=1e-5)


def test_channels_of_a_tensor_become_alike(uneven: Network, equalized: Network, pictures: list[Picture]) -> None:
    def unlike(network: Network) -> float:
        (largest,) = (v for name, v in channel_maxima(network, pictures).items() if name == "a_prelu")
        return float(largest.max() / largest.min())

    assert unlike(uneven) > 300
    assert unlike(equalized) < 5  # a factor is 256 at most


def test_int8_loses_less(
    uneven: Network, equalized: Network, pictures: list[Picture], inputs: list[np.ndarray], run: Run
) -> None:
    def error(network: Network) -> float:
        simulation = emit_simulation(network, make_plan(network, Evidence(calibrate(network, pictures)), "max"))
        return float(np.mean([np.abs(run(simulation, x) - run(uneven.model, x)).mean() for x in inputs]))

    assert error(equalized) < error(uneven) / 3


def test_what_must_be_scaled_alike(uneven: Network) -> None:
    channels = Channels(uneven)
    assert (channels.of["total"] == channels.of["up"]).all()  # both terms of a sum
    assert (channels.of["joined"] == np.append(channels.of["half"], channels.of["total_prelu"])).all()
    assert not set(channels.of["a"]) & set(channels.of["b"])  # a layer in between takes up both factors
    fixed = {name for name, groups in channels.of.items() if set(groups) & channels.fixed}
    assert fixed == {"image", "head", "saliency"}


def test_a_build_equalizes_what_has_depthwise_layers(
    uneven: Network, unet: Network, pictures: list[Picture], tmp_path: Path
) -> None:
    assert needs_equalization(uneven)
    assert not needs_equalization(unet)
    images = Dataset("pictures", pictures)
    build_engine.build(uneven.path, tmp_path, Images(images), engines=False)
    made = tmp_path / "uneven.equalized.onnx"
    assert read_plan(tmp_path / "uneven.plan.json").onnx == made.name
    first = (tmp_path / "uneven.int8.trt.onnx").read_bytes()
    build_engine.build(uneven.path, tmp_path, Edited(tmp_path / "uneven.plan.json"), engines=False)
    assert (tmp_path / "uneven.int8.trt.onnx").read_bytes() == first
    made.unlink()
    with pytest.raises(UserError, match=r"was made for uneven\.equalized\.onnx"):
        build_engine.build(uneven.path, tmp_path, Edited(tmp_path / "uneven.plan.json"), engines=False)
