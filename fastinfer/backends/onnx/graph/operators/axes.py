"""Operators that work along axes: reductions, softmax, sums, sorting."""

from __future__ import annotations

from collections.abc import Sequence

from fastinfer.backends.onnx.graph.dims import ONE, Dim
from fastinfer.backends.onnx.graph.operators.call import Call, axis_of, require_free, require_untouched, rule, unary
from fastinfer.backends.onnx.graph.values import Value, moved


@rule("Softmax", "LogSoftmax", "Hardmax")
def _softmax(call: Call) -> list[Value]:
    x = call.need(0)
    axis = axis_of(x, call.integer("axis", -1 if call.opset >= 13 else 1))
    # Before version 13 all axes from this one on are flattened into one.
    require_untouched(x, [axis] if call.opset >= 13 else range(axis, x.rank), "normalizes")
    return unary(call)


@rule("LpNormalization")
def _lp_normalization(call: Call) -> list[Value]:
    x = call.need(0)
    require_untouched(x, [axis_of(x, call.integer("axis", -1))], "normalizes")
    return unary(call)


@rule("CumSum")
def _cumsum(call: Call) -> list[Value]:
    x, axes = call.need(0), call.numbers(1)
    require_untouched(x, [axis_of(x, axis) for axis in axes or [0]], "sums up")
    return unary(call)


@rule(
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
def _reduce(call: Call) -> list[Value]:
    x = call.need(0)
    given = call.numbers(1, "axes")
    if not given:
        if call.integer("noop_with_empty_axes", 0):
            return unary(call)
        given = list(range(x.rank))
    return [_reduced(call, x, [axis_of(x, axis) for axis in given])]


@rule("ArgMax", "ArgMin")
def _arg_reduce(call: Call) -> list[Value]:
    x = call.need(0)
    return [_reduced(call, x, [axis_of(x, call.integer("axis", 0))])]


def _reduced(call: Call, x: Value, axes: Sequence[int]) -> Value:
    require_untouched(x, axes, "reduces")
    dims = x.known_dims
    if call.integer("keepdims", 1):
        return moved(x, [ONE if i in axes else dim for i, dim in enumerate(dims)])
    kept = [i for i in range(x.rank) if i not in axes]
    return moved(x, [dims[i] for i in kept], None if x.axis is None else kept.index(x.axis))


@rule("TopK")
def _top_k(call: Call) -> list[Value]:
    x = call.need(0)
    axis = axis_of(x, call.integer("axis", -1))
    require_untouched(x, [axis], "sorts")
    require_free(call, 1)
    count = call.need(1).content
    dims = list(x.known_dims)
    dims[axis] = call.symbols.any_size()
    if count is not None and count.size == 1 and isinstance(count.flat[0], int):
        dims[axis] = Dim(count.flat[0])
    return [moved(x, dims)] * 2
