"""The changes that quantized layers make, measured together, against one graph for each layer alone."""

import numpy as np
import pytest

from sodeploy.quant import layer_changes
from sodeploy.quant.calibration.inspect_graph import as_input, inspection_options, opened
from sodeploy.quant.calibration.parts import joined, split
from sodeploy.quant.emit.tensorrt import with_fake_quantization
from sodeploy.quant.graph import Network
from sodeploy.quant.planning.plan import Plan
from sodeploy.runtime.onnx_session import start_session


@pytest.mark.parametrize("at_a_time", [1, 2, 16])
@pytest.mark.parametrize("shifted", [False, True])
def test_layers_do_not_meet_in_the_graph_that_they_share(
    unet: Network, plan: Plan, pictures: list, at_a_time: int, shifted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_changes, "_AT_A_TIME", at_a_time)
    plan = plan.model_copy(deep=True)
    if shifted:
        plan.range_of()["pooled"].shift = 0.25
    layers = [node.name for node in unet.nodes if node.name in plan.nodes("int8")]
    map_name = unet.model.graph.output[0].name
    (part,) = split(unet.model, [map_name, "d"], 2**40)
    image = as_input(pictures[0], unet.contract)
    outputs, changes = layer_changes.changes_in(part, layers, unet, plan, {unet.input: image})
    assert list(changes) == layers
    reference = dict(zip(part.outputs, opened(unet.model, part.outputs)(image), strict=True))
    for name, expected in reference.items():
        np.testing.assert_allclose(outputs[name], expected, atol=1e-5)
    for layer in layers:
        alone = plan.model_copy(update={"layers": {layer: plan.layers[layer]}})
        changed = opened(with_fake_quantization(unet, alone, unet.model), part.outputs)(image)
        for name, values in zip(part.outputs, changed, strict=True):
            square = np.square(values - reference[name], dtype=np.float64).sum()
            assert changes[layer].get(name, 0) == pytest.approx(square, rel=1e-3, abs=1e-9)
    assert all(square > 0 for squares in changes.values() for square in squares.values())


def test_joined_parts_pass_on_what_later_parts_read_and_the_map(unet: Network, pictures: list) -> None:
    map_name = unet.model.graph.output[0].name
    tensors = [name for name in unet.producer if unet.has_rank(name)]
    parts = split(unet.model, tensors, 1)
    assert len(parts) > 4
    whole = joined(parts, [map_name])
    assert list(whole.inputs) == [unet.input]
    assert list(whole.outputs) == [map_name]
    first, second = joined(parts[:3], [map_name]), joined(parts[3:], [map_name])
    assert set(first.outputs) == set(second.inputs) - {unet.input}
    tensors = {unet.input: as_input(pictures[0], unet.contract)}
    expected = opened(unet.model)(tensors[unet.input])[0]
    for part in (first, second):
        session = start_session(part.model, inspection_options())
        found = session.run(part.outputs, {name: tensors[name] for name in part.inputs})
        tensors |= dict(zip(part.outputs, map(np.asarray, found), strict=True))
    np.testing.assert_allclose(tensors[map_name], expected, atol=1e-5)


def test_a_layer_that_no_output_depends_on_changes_nothing(unet: Network, plan: Plan, pictures: list) -> None:
    part = joined(split(unet.model, ["b", unet.model.graph.output[0].name], 2**40), ["b"])
    state = {unet.input: as_input(pictures[0], unet.contract)}
    _, changes = layer_changes.changes_in(part, ["b_pre/Conv", "d_pre/Conv"], unet, plan, state)
    assert changes["b_pre/Conv"]["b"] > 0
    assert changes["d_pre/Conv"] == {}
