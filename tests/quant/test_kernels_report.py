"""Kernel lists as the builders write them."""

import json

from sodeploy.quant.engines.kernels import (
    Kernel,
    explanations,
    harmless,
    kernels_in_inspector,
    kernels_in_log,
    precision_read,
    summary,
)

# As TensorRT-RTX 1.7 logs it, shortened.
LOG = """
Name: /enc/Conv_myl0_3, LayerType: correlation, Inputs: [ { Name: q.1_4_myl0, Dimensions: [1,32,64,64], Strides: \
[131072,1,2048,32], Datatype: Int8, Format: (NHWC) Channel major format }], Constants: [ { Name: w, Dimensions: \
[32,32,3,3], Datatype: Int8, Format: x }, { Name: s, Dimensions: [1,32,1,1], Datatype: Float, Format: x }], Outputs: \
[ { Name: arg5, Dimensions: [1,32,64,64], Datatype: Float, Format: x }], TacticName: CASK, StreamId: 0, Metadata: \
[ONNX Layer: /enc/Conv][ONNX Layer: /enc/Conv/DQ]
Name: __mye1_myl0_4, LayerType: signal, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata:\x20
Name: __myl_MulCast_myl0_5, LayerType: kgen, Inputs: [ { Name: q, Dimensions: [1,32,64,64], Datatype: Int8, Format: x }\
, { Name: arg5, Dimensions: [1,32,64,64], Datatype: Float, Format: x }], Constants: [], Outputs: [ { Name: q2, \
Dimensions: [1,32,64,64], Datatype: Int8, Format: x }], TacticName: m, StreamId: 0, Metadata: [ONNX Layer: /mid/Q]
Name: __myl_CorrAdd_myl0_6, LayerType: runtime_fusion, Inputs: [ { Name: h, Dimensions: [1,32,64,64], Datatype: Half, \
Format: x }], Constants: [], Outputs: [ { Name: y, Dimensions: [1,32,64,64], Datatype: Half, Format: x }], \
TacticName: , StreamId: 0, Metadata: [ONNX Layer: /dec/Conv][ONNX Layer: /Add]
I/O Tensors:
 Name: image, IOMode: Input, DataType: Float, Dimensions: [1,3,64,64], Location: Device
"""


def test_log_of_rtx() -> None:
    conv, rescale, fused = kernels_in_log(LOG)
    assert conv == Kernel("/enc/Conv_myl0_3", "correlation", ("int8",), ("fp32",), ("/enc/Conv", "/enc/Conv/DQ"))
    assert conv.is_convolution
    assert not conv.converts
    assert rescale.inputs == ("int8", "fp32")
    assert rescale.converts
    assert precision_read(rescale) == "int8"
    assert fused.is_convolution
    assert summary([conv, rescale, fused]) == {
        "kernels": 3,
        "convolutions": {"fp16": 1, "int8": 1},
        "converting": 1,
    }
    assert str(conv) == "/enc/Conv_myl0_3: correlation int8 -> fp32; /enc/Conv, /enc/Conv/DQ"


def tensor(name: str, **kind: str) -> dict[str, object]:
    return {"Name": name, "Dimensions": [1, 32, 64, 64], **kind}


def test_inspector_of_10_and_11() -> None:
    """Both schemas, the same engine: layout and type joined in 10, apart in 11; names joined by U+001E in 10."""
    ten = {
        "Layers": [
            {
                "Name": "conv",
                "LayerType": "CaskConvolution",
                "Inputs": [
                    tensor("x", **{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"})
                ],
                "Outputs": [tensor("y", **{"Format/Datatype": "Half"})],
                "Metadata": "[ONNX Layer: /enc/Conv]\u001e[ONNX Layer: /enc/Relu]",
            },
            {
                "Name": "reformat",
                "LayerType": "Reformat",
                "Inputs": [tensor("y", **{"Format/Datatype": "Row major linear FP16 format"})],
                "Outputs": [tensor("z", **{"Format/Datatype": "Row major linear FP32"})],
            },
        ],
        "Bindings": ["x", "z"],
    }
    eleven = {
        "Layers": [
            {
                "Name": "conv",
                "LayerType": "CaskConvolution",
                "Inputs": [tensor("x", Datatype="Int8", Format="(NHWC) Channel major format")],
                "Outputs": [tensor("y", Datatype="Half", Format="(NHWC) Channel major format")],
                "Metadata": "[ONNX Layer: /enc/Conv][ONNX Layer: /enc/Relu]",
            },
            {
                "Name": "reformat",
                "LayerType": "Reformat",
                "Inputs": [tensor("y", DataType="Half")],
                "Outputs": [tensor("z", DataType="Float")],
            },
        ],
        "I/O Tensors": [{"Name": "x"}],
    }
    expected = [
        Kernel("conv", "CaskConvolution", ("int8",), ("fp16",), ("/enc/Conv", "/enc/Relu")),
        Kernel("reformat", "Reformat", ("fp16",), ("fp32",), ()),
    ]
    assert kernels_in_inspector(json.dumps(ten)) == expected
    assert kernels_in_inspector(json.dumps(eleven)) == expected
    assert summary(expected) == {"kernels": 2, "convolutions": {"int8": 1}, "converting": 1}


def test_figures_are_explained() -> None:
    converting, file_size = explanations(kernels_in_log(LOG))
    assert converting.startswith("1 of 3 kernels only convert: ")
    assert "the int8 file of a small network can be larger" in file_size
    assert explanations([Kernel("c", "correlation", ("fp16",), ("fp16",), ())]) == []


def test_remarks_that_need_no_action() -> None:
    assert harmless("(foreignNode) Converting conv weight scales to fp32.") is not None
    assert harmless("Detected layer with unsupported something") is None


def test_inspector_without_details_gives_nothing() -> None:
    assert kernels_in_inspector(json.dumps({"Layers": ["conv", "reformat"], "Bindings": []})) == []
