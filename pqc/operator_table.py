"""How each operator of ONNX is trained through, or why not."""

from __future__ import annotations

from collections.abc import Collection, Mapping

# Every operator agrees with finite differences in the form of the set that it is in.
# fmt: off
ENGINE = frozenset(
    {
        "Abs", "Add", "AveragePool", "Cast", "Clip", "Concat", "Conv", "Cos", "Div", "Erf", "Exp", "Expand", "Flatten",
        "Gather", "GatherElements", "GatherND", "Gemm", "GlobalAveragePool", "Identity", "Log", "LogSoftmax", "MatMul",
        "Max", "MaxPool", "Min", "Mul", "Neg", "Pad", "Pow", "Reciprocal", "ReduceMean", "ReduceSum", "Reshape",
        "ScatterElements", "ScatterND", "Sigmoid", "Sin", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh",
        "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where",
    }
)
"""By the engine's gradient."""
OWN = frozenset(
    {
        "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Celu", "ConvTranspose", "Cosh", "CumSum", "Elu", "Gelu",
        "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Mod", "PRelu", "ReduceL2", "ReduceLogSumExp", "ReduceMax",
        "ReduceMin", "ReduceProd", "Relu", "ReverseSequence", "Selu", "Shrink", "Sinh", "Softplus", "Softsign", "Tan",
        "ThresholdedRelu",
    }
)
"""By a gradient of pqc's own (pqc.functions.standard)."""
STEPS = frozenset({"Ceil", "Floor", "Round", "Sign"})
"""Passing no gradient: the derivative is zero wherever there is one."""
REWRITTEN = frozenset(
    {
        "BatchNormalization", "CastLike", "DepthToSpace", "Einsum", "GRU", "GlobalLpPool", "GlobalMaxPool",
        "GroupNormalization",
        "InstanceNormalization", "LRN", "LSTM", "LayerNormalization", "LpNormalization", "Mean",
        "MeanVarianceNormalization", "RNN", "ReduceL1", "ReduceLogSum", "ReduceSumSquare", "Resize",
        "SpaceToDepth", "Sum",
    }
)
"""In other operators, written by the pass legalize."""
NO_GRADIENT = frozenset(
    {
        "And", "ArgMax", "ArgMin", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "BlackmanWindow",
        "ConstantOfShape", "Equal", "EyeLike", "Greater", "GreaterOrEqual", "HammingWindow", "HannWindow", "IsInf",
        "IsNaN", "Less", "LessOrEqual", "NonZero", "Not", "Or", "Shape", "Size", "Xor",
    }
)
"""Giving, or made of, whole numbers or truth values, which pass no gradient."""
# fmt: on
NORMALIZED = frozenset({"Constant", "Dropout"})
"""Stored, or dropped where it does nothing (in inference), by the pass normalize."""
_RANDOM = "it gives other numbers each time"
_NONE = "neither the engine nor pqc has its gradient"
_INTEGER = "it computes with whole numbers; quantizers are pqc's own (insert-quant)"
_SEQUENCE = "values that are not tensors are not taken"
_TEXT = "text is not a number"
REFUSED = {
    "AffineGrid": _NONE,
    "Bernoulli": _RANDOM,
    "CenterCropPad": _NONE,
    "Col2Im": _NONE,
    "Compress": "how many elements it keeps depends on the data",
    "ConcatFromSequence": _SEQUENCE,
    "ConvInteger": _INTEGER,
    "DFT": _NONE,
    "DeformConv": _NONE,
    "DequantizeLinear": "the engine passes no gradient to its scale",
    "Det": _NONE,
    "DynamicQuantizeLinear": "it rounds; quantizers are pqc's own (insert-quant)",
    "GridSample": _NONE,
    "Hardmax": "its derivative is zero: nothing before it would be trained",
    "If": "branches are not differentiated",
    "ImageDecoder": _NONE,
    "Loop": "loops are not differentiated; export it unrolled",
    "LpPool": "its derivative is not a number where a window holds only zeros, as behind a Relu",
    "MatMulInteger": _INTEGER,
    "MaxRoiPool": _NONE,
    "MaxUnpool": _NONE,
    "MelWeightMatrix": _NONE,
    "Multinomial": _RANDOM,
    "NegativeLogLikelihoodLoss": _NONE,
    "NonMaxSuppression": _NONE,
    "OneHot": "the engine passes no gradient to its values",
    "Optional": _SEQUENCE,
    "OptionalGetElement": _SEQUENCE,
    "OptionalHasElement": _SEQUENCE,
    "QLinearConv": _INTEGER,
    "QLinearMatMul": _INTEGER,
    "QuantizeLinear": "it rounds; quantizers are pqc's own (insert-quant)",
    "RandomNormal": _RANDOM,
    "RandomNormalLike": _RANDOM,
    "RandomUniform": _RANDOM,
    "RandomUniformLike": _RANDOM,
    "Range": _NONE,
    "RegexFullMatch": _TEXT,
    "RoiAlign": _NONE,
    "STFT": _NONE,
    "Scan": "loops are not differentiated; export it unrolled",
    "SequenceAt": _SEQUENCE,
    "SequenceConstruct": _SEQUENCE,
    "SequenceEmpty": _SEQUENCE,
    "SequenceErase": _SEQUENCE,
    "SequenceInsert": _SEQUENCE,
    "SequenceLength": _SEQUENCE,
    "SequenceMap": _SEQUENCE,
    "SoftmaxCrossEntropyLoss": _NONE,
    "SplitToSequence": _SEQUENCE,
    "StringConcat": _TEXT,
    "StringNormalizer": _TEXT,
    "StringSplit": _TEXT,
    "TfIdfVectorizer": _TEXT,
    "Unique": "how many elements it keeps depends on the data",
}
"""Refused where a trained weight reaches them, and why; an operator that is in no set is refused too."""
_SCATTER = "only one that replaces or adds is taken"
_FIXED = "channels, height and width have to be fixed"
LIMITS = {
    "BatchNormalization": "export it in evaluation mode, with constant parameters",
    "Dropout": "in training mode it drops other elements each time",
    "DepthToSpace": _FIXED,
    "Einsum": "the ellipsis may not be summed over; a diagonal has to be of fixed length",
    "GlobalLpPool": "of orders 1 and 2",
    "LRN": "the number of channels has to be fixed",
    "LpNormalization": "of orders 1 and 2",
    "Pad": "no gradient gets to a computed padding value; modes that repeat elements need constant pads, fixed lengths",
    "ScatterElements": _SCATTER,
    "ScatterND": _SCATTER,
    "Slice": "negative steps need constant bounds and fixed lengths",
    "SpaceToDepth": _FIXED,
}
"""What is refused of operators that train otherwise."""
TREATMENTS: Mapping[str, Collection[str]] = {
    "trains by the engine's gradient": ENGINE,
    "trains by a gradient of pqc's own": OWN,
    "trains in other operators, written by legalize": REWRITTEN,
    "passes a gradient of zero": STEPS,
    "passes no gradient": NO_GRADIENT,
    "is stored or dropped by normalize": NORMALIZED,
    "is refused": REFUSED,
}
"""What happens to each operator of opset 21: it is in exactly one of them."""
