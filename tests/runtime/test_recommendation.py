"""What a bench advises: from losses and times that are given, so that every case can be had."""

import numpy as np
import pytest

from sodeploy.runtime.measure.budget import Verdict
from sodeploy.runtime.measure.differences import Delta
from sodeploy.runtime.measure.recommendation import Measured, recommend, time_ratio

BUDGET = {"s": 0.002, "mae": 0.001}
BASE = np.random.default_rng(0).lognormal(2, 0.3, 50)  # ms: some images, and some moments, are slower for all


def measured(
    name: str, precision: str, speed: float, loss: float = 0.0, spread: float = 0.01, **facts: object
) -> Measured:
    """A model that takes `speed` times as long as the first, and loses `loss` of S, give or take a tenth of it."""
    noise = np.random.default_rng(sum(name.encode())).lognormal(0, spread, len(BASE)) if speed != 1 else 1
    deltas = {"s": Delta(-loss, -1.1 * loss, -0.9 * loss), "mae": Delta(0, 0, 0)}
    return Measured(name, precision, Verdict(deltas), BASE * speed * noise, **facts)  # type: ignore[arg-type]


FP32 = measured("net", "fp32", 1)


def test_the_fastest_within_the_budget() -> None:
    models = [FP32, measured("net.fp16", "fp16", 0.5), measured("net.int8", "int8", 0.4, 0.001),
              measured("net.small", "int8", 0.2, 0.004)]  # fmt: skip
    advice = recommend(models, BUDGET)
    assert (advice.model, advice.int8_pays) == (2, True)
    first, half, small, pays = advice.sentences
    assert first.startswith(
        "Recommended: net.int8. It keeps to the budget (S .0020, MAE .0010) at 95 % and takes 0.40 "
    )
    assert half.startswith("net.fp16 keeps to the budget too, but takes longer: 0.50 times (0.50 to 0.5")
    assert small.startswith("net.small is faster, 0.20 times (")
    assert small.endswith("but loses too much: .0040 S, at 95 % up to .0044 (.0020 allowed).")
    assert pays.startswith("int8 pays here: net.small takes 0.4")
    assert pays.endswith(" the inference time of net.fp16.")


def test_int8_that_does_not_pay() -> None:
    advice = recommend([FP32, measured("net.int8", "int8", 1.8)], BUDGET)
    assert (advice.model, advice.int8_pays) == (0, False)
    assert advice.sentences[0].startswith("Recommended: net. Nothing that keeps to the budget")
    assert advice.sentences[1].startswith("net.int8 keeps to the budget but takes 1.80 times (")
    assert advice.sentences[1].endswith("the inference time of net: int8 does not pay here.")
    assert len(advice.sentences) == 2


def test_int8_that_pays_against_fp32_but_not_against_fp16() -> None:
    models = [FP32, measured("net.fp16", "fp16", 0.3), measured("net.int8", "int8", 0.33)]
    advice = recommend(models, BUDGET)
    assert (advice.model, advice.int8_pays) == (1, False)
    assert advice.sentences[-1].startswith("int8 does not pay here: net.int8 takes 1.1")


def test_what_is_faster_within_the_noise_is_not_faster() -> None:
    models = [FP32, measured("net.fp16", "fp16", 0.999, spread=0.2), measured("net.int8", "int8", 1.001, spread=0.2)]
    advice = recommend(models, BUDGET)
    assert (advice.model, advice.int8_pays) == (0, None)
    assert "net.fp16 keeps to the budget too; it is as fast as net within the noise, " in advice.sentences[1]
    assert advice.sentences[-1].startswith("Whether int8 pays is within the noise: net.int8 takes ")


def test_simulations_are_never_recommended() -> None:
    models = [FP32, measured("net.int8.sim", "int8", 0.01, stand_in="simulates an engine"),
              measured("net.fp16.sim", "fp16", 0.01, 0.01, stand_in="simulates an engine")]  # fmt: skip
    advice = recommend(models, BUDGET)
    assert (advice.model, advice.int8_pays) == (0, None)
    assert advice.sentences[1:] == [
        "net.int8.sim simulates an engine, so its time says nothing; it keeps to the budget.",
        "net.fp16.sim simulates an engine, so its time says nothing; it loses too much: .0100 S, at 95 % up to .0110 "
        "(.0020 allowed).",
    ]
    assert recommend(models[1:], BUDGET).model is None
    assert recommend(models[1:], None).sentences[0].startswith("None of these models would be deployed")


def test_a_loss_that_too_few_images_leave_uncertain() -> None:
    unsure = Measured("net.int8", "int8", Verdict({"s": Delta(-0.001, -0.004, 0.002)}), BASE / 2)
    advice = recommend([FP32, unsure], {"s": 0.002})
    assert advice.model == 0
    assert (
        "but may lose too much: .0010 S, at 95 % up to .0040 (.0020 allowed); about 450 images" in advice.sentences[1]
    )


def test_a_model_calibrated_on_these_images_cannot_be_judged_on_them() -> None:
    advice = recommend([FP32, measured("net.int8", "int8", 0.4, calibrated_here=True)], BUDGET)
    assert (advice.model, advice.int8_pays) == (0, True)
    assert "but was calibrated on some of these images" in advice.sentences[1]


def test_a_baseline_that_is_itself_unfit() -> None:
    broken = Measured("net", "fp32", Verdict({}), BASE)
    advice = recommend([broken, measured("net.int8", "int8", 0.4, 0.01)], BUDGET)
    assert advice.model is None
    assert advice.sentences[0].startswith("None of the models that could be deployed keeps to the budget")
    assert advice.sentences[1] == "net loses too much: the whole map, which becomes NaN or infinite."
    assert advice.sentences[-1].startswith("int8 pays here")


def test_without_a_budget_nothing_is_recommended() -> None:
    advice = recommend([FP32, measured("net.int8", "int8", 0.4, 0.1)], None)
    assert (advice.model, advice.int8_pays) == (None, True)
    assert advice.sentences[0].startswith("Fastest: net.int8, 0.40 times (")
    assert "nothing is recommended" in advice.sentences[-1]
    assert recommend([FP32, measured("net.int8", "int8", 2)], None).sentences[0] == "Nothing here is faster than net."


def test_too_few_images_to_compare_times_on() -> None:
    models = [Measured(name, "fp32", Verdict({}), np.ones(5)) for name in "ab"]
    assert recommend(models, BUDGET).sentences == ["Times on 5 images cannot be compared; give 6 or more."]


def test_the_interval_of_a_ratio() -> None:
    ratio = time_ratio(np.arange(1.0, 7), np.ones(6))
    assert (ratio.value, ratio.interval) == (3.5, (1, 6))
    assert time_ratio(np.arange(1.0, 6), np.ones(5)).interval is None
    assert time_ratio(BASE * 0.5, BASE).interval == pytest.approx((0.5, 0.5))  # what all have in common cancels
    # Tables of the sign test: of 20 values the 6th and the 15th.
    assert time_ratio(np.arange(1.0, 21), np.ones(20)).interval == (6, 15)
    random = np.random.default_rng(1)
    draws = [time_ratio(random.lognormal(0, 0.1, 25), np.ones(25)) for _ in range(1000)]
    assert 0.94 < np.mean([not draw.faster and not draw.slower for draw in draws]) < 0.98
