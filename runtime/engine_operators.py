"""Operators that engines do not have, and what helps: said before a build of minutes ends in a parser's error."""

from collections import Counter

import onnx

_TENSORS = "export the network with separate tensors in place of a sequence"
_WITHOUT = "export the network without it"
# What the parser of TensorRT-RTX 1.7 answers to `supports_operator`, for every operator that ONNX has. TensorRT's
# parser has the same source. A test asks the parser again.
REMEDIES = {
    "AffineGrid": "export the grid as a constant",
    "Col2Im": "export the fold as ConvTranspose",
    "CenterCropPad": "export it as Slice and Pad",
    "Compress": "export a multiplication by the mask",
    "ConcatFromSequence": "export it as Concat, which takes tensors",
    "DeformConv": "give a fixed --size when adopting, and it is rewritten; its weight must be constant",
    "MaxUnpool": "export an interpolation in its place",
    "SequenceMap": _TENSORS,
    "SplitToSequence": "export it as Split, which gives tensors",
    **dict.fromkeys(
        ("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength"),
        _TENSORS,
    ),
    **dict.fromkeys(
        (
            *("Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "CumProd"),
            *("ConvInteger", "DFT", "Det", "DynamicQuantizeLinear", "ImageDecoder", "MatMulInteger", "MaxRoiPool"),
            *("MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement"),
            *("OptionalHasElement", "QLinearConv", "QLinearMatMul", "RegexFullMatch", "SoftmaxCrossEntropyLoss"),
            *("StringConcat", "StringNormalizer", "StringSplit", "SwiGLU", "TfIdfVectorizer", "Unique"),
        ),
        _WITHOUT,
    ),
}


def unknown_to_engines(model: onnx.ModelProto) -> list[str]:
    """A line for each kind of operator in the graph that TensorRT and TensorRT-RTX do not have."""
    counts = Counter(node.op_type for node in model.graph.node if node.op_type in REMEDIES)
    return [
        f"{kind} ({count}): onnxruntime runs it, TensorRT and TensorRT-RTX do not; {REMEDIES[kind]} to build engines"
        for kind, count in counts.items()
    ]
