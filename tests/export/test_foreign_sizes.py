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


@pytest.mark.parametrize("free", [-1, 0])
def test_dimensions_of_no_size_are_free(tmp_path: Path, free: int) -> None:
    model = network(shape=(free, 3, free, free), output_shape=(free, 1, free, free))
    new = adopted(model, tmp_path, size=(H, W))
    assert contract(new).batch is None
    np.testing.assert_allclose(plain(new, images(2)), plain(network(shape=("n", 3, H, W)), images(2)), atol=1e-6)


def test_the_usual_size_gives_way_to_the_size_of_the_file(tmp_path: Path) -> None:
    assert contract(adopted(network(), tmp_path, usual_size=(320, 320))).height == H
    half_free = network(shape=(1, 3, H, "w"))
    made = contract(adopted(half_free, tmp_path, usual_size=(320, W)))
    assert (made.height, made.width) == (H, W)


def test_refusals_of_a_size_say_what_to_leave_out(tmp_path: Path) -> None:
    refused(network(), tmp_path, r"takes a size of 24x32 only, not 64x64; leave --size out", size=(64, 64))
    refused(network(), tmp_path, "takes a batch of 1 only, not 4; leave --batch out", batch=4)
    refused(network(shape=(1, 3, H, "w")), tmp_path, "takes 24xw, a side of any size; say which is its native one")


def test_a_size_that_works_is_named(tmp_path: Path) -> None:
    body = [
        helper.make_node("Conv", ["features", "head"], ["logit"]),
        helper.make_node("Reshape", ["logit", "fixed"], ["flat"]),
        helper.make_node("Sigmoid", ["flat"], ["saliency"]),
    ]
    model = network(body, {"fixed": np.array([1, 1, 320, 320], np.int64)}, shape=(1, 3, "h", "w"))
    refused(model, tmp_path, "it takes 320x320: --size 320", size=(H, W))
    model = network(body, {"fixed": np.array([1, 1, 320, 320], np.int64)})
    refused(model, tmp_path, "its graph contradicts the input that it declares: export it again")
