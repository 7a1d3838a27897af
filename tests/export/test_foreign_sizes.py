"""Sizes and batches that a graph takes are found, and others refused with a remedy."""

from pathlib import Path

import numpy as np
import pytest
from foreign_files import H, W, adopted, contract, images, network, plain, refused
from onnx import helper


def test_batch_fixed_inside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = [
        helper.make_node("Conv", ["features", "head"], ["logit"]),
        helper.make_node("Reshape", ["logit", "one"], ["flat"]),
        helper.make_node("Sigmoid", ["flat"], ["saliency"]),
    ]
    model = network(body, {"one": np.array([1, 1, H, W], np.int64)}, shape=("n", 3, H, W))
    new = adopted(model, tmp_path)
    assert contract(new).batch == 1
    assert "the graph takes 1 only" in " ".join(capsys.readouterr().err.split())
    np.testing.assert_allclose(plain(new, images()), plain(model, images()), atol=1e-6)


def test_a_batch_that_mixes_its_images_is_fixed(tmp_path: Path) -> None:
    body = [
        helper.make_node("Conv", ["features", "head"], ["logit"]),
        helper.make_node("ReduceMax", ["logit"], ["most"]),
        helper.make_node("Sub", ["logit", "most"], ["lower"]),
        helper.make_node("Sigmoid", ["lower"], ["saliency"]),
    ]
    assert contract(adopted(network(body, shape=("n", 3, H, W)), tmp_path)).batch == 1


@pytest.mark.parametrize("batch", [2, 4, 5])
def test_fixed_batch(tmp_path: Path, batch: int) -> None:
    model = network(shape=(batch, 3, H, W))
    new = adopted(model, tmp_path)
    assert contract(new).batch == batch
    np.testing.assert_allclose(plain(new, images(batch)), plain(model, images(batch)), atol=1e-6)


def test_size_that_does_not_fit(tmp_path: Path) -> None:
    body = [
        helper.make_node("MaxPool", ["features"], ["small"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Resize", ["small", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("Concat", ["features", "large"], ["both"], axis=1),
        helper.make_node("Conv", ["both", "wide"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["saliency"]),
    ]
    constants = {"scales": np.array([1, 1, 4, 4], np.float32), "wide": np.full((1, 8, 1, 1), 0.3, np.float32)}
    model = network(body, constants, shape=(1, 3, "h", "w"))
    refused(
        model,
        tmp_path,
        "does not take a batch of 1 at 30x30; its sides must be multiples of 4: --size 28 28 or",
        size=(30, 30),
    )
    refused(model, tmp_path, "takes more than 4 GiB", size=(10**6, 10**6))
    assert contract(adopted(model, tmp_path, size=(32, 28))).height == 32
