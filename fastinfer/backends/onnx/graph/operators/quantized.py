"""Quantized operators, except products (products.py) and images (images.py)."""

from __future__ import annotations

from fastinfer.backends.onnx.graph.operators.call import (
    MICROSOFT,
    ONNX,
    Call,
    axis_of,
    joined,
    require_free,
    require_untouched,
    rule,
    unary,
)
from fastinfer.backends.onnx.graph.values import Mixes, Value, broadcast


@rule("QuantizeLinear", "DequantizeLinear", domains=[ONNX, MICROSOFT])
def _quantize(call: Call) -> list[Value]:
    x, scale = call.need(0), call.need(1)
    require_free(call, 1, 2)
    if not scale.is_scalar:
        if scale.rank != 1 and x.axis is not None:
            raise Mixes("quantizes by blocks")
        require_untouched(x, [axis_of(x, call.integer("axis", 1))], "quantizes")
    return unary(call)


@rule("QLinearAdd", "QLinearMul", domains=[MICROSOFT])
def _quantized_binary(call: Call) -> list[Value]:
    require_free(call, 1, 2, 4, 5, 6, 7)
    return [broadcast([call.need(0), call.need(3)], call.symbols)]


@rule("QLinearSigmoid", "QLinearLeakyRelu", domains=[MICROSOFT])
def _quantized_unary(call: Call) -> list[Value]:
    require_free(call, 1, 2, 3, 4)
    return unary(call)


@rule("QLinearSoftmax", domains=[MICROSOFT])
def _quantized_softmax(call: Call) -> list[Value]:
    x = call.need(0)
    require_free(call, 1, 2, 3, 4)
    axis = axis_of(x, call.integer("axis", -1))
    require_untouched(x, [axis] if call.integer("opset", 13) >= 13 else range(axis, x.rank), "normalizes")
    return unary(call)


@rule("QLinearConcat", domains=[MICROSOFT])
def _quantized_concat(call: Call) -> list[Value]:
    require_free(call, 0, 1, *(at for at in range(2, len(call.inputs)) if at % 3 != 2))
    return [joined(call, [call.need(at) for at in range(2, len(call.inputs), 3)])]
