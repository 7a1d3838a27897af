"""A small network with what quantization has to cope with, and images for it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sodeploy.quant.calibration.observer import calibrate
from sodeploy.quant.calibration.statistics import Statistics
from sodeploy.quant.graph import Network, load_network
from sodeploy.quant.planning.decide import make_plan
from sodeploy.quant.planning.evidence import Evidence
from sodeploy.quant.planning.plan import Plan
from sodeploy.runtime.contract import Contract, embed


@dataclass(frozen=True)
class Picture:
    """A sample that lives in memory."""

    name: str
    seed: int

    def image(self) -> np.ndarray:
        rng = np.random.default_rng(self.seed)
        image = rng.integers(0, 80, (40, 48, 3), np.uint8)
        y, x = rng.integers(4, 20, 2)
        image[y : y + 16, x : x + 20] += rng.integers(60, 170, 3, np.uint8)
        return image

    def mask(self) -> np.ndarray:
        raise NotImplementedError

    def digest(self) -> str:
        return f"{self.seed:064x}"


@pytest.fixture(scope="session")
def pictures() -> list[Picture]:
    return [Picture(f"picture {seed}", seed) for seed in range(6)]


class NetworkWriter:
    """Writes a network as ONNX, node by node; its map is the tensor "saliency"."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, values: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{output}/{op}", **attributes))
        return output

    def conv(
        self, x: str, cin: int, cout: int, name: str, relu: bool = True, groups: int = 1, dilation: int = 1
    ) -> str:
        fan = cin // groups * 9
        weight = self.rng.standard_normal((cout, cin // groups, 3, 3)) * np.sqrt(2 / fan)
        bias = self.rng.standard_normal(cout) * 0.1
        inputs = [
            x,
            self.constant(f"{name}.weight", weight.astype(np.float32)),
            self.constant(f"{name}.bias", bias.astype(np.float32)),
        ]
        pads = [dilation] * 4
        out = f"{name}_pre" if relu else name
        self.node("Conv", inputs, out, pads=pads, group=groups, dilations=[dilation] * 2)
        return self.node("Relu", [out], name) if relu else out

    def write(self, path: Path, size: int = 32, contract: bool = True) -> Path:
        tensor = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            path.stem,
            [tensor("image", TensorProto.FLOAT, [1, 3, size, size])],
            [tensor("saliency", TensorProto.FLOAT, [1, 1, size, size])],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        if contract:
            statistics = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
            embed(model, Contract(network=path.stem, height=size, width=size, **statistics))
        onnx.save(model, path)
        return path


class UNet(NetworkWriter):
    """A U-shaped network: pooling, groups, dilation, a residual sum, resize, concatenation, a head."""

    def save(self, path: Path, size: int = 32, contract: bool = True) -> Path:
        a = self.conv("image", 3, 16, "a")
        pooled = self.node("MaxPool", [a], "pooled", kernel_shape=[2, 2], strides=[2, 2])
        b = self.conv(pooled, 16, 16, "b", groups=4)
        c = self.conv(b, 16, 16, "c", dilation=2)
        total = self.node("Add", [c, b], "total")
        sizes = self.constant("sizes", np.array([1, 16, size, size], np.int64))
        up = self.node(
            "Resize", [total, "", "", sizes], "up", mode="linear", coordinate_transformation_mode="half_pixel"
        )
        joined = self.node("Concat", [up, a], "joined", axis=1)
        d = self.conv(joined, 32, 16, "d")
        head = self.conv(d, 16, 1, "head", relu=False)
        self.node("Sigmoid", [head], "saliency")
        return self.write(path, size, contract)


@pytest.fixture(scope="session")
def unet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return UNet().save(tmp_path_factory.mktemp("unet") / "unet.onnx")


@pytest.fixture(scope="session")
def unet(unet_file: Path) -> Network:
    return load_network(unet_file)


@pytest.fixture(scope="session")
def statistics(unet: Network, pictures: list[Picture]) -> Statistics:
    return calibrate(unet, pictures)


@pytest.fixture(scope="session")
def plan(unet: Network, statistics: Statistics) -> Plan:
    return make_plan(unet, Evidence(statistics))


@pytest.fixture(scope="session")
def run() -> Callable[[onnx.ModelProto, np.ndarray], np.ndarray]:
    """Run a model in onnxruntime: (model, (N, 3, h, w) float32) -> its first output."""
    import onnxruntime

    def run(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        return np.asarray(session.run(None, {session.get_inputs()[0].name: image})[0])

    return run


@pytest.fixture(scope="session")
def large(unet_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Network:
    """The U-shaped network with a layer, c, that reaches 1e6; d and the head scale it back."""
    model = onnx.load(unet_file)
    factors = {"c.weight": 1e6, "c.bias": 1e6, "d.weight": 1e-3, "head.weight": 1e-3}
    for tensor in model.graph.initializer:
        if tensor.name in factors:
            values = numpy_helper.to_array(tensor) * np.float32(factors[tensor.name])
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    path = tmp_path_factory.mktemp("large") / "large.onnx"
    onnx.save(model, path)
    return load_network(path)
