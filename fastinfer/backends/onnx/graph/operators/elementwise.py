"""Operators that compute element by element."""

from __future__ import annotations

from fastinfer.backends.onnx.graph.operators.call import MICROSOFT, ML, Call, nary, require_free, rule, unary
from fastinfer.backends.onnx.graph.values import Mixes, Value

rule(
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf",
    "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not",
    "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt",
    "Swish", "Tan", "Tanh", "ThresholdedRelu", "RegexFullMatch",
)(unary)  # fmt: skip
rule("Gelu", "QuickGelu", "MurmurHash3", domains=[MICROSOFT])(unary)
rule("Binarizer", "LabelEncoder", "CategoryMapper", domains=[ML])(unary)
rule(
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "StringConcat", "Sub", "Sum",
    "Where", "Xor",
)(nary)  # fmt: skip
rule("BiasGelu", "FastGelu", "BiasAdd", domains=[MICROSOFT])(nary)


_UNSIGNED = (12, 13)  # TensorProto.DataType.UINT32, UINT64


@rule("Identity", "Cast", "CastLike")
def _identity(call: Call) -> list[Value]:
    x = call.need(0)
    if x.axis is not None and (call.op_type == "CastLike" or call.integer("to", 0) in _UNSIGNED):
        # The result of a number out of range depends on its place in a vector register.
        raise Mixes("converts to a type for which numbers may be out of range")
    return [Value(x.dims, x.axis, x.before, x.after, source=x.source)]


@rule("Clip")
def _clip(call: Call) -> list[Value]:
    require_free(call, 1, 2)
    return unary(call)


@rule("Dropout")
def _dropout(call: Call) -> list[Value]:
    training = call.value(2)
    if training is not None and (training.content is None or any(training.content.flat)):
        raise Mixes("drops values at random")
    return unary(call) * 2
