"""Pre- and post-processing against formulas written out plainly."""

import cv2
import numpy as np
import pytest

from sodeploy.errors import UserError
from sodeploy.runtime.processing import postprocess, preprocess

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (37, 51, 3), dtype=np.uint8)


@pytest.mark.parametrize("interpolation", ["linear", "area"])
@pytest.mark.parametrize("divide_by", ["255", "max"])
@pytest.mark.parametrize("colour", ["RGB", "BGR"])
def test_preprocess_is_resize_divide_normalise(image, make_contract, interpolation, divide_by, colour):
    contract = make_contract(interpolation=interpolation, divide_by=divide_by, colour=colour, **IMAGENET)
    tensor = preprocess(image, contract)

    flag = cv2.INTER_LINEAR if interpolation == "linear" else cv2.INTER_AREA
    resized = cv2.resize(image, (24, 16), interpolation=flag).astype(np.float64)
    if colour == "BGR":
        resized = resized[..., ::-1]
    expected = (resized / (255 if divide_by == "255" else resized.max()) - IMAGENET["mean"]) / IMAGENET["std"]
    assert tensor.shape == (3, 16, 24)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    np.testing.assert_allclose(tensor, expected.transpose(2, 0, 1), atol=1e-6)


def test_preprocess_divides_by_the_maximum_after_the_resize(make_contract):
    image = np.full((64, 96, 3), 100, np.uint8)
    image[0, 0] = 255  # averaged away by the resize
    assert preprocess(image, make_contract(divide_by="max", interpolation="area")).max() == pytest.approx(1.0)


def test_preprocess_leaves_a_black_image_finite(make_contract):
    tensor = preprocess(np.zeros((5, 7, 3), np.uint8), make_contract(divide_by="max", **IMAGENET))
    np.testing.assert_allclose(tensor[:, 0, 0], [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225], rtol=1e-6)


def test_preprocess_takes_another_size(image, make_contract):
    assert preprocess(image, make_contract(), size=(40, 32)).shape == (3, 40, 32)


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), "u1")]
)
def test_preprocess_refuses_what_is_no_image(bad, make_contract):
    with pytest.raises(ValueError, match="expected an image"):
        preprocess(bad, make_contract())


def test_postprocess_rounds_and_resizes(make_contract):
    output = np.random.default_rng(1).random((16, 24), np.float32)
    result = postprocess(output, make_contract(), (33, 20))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, np.rint(cv2.resize(output, (20, 33)) * 255))


def test_postprocess_stretches_to_the_full_range(make_contract):
    output = np.linspace(0.4, 0.6, 16 * 24, dtype=np.float32).reshape(16, 24)
    result = postprocess(output, make_contract(stretch=True), (16, 24))
    assert (result.min(), result.max()) == (0, 255)


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_postprocess_leaves_a_constant_map_as_it_is(make_contract, value):
    result = postprocess(np.full((16, 24), value, np.float32), make_contract(stretch=True), (8, 8))
    np.testing.assert_array_equal(result, np.full((8, 8), round(value * 255), np.uint8))


def test_postprocess_clips_what_overshoots(make_contract):
    output = np.array([[-0.5, 0.5, 1.5]], np.float32)
    np.testing.assert_array_equal(postprocess(output, make_contract(), (1, 3)), [[0, 128, 255]])


def test_postprocess_turns_logits_into_probabilities(make_contract):
    logits = np.array([[-np.inf, -100, -2, 0, 2, 100, np.inf]], np.float32)
    result = postprocess(logits, make_contract(output="logit"), (1, 7))
    np.testing.assert_array_equal(result, [[0, 0, 30, 128, 225, 255, 255]])


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_postprocess_names_a_broken_output(make_contract, broken):
    output = np.zeros((16, 24), np.float32)
    output[3, 4] = broken
    with pytest.raises(UserError, match=r"tiny: 1 of 384 output values are NaN or infinite"):
        postprocess(output, make_contract(stretch=True), (8, 8))


def test_postprocess_names_a_nan_logit(make_contract):
    with pytest.raises(UserError, match="1 of 2"):
        postprocess(np.array([[np.nan, 0]], np.float32), make_contract(output="logit"), (8, 8))
