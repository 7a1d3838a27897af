"""Sessions: named tensors, batches, and every way a model can be unfit."""

from functools import partial

import numpy as np
import onnx
import pytest

from sodeploy.errors import UserError
from sodeploy.runtime.contract import METADATA_KEY, embed
from sodeploy.runtime.onnx_session import start_session
from sodeploy.runtime.session import open_session

pytest.importorskip("onnxruntime")


def batch(count: int, height: int = 16, width: int = 24) -> np.ndarray:
    return np.random.default_rng(count).random((count, 3, height, width), np.float32)


def weighted(images: np.ndarray) -> np.ndarray:
    return np.clip(np.tensordot(images, [0.3, 0.4, 0.3], axes=([1], [0]))[:, None], 0, 1)


@pytest.mark.parametrize("fixed", [1, 2, 4, None])
@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_images_runs_whatever_batch_the_model_has(save_model, fixed, count):
    with open_session(save_model(batch=fixed), threads=1) as session:
        output = session.infer(batch(count))
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, weighted(batch(count)), atol=1e-6)


def test_the_named_output_is_taken_among_several(save_model):
    with open_session(save_model(extra_output=True), threads=1) as session:
        np.testing.assert_allclose(session.infer(batch(1)), weighted(batch(1)), atol=1e-6)


def test_contract_precision_and_metadata_come_from_the_file(save_model):
    with open_session(save_model(metadata={"sodeploy.precision": "int8", "a": "b"}), threads=1) as session:
        assert session.contract.network == "tiny"
        assert session.precision == "int8"
        assert session.metadata["a"] == "b"
    with open_session(save_model(), threads=1) as session:
        assert session.precision == "fp32"


def test_a_half_precision_input_is_fed_in_half_precision(save_model):
    with open_session(save_model(dtype=np.float16), threads=1) as session:
        output = session.infer(batch(1))
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, weighted(batch(1)), atol=2e-3)


def test_a_bias_beside_small_half_precision_scales_survives(tmp_path, make_contract):
    """int8 and fp16: input scale times weight scale is 4e-8, which underflows in fp16."""
    half = onnx.TensorProto.FLOAT16
    nodes = [
        onnx.helper.make_node("Cast", ["image"], ["x"], to=half),
        onnx.helper.make_node("QuantizeLinear", ["x", "xs", "zero"], ["xq"]),
        onnx.helper.make_node("DequantizeLinear", ["xq", "xs", "zero"], ["xd"]),
        onnx.helper.make_node("DequantizeLinear", ["w", "ws", "zeros"], ["wd"], axis=0),
        onnx.helper.make_node("Conv", ["xd", "wd", "bias"], ["y"]),
        onnx.helper.make_node("QuantizeLinear", ["y", "xs", "zero"], ["yq"]),
        onnx.helper.make_node("DequantizeLinear", ["yq", "xs", "zero"], ["yd"]),
        onnx.helper.make_node("Cast", ["yd"], ["saliency"], to=onnx.TensorProto.FLOAT),
    ]
    constants = {
        "xs": np.float16(0.004), "zero": np.int8(0), "w": np.ones((1, 3, 1, 1), np.int8), "ws": np.float16([1e-5]),
        "zeros": np.zeros(1, np.int8), "bias": np.float16([0.3]),
    }  # fmt: skip
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "half",
        [value("image", onnx.TensorProto.FLOAT, [1, 3, 16, 24])],
        [value("saliency", onnx.TensorProto.FLOAT, [1, 1, 16, 24])],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
    embed(model, make_contract())
    onnx.save(model, tmp_path / "half.onnx")
    with open_session(tmp_path / "half.onnx", threads=1) as session:
        np.testing.assert_allclose(session.infer(batch(1)), 0.3, atol=4e-3)


def test_a_dynamic_model_takes_other_sizes(save_model):
    with open_session(save_model(dynamic_size=True), threads=1) as session:
        assert session.infer(batch(1, 8, 32)).shape == (1, 1, 8, 32)


def test_a_fixed_model_names_its_size(save_model):
    with open_session(save_model(), threads=1) as session, pytest.raises(UserError, match="takes 16x24 only, got 8x32"):
        session.infer(batch(1, 8, 32))


def test_a_closed_session_says_so(save_model):
    session = open_session(save_model(), threads=1)
    session.close()
    with pytest.raises(ValueError, match="closed"):
        session.infer(batch(1))


def test_missing_broken_and_foreign_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.onnx does not exist"):
        open_session(tmp_path / "absent.onnx")
    for content in (b"", b"hello world"):
        (tmp_path / "broken.onnx").write_bytes(content)
        with pytest.raises(UserError, match=r"broken\.onnx cannot be loaded"):
            open_session(tmp_path / "broken.onnx")
    (tmp_path / "weights.bin").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"weights\.bin is not a model that can be opened here"):
        open_session(tmp_path / "weights.bin")


def test_an_engine_is_opened_as_one(tmp_path):
    (tmp_path / "model.engine").write_bytes(b"plan")
    with pytest.raises(UserError, match=r"model\.engine has no model\.engine\.json beside it"):
        open_session(tmp_path / "model.engine")


def test_a_model_without_contract_is_refused_with_the_command_that_adds_one(save_model):
    with pytest.raises(UserError, match=r"no sodeploy contract.*sodeploy adopt"):
        open_session(save_model(with_contract=False))


@pytest.mark.parametrize("field", ["input_name", "output_name"])
def test_a_contract_that_names_other_tensors_is_refused(save_model, make_contract, field):
    metadata = {METADATA_KEY: make_contract(**{field: "elsewhere"}).to_json()}
    with pytest.raises(UserError, match=r"the contract names elsewhere, the graph has (image|saliency)"):
        open_session(save_model(with_contract=False, metadata=metadata))


def test_a_device_that_is_not_there_is_an_error(save_model):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(UserError, match="cannot use cuda"):
        open_session(save_model(), device="cuda")


def test_a_device_that_onnxruntime_gives_up_silently_is_an_error(save_model, monkeypatch):
    import onnxruntime

    class FallsBack(onnxruntime.InferenceSession):
        def __init__(self, path, options, providers, **kwargs):
            super().__init__(path, options, providers=["CPUExecutionProvider"], **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", FallsBack)
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    with pytest.raises(UserError, match="did not get the device cuda"):
        open_session(save_model(), device="cuda")


@pytest.mark.parametrize("exposed", ["before", "product"])
def test_a_transpose_whose_result_is_an_output_stays(exposed: str) -> None:
    """onnxruntime's fusion of Transpose and Gemm removes it."""
    nodes = [
        onnx.helper.make_node("Transpose", ["input"], ["before"], perm=[1, 0]),
        onnx.helper.make_node("Gemm", ["before", "weight"], ["product"]),
        onnx.helper.make_node("Transpose", ["product"], ["output"], perm=[1, 0]),
    ]
    value = partial(onnx.helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT)
    graph = onnx.helper.make_graph(
        nodes,
        "transposed",
        [value("input", shape=[4, 6])],
        [value("output", shape=[4, 6]), value(exposed, shape=[6, 4])],
        [onnx.numpy_helper.from_array(2 * np.eye(4, dtype=np.float32), "weight")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    image = np.arange(24, dtype=np.float32).reshape(4, 6)
    np.testing.assert_array_equal(start_session(model).run(["output"], {"input": image})[0], 2 * image)
