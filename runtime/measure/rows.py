"""The rows of a bench's record and its recommendation, from what was measured."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sodeploy.runtime.measure.budget import Budget, Verdict
from sodeploy.runtime.measure.differences import bootstrap_deltas
from sodeploy.runtime.measure.published import published_parameters
from sodeploy.runtime.measure.recommendation import Measured, recommend, time_ratio
from sodeploy.runtime.measure.record import Advice, Difference, Published, Row
from sodeploy.runtime.measure.under_test import ModelUnderTest


def row_of(model: ModelUnderTest, tested: Sequence[ModelUnderTest], dataset: str) -> Row:
    """The row of a model among all that were measured on `dataset`; the first is the baseline."""
    baseline, rate = tested[0], model.throughput
    ratio = time_ratio(model.inference_ms(), baseline.inference_ms())
    return Row(
        name=model.name,
        model=model.path,
        network=model.runner.session.contract.network,
        precision=model.precision,
        method=model.method,
        target=model.target,
        device=model.runner.where,
        engine=model.runner.engine,
        published=_published(model, tested),
        params_m=model.counted.params / 1e6 if model.counted else None,
        macs_g=model.counted.macs / 1e9 if model.counted else None,
        input_shape=model.input_shape,
        size_mib=Path(model.path).stat().st_size / 2**20,
        metrics=model.scores.summary(),
        delta={key: Difference.of(delta) for key, delta in bootstrap_deltas(baseline.scores, model.scores).items()},
        map_error=float(np.mean(model.map_errors)),
        latency_ms=model.latency(),
        time_ratio=Difference(value=ratio.value, ci95=ratio.interval),
        stand_in=model.stand_in,
        images_per_s=rate and rate.images_per_s,
        device_memory_mib=rate and rate.memory_mib + model.own_memory_mib,
        calibrated_on=model.calibrated_on,
        images=len(model.scores),
        dataset=dataset,
    )


def _published(model: ModelUnderTest, tested: Sequence[ModelUnderTest]) -> Published:
    """The cost of the network itself. Of several graphs of one network at one size, the float32 one is counted."""
    network = model.runner.session.contract.network
    graphs = [
        other
        for other in tested
        if other.runner.session.contract.network == network and other.input_shape[1:] == model.input_shape[1:]
    ]
    reference = next((other for other in graphs if other.precision == "fp32" and other.counted), model)
    counted = reference.counted
    in_graph = counted.params if counted else None
    published = published_parameters(network, in_graph)
    params = in_graph if published is None else published
    return Published(
        params_m=None if params is None else params / 1e6,
        flops_g=2 * counted.macs / 1e9 if counted else None,
        params_as="graph" if published is None else "published",
    )


def advice_on(tested: Sequence[ModelUnderTest], budget: Budget | None) -> Advice:
    """Which of the models to deploy within `budget`."""
    measured = [
        Measured(
            model.name,
            model.precision,
            Verdict(bootstrap_deltas(tested[0].scores, model.scores)),
            model.inference_ms(),
            model.stand_in,
            bool(model.calibrated_on),
        )
        for model in tested
    ]
    advice = recommend(measured, budget)
    return Advice(
        budget=budget,
        model=None if advice.model is None else tested[advice.model].path,
        engine=None if advice.model is None else tested[advice.model].runner.engine,
        int8_pays=advice.int8_pays,
        text=advice.sentences,
    )
