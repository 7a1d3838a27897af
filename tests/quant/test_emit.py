"""The emitted graphs: what the engines' rules ask for, and that they compute what the plan says."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from sodeploy.quant.calibration.statistics import Statistics
from sodeploy.quant.emit.cpu import _as_shifted_planes, emit_cpu, emit_openvino
from sodeploy.quant.emit.fp16 import emit_fp16, round_to_fp16, to_fp16
from sodeploy.quant.emit.rewriter import Rewriter
from sodeploy.quant.emit.tensorrt import emit_simulation, emit_tensorrt
from sodeploy.quant.graph import Network
from sodeploy.quant.int8 import fp16_scale
from sodeploy.quant.planning.decide import make_plan
from sodeploy.quant.planning.evidence import Evidence
from sodeploy.quant.planning.plan import Plan
from sodeploy.runtime.contract import CALIBRATION_KEY, DIALECT_KEY, METADATA_KEY, PRECISION_KEY, Contract
from sodeploy.runtime.processing import preprocess

Run = Callable[[onnx.ModelProto, np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def image(unet: Network, pictures: list) -> np.ndarray:
    return preprocess(pictures[0].image(), unet.contract)[None]


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("emit", [emit_tensorrt, emit_simulation, emit_cpu])
def test_every_graph_is_valid_and_says_what_it_is(unet: Network, plan: Plan, emit: Callable) -> None:
    model = emit(unet, plan)
    onnx.checker.check_model(model, full_check=True)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata[METADATA_KEY] == unet.contract.to_json()
    assert metadata[PRECISION_KEY] == "int8"
    assert metadata[DIALECT_KEY] in ("tensorrt", "simulation", "cpu")
    assert len(json.loads(metadata[CALIBRATION_KEY])["digests_sha256"]) == 6


def test_tensorrt_graph_keeps_nvidias_rules(unet: Network, plan: Plan) -> None:
    model = emit_tensorrt(unet, plan)
    constants = initializers(model)
    quantizing = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in quantizing:
        scale, zero_point = constants[node.input[1]], constants[node.input[2]]
        assert scale.dtype == np.float16  # the body's type
        assert np.all(scale > 0)
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
        assert scale.ndim == 0 or node.input[0] in constants  # per channel for weights only
    quantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    convs = {node.name: node for node in model.graph.node if node.op_type == "Conv"}
    for name, node in convs.items():
        assert {node.input[0] in quantized, node.input[1] in quantized} == {name != "head/Conv"}
        assert constants[node.input[2]].dtype == np.float16  # biases are float
    (add,) = [node for node in model.graph.node if node.op_type == "Add"]
    assert [name in quantized for name in add.input] == [False, True]  # the residual input alone


def test_tensors_are_quantized_once(unet: Network, plan: Plan) -> None:
    for emit in (emit_tensorrt, emit_cpu):
        model = emit(unet, plan)
        sources = Counter(node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear")
        assert set(sources.values()) == {1}


def test_simulation_computes_the_tensorrt_graphs_numbers(unet: Network, plan: Plan) -> None:
    simulated, real = initializers(emit_simulation(unet, plan)), initializers(emit_tensorrt(unet, plan))
    steps, scales = real["a_pre/Conv/weight/quantized"], real["a_pre/Conv/weight/scale/fp16"]
    expected = steps.astype(np.float32) * scales.astype(np.float32).reshape(-1, 1, 1, 1)
    assert np.array_equal(simulated["a_pre/Conv/weight"], expected)
    scale = fp16_scale(plan.range_of()["b"].amax / 127)
    assert simulated["b/scale"] == real["b/scale/fp16"] == scale


def test_all_graphs_agree_with_fp32(unet: Network, plan: Plan, image: np.ndarray, run: Run) -> None:
    reference = run(unet.model, image)
    spread = reference.std()
    for emit, bound in ((emit_fp16, 0.01), (emit_simulation, 0.12), (emit_cpu, 0.12)):
        error = np.abs(run(emit(unet, plan), image) - reference).mean()
        assert error < bound * spread, emit.__name__


def test_the_simulation_is_the_plan_in_plain_numpy(unet: Network, plan: Plan, image: np.ndarray, run: Run) -> None:
    """One layer, by hand: quantize the image, round the weight, convolve, add the corrected bias."""
    import cv2

    model = emit_simulation(unet, plan)
    model.graph.output.append(onnx.helper.make_tensor_value_info("a/exact", TensorProto.FLOAT, None))
    del model.graph.output[0]
    scale = float(fp16_scale(plan.range_of()["image"].amax / 127))
    x = np.clip(np.rint(image[0].astype(np.float16).astype(np.float32) / scale), -128, 127) * scale
    layer = plan.layers["a_pre/Conv"]
    steps = unet.constants["a.weight"] / np.reshape(layer.weight_scales, (-1, 1, 1, 1))
    weight = np.clip(np.rint(steps), -127, 127) * np.reshape(layer.weight_scales, (-1, 1, 1, 1))
    bias = (unet.constants["a.bias"] + layer.bias_correction).astype(np.float16)
    padded = [np.pad(plane.astype(float), 1) for plane in x]
    result = [
        sum(cv2.filter2D(p, cv2.CV_64F, k) for p, k in zip(padded, kernel, strict=True))[1:-1, 1:-1] + b
        for kernel, b in zip(weight, bias, strict=True)
    ]
    assert run(model, image)[0] == pytest.approx(np.maximum(result, 0), abs=1e-4)


def test_cpu_graph_runs_on_integer_kernels_throughout(unet: Network, plan: Plan, tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(emit_cpu(unet, plan).SerializeToString(), options, ["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert operators["QLinearConv"] == 4
    assert (operators["MatMul"], operators["Conv"] + operators["FusedConv"]) == (1, 1)  # the head: its taps, their sum
    assert (operators["QLinearAdd"], operators["QLinearConcat"], operators["Relu"]) == (1, 1, 0)


def test_graphs_for_cpus_correct_biases_for_their_own_uint8(unet: Network, plan: Plan) -> None:
    moved = plan.model_copy(deep=True)
    channels = len(plan.layers["a_pre/Conv"].weight_scales or [])
    moved.layers["a_pre/Conv"].input_correction_uint8 = [1.0] * channels
    moved.layers["a_pre/Conv"].input_correction = [9.0] * channels

    def bias(of: Plan) -> np.ndarray:
        constants = initializers(emit_openvino(unet, of))
        return constants["a_pre/Conv/bias/quantized"] * constants["a_pre/Conv/bias/scale"]

    before = plan.layers["a_pre/Conv"].input_correction_uint8 or [0.0] * channels
    assert bias(moved) - bias(plan) == pytest.approx(1 - np.array(before), abs=1e-3)


def test_no_sum_of_two_products_overflows_16_bits_on_a_cpu(unet: Network, plan: Plan) -> None:
    """As x86 CPUs without VNNI compute it: uint8 times int8, the sums of two saturated."""
    model, ranges = emit_cpu(unet, plan), plan.range_of()
    constants = initializers(model)
    signed = []
    for node in unet.nodes:
        if node.op_type == "Conv" and plan.layers[node.name].precision == "int8":
            read = ranges[node.input[0]]
            scale, zero_point = (constants[f"{node.input[0]}/{part}"] for part in ("scale", "zero_point"))
            assert read.uint8 is not None
            assert np.rint(read.uint8[1] / scale) + zero_point == pytest.approx(255, abs=1)
            steps = np.abs(constants[f"{node.name}/weight/quantized"].astype(int))
            assert steps.max() == 64
            assert 2 * 255 * 64 < 2**15
            signed.append(read.signed)
    assert set(signed) == {True, False}


@pytest.mark.parametrize(("outputs", "dilation"), [(1, 1), (3, 2)])
def test_a_head_as_shifted_planes_is_the_same_convolution(run: Run, outputs: int, dilation: int) -> None:
    rng = np.random.default_rng(0)
    tensor = onnx.helper.make_tensor_value_info
    constants = {
        "w": rng.standard_normal((outputs, 5, 3, 3)).astype(np.float32),
        "b": rng.standard_normal(outputs).astype(np.float32),
    }
    window = {"pads": [dilation] * 4, "dilations": [dilation] * 2, "kernel_shape": [3, 3]}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w", "b"], ["y"], name="head", **window)],
        "head",
        [tensor("x", TensorProto.FLOAT, [1, 5, 9, 11])],
        [tensor("y", TensorProto.FLOAT, [1, outputs, 9, 11])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
    contract = Contract(
        network="head", input_name="x", output_name="y", height=9, width=11, mean=(0,) * 3, std=(1,) * 3
    )
    network = Network(model, contract, "0" * 64, Path("head.onnx"))
    rewriter = Rewriter(onnx.ModelProto.FromString(model.SerializeToString()))
    (node,) = network.nodes
    _as_shifted_planes(rewriter, network, copy := rewriter.copy(node), node)
    rewriter.append(copy)
    rewritten = rewriter.finish()
    assert [node.op_type for node in rewritten.graph.node] == ["Transpose", "MatMul", "Transpose", "Conv"]
    image = rng.standard_normal((1, 5, 9, 11)).astype(np.float32)
    assert run(rewritten, image) == pytest.approx(run(model, image), abs=1e-5)


def test_dead_channels(unet: Network, statistics: Statistics, image: np.ndarray, run: Run) -> None:
    """A channel with a zero or denormal weight and a bias far beyond what its scale could express."""
    model = onnx.ModelProto()
    model.CopyFrom(unet.model)
    weight, bias = unet.constants["b.weight"].copy(), unet.constants["b.bias"].copy()
    weight[0], weight[1] = 0.0, 1e-41
    bias[:2] = 700.0, 3.0
    for tensor in model.graph.initializer:
        if tensor.name in ("b.weight", "b.bias"):
            tensor.CopyFrom(numpy_helper.from_array(weight if tensor.name == "b.weight" else bias, tensor.name))
    network = Network(model, unet.contract, unet.digest, unet.path)
    # Only the network changes, so that a range of b stays that would clip; the check is of layer b itself.
    plan = make_plan(network, Evidence(statistics))
    scales = np.array(plan.layers["b_pre/Conv"].weight_scales)
    assert np.all(scales > 0)
    cpu = initializers(emit_cpu(network, plan))
    restored = cpu["b_pre/Conv/bias/quantized"] * cpu["b_pre/Conv/bias/scale"]
    assert restored[:2] == pytest.approx([700.0, 3.0], rel=1e-3)
    assert np.isfinite(run(emit_tensorrt(network, plan), image)).all()


class TestHalf:
    def test_everything_is_fp16_but_what_goes_in_and_out(self, unet: Network) -> None:
        model = onnx.shape_inference.infer_shapes(emit_fp16(unet))
        types = {info.name: info.type.tensor_type.elem_type for info in (*model.graph.input, *model.graph.output)}
        assert set(types.values()) == {TensorProto.FLOAT}
        assert {info.type.tensor_type.elem_type for info in model.graph.value_info} == {TensorProto.FLOAT16}
        assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT16, TensorProto.INT64}

    def test_kept_nodes_compute_in_fp32(self, unet: Network) -> None:
        model = onnx.shape_inference.infer_shapes(to_fp16(unet.model, keep={"c_pre/Conv"}))
        types = {info.name: info.type.tensor_type.elem_type for info in model.graph.value_info}
        assert types["c_pre"] == TensorProto.FLOAT
        assert types["b_pre"] == types["c"] == TensorProto.FLOAT16
        assert initializers(model)["c.weight"].dtype == np.float32

    def test_the_simulation_shows_an_overflow_and_how_to_avoid_it(
        self, large: Network, image: np.ndarray, run: Run
    ) -> None:
        """onnxruntime runs the fp16 graph itself in fp32."""
        reference = run(large.model, image)
        assert not np.isfinite(run(round_to_fp16(large), image)).all()
        in_fp32 = {"c_pre/Conv", "c/Relu", "total/Add", "up/Resize", "joined/Concat"}
        assert not np.isfinite(run(round_to_fp16(large, keep=in_fp32), image)).all()  # read in fp16, it is infinite too
        in_fp32.add("d_pre/Conv")
        assert run(round_to_fp16(large, keep=in_fp32), image) == pytest.approx(reference, abs=0.01)
