"""Tiny models and images for the runtime's tests."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from emulated_device import EmulatedDevice, compile_kernels

from sodeploy.runtime.contract import Contract, embed
from sodeploy.runtime.gpu import device as device_module
from sodeploy.runtime.gpu.device import open_device
from sodeploy.runtime.gpu.driver import driver_problem
from sodeploy.runtime.media.pictures import load_estimation

SaveModel = Callable[..., Path]
if binding := os.environ.get("TEST_BINDING"):  # the tests of test_device.py that run others on an imitated driver
    device_module.BINDINGS = {binding: device_module.BINDINGS[binding]}  # type: ignore[index, dict-item]


def contract(**fields: object) -> Contract:
    """A contract that leaves pixel values / 255 as they are, at 16x24, unless told otherwise."""
    defaults: dict[str, object] = {
        "network": "tiny",
        "height": 16,
        "width": 24,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
    }
    return Contract.model_validate(defaults | fields)


@pytest.fixture
def make_contract() -> Callable[..., Contract]:
    return contract


@pytest.fixture
def save_model(tmp_path: Path) -> SaveModel:
    """Save a one-convolution model: saliency = clip(weights . rgb + bias, 0, 1); returns its path."""

    def save(
        name: str = "tiny.onnx",
        weights: tuple[float, float, float] = (0.3, 0.4, 0.3),
        bias: float = 0.0,
        metadata: dict[str, str] | None = None,
        with_contract: bool = True,
        extra_output: bool = False,
        dtype: type = np.float32,
        **fields: object,
    ) -> Path:
        agreed = contract(**fields)
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        batch = agreed.batch or "N"
        size = ["H", "W"] if agreed.dynamic_size else [agreed.height, agreed.width]
        value = onnx.helper.make_tensor_value_info
        outputs = [value(agreed.output_name, kind, [batch, 1, *size])]
        nodes = [
            onnx.helper.make_node("Conv", [agreed.input_name, "weight", "bias"], ["sum"]),
            onnx.helper.make_node("Clip", ["sum", "zero", "one"], [agreed.output_name]),
        ]
        if extra_output:
            nodes.append(onnx.helper.make_node("Relu", ["sum"], ["side"]))
            outputs.insert(0, value("side", kind, [batch, 1, *size]))
        graph = onnx.helper.make_graph(
            nodes,
            "tiny",
            [value(agreed.input_name, kind, [batch, 3, *size])],
            outputs,
            [
                onnx.numpy_helper.from_array(np.array(weights, dtype).reshape(1, 3, 1, 1), "weight"),
                onnx.numpy_helper.from_array(np.array([bias], dtype), "bias"),
                onnx.numpy_helper.from_array(np.array(0, dtype), "zero"),
                onnx.numpy_helper.from_array(np.array(1, dtype), "one"),
            ],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        if with_contract:
            embed(model, agreed)
        for key, text in (metadata or {}).items():
            model.metadata_props.add(key=key, value=text)
        path = tmp_path / name
        onnx.save(model, path)
        return path

    return save


@pytest.fixture(scope="session")
def estimation() -> None:
    """pymatting is loaded, which a service does at its start, with a note, and is not ready meanwhile."""
    if importlib.util.find_spec("pymatting") is not None:
        load_estimation()


@pytest.fixture(scope="session", params=["emulated"] if driver_problem() else ["emulated", "gpu"])
def device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Runs our CUDA kernels: compiled by g++ on the CPU, and on the GPU where there is one."""
    if request.param == "gpu":
        with open_device() as gpu, gpu.current():
            yield gpu
        return
    prebuilt = os.environ.get("SODEPLOY_TEST_KERNELS")  # set by the tests that run others under a sanitizer
    if not prebuilt and shutil.which("g++") is None:
        pytest.skip("needs g++ to compile the kernels")
    yield EmulatedDevice(Path(prebuilt or compile_kernels(tmp_path_factory.mktemp("kernels") / "kernels.so")))
