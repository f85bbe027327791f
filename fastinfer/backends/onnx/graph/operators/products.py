"""Matrix products."""

from __future__ import annotations

from fastinfer.backends.onnx.graph.dims import BATCH, ONE, Dim
from fastinfer.backends.onnx.graph.operators.call import (
    MICROSOFT,
    Call,
    added,
    permuted,
    require_free,
    require_scalars,
    require_untouched,
    rule,
)
from fastinfer.backends.onnx.graph.values import Mixes, Value, broadcast, broadcast_dim, free, moved


def matrix_product(call: Call, a: Value, b: Value) -> Value:
    """Matrix product, as numpy's. Mixes if it sums over rows or combines different rows."""
    if a.dims is None or b.dims is None:
        if a.axis is None and b.axis is None:
            return free(None)
        raise Mixes("takes a value of unknown rank")
    if a.rank == 0 or b.rank == 0:
        raise Mixes("multiplies a scalar as a matrix")
    if a.rank == 1 or b.rank == 1:
        return _vector_product(a, b)
    require_untouched(a, [a.rank - 1], "sums")
    require_untouched(b, [b.rank - 2], "sums")
    in_a, in_b = a.axis == a.rank - 2, b.axis == b.rank - 1
    if (in_a and b.axis is not None) or (in_b and a.axis is not None):
        raise Mixes("combines rows with other rows")
    # The leading axes are broadcast. If the rows are on one of the last two axes, the leading axes have none.
    heads = [
        Value(each.dims[:-2], None if last else each.axis, each.before, each.after)
        for each, last in ((a, in_a), (b, in_b))
        if each.dims is not None
    ]
    head = broadcast(heads, call.symbols)
    dims = [*head.known_dims, a.dims[-2], b.dims[-1]]
    if in_a:
        return moved(a, dims, len(dims) - 2)
    return moved(b, dims, len(dims) - 1) if in_b else moved(head, dims)


def _vector_product(a: Value, b: Value) -> Value:
    require_untouched(a, [a.rank - 1], "sums")
    if b.rank == 1:
        require_untouched(b, [0], "sums")
        if a.axis is not None and b.axis is not None:
            raise Mixes("combines rows with other rows")
        return moved(a, a.known_dims[:-1])
    require_untouched(b, [b.rank - 2], "sums")
    dims = [*b.known_dims[:-2], b.known_dims[-1]]
    if b.axis is None:
        return moved(a, dims) if a.axis is None else free(dims)
    return moved(b, dims, b.axis if b.axis < b.rank - 2 else b.rank - 2)


@rule("MatMul")
def _matmul(call: Call) -> list[Value]:
    return [matrix_product(call, call.need(0), call.need(1))]


@rule("FusedMatMul", "TransposeMatMul", domains=[MICROSOFT])
def _fused_matmul(call: Call) -> list[Value]:
    if call.integer("transBatchA", 0) or call.integer("transBatchB", 0):
        raise Mixes("transposes its batches")
    a, b = call.need(0), call.need(1)
    a = _matrix_transposed(a) if call.integer("transA", 0) else a
    return [matrix_product(call, a, _matrix_transposed(b) if call.integer("transB", 0) else b)]


def _matrix_transposed(x: Value) -> Value:
    if x.rank < 2:
        return x
    return permuted(x, [*range(x.rank - 2), x.rank - 1, x.rank - 2])


@rule("MatMulInteger")
def _matmul_integer(call: Call) -> list[Value]:
    a, b = call.need(0), call.need(1)
    require_scalars(call, *([2] if a.axis is not None else []), *([3] if b.axis is not None else []))
    require_free(call, 2, 3)
    return [matrix_product(call, a, b)]


@rule("MatMulIntegerToFloat", domains=[MICROSOFT])
def _matmul_integer_to_float(call: Call) -> list[Value]:
    require_scalars(call, 2, 4)
    require_free(call, 1, 3, 5)
    made = matrix_product(call, call.need(0), call.need(1))
    bias = call.value(6)
    return [made if bias is None else added(call, made, bias)]


@rule("QLinearMatMul")
def _qlinear_matmul(call: Call) -> list[Value]:
    a, b = call.need(0), call.need(3)
    require_scalars(call, 1, 2, 6, 7, *([4, 5] if b.axis is not None else []))
    require_free(call, 4, 5)
    return [matrix_product(call, a, b)]


@rule("MatMulNBits", "MatMulBnb4", domains=[MICROSOFT])
def _matmul_packed(call: Call) -> list[Value]:
    a = call.need(0)
    require_free(call, *range(1, len(call.inputs)))
    require_untouched(a, [a.rank - 1], "sums")
    return [moved(a, [*a.known_dims[:-1], Dim(call.integer("N", 0))])]


def general_product(call: Call, a: Value, b: Value, c: Value | None) -> Value:
    if a.rank != 2 or b.rank != 2:
        raise Mixes("multiplies a value that is not a matrix")
    a = _matrix_transposed(a) if call.integer("transA", 0) else a
    made = matrix_product(call, a, _matrix_transposed(b) if call.integer("transB", 0) else b)
    return made if c is None else added(call, made, c)


@rule("Gemm")
def _gemm(call: Call) -> list[Value]:
    return [general_product(call, call.need(0), call.need(1), call.value(2))]


@rule("FusedGemm", domains=[MICROSOFT])
def _fused_gemm(call: Call) -> list[Value]:
    return _gemm(call)


@rule("QGemm", domains=[MICROSOFT])
def _qgemm(call: Call) -> list[Value]:
    require_scalars(call, 1, 2, 7, 8)
    require_free(call, 3, 4, 5)
    return [general_product(call, call.need(0), call.need(3), call.value(6))]


@rule("Einsum")
def _einsum(call: Call) -> list[Value]:
    equation = call.text("equation", "").replace(" ", "")
    operands, arrow, result = equation.partition("->")
    terms = operands.split(",")
    if not arrow or "." in equation or len(terms) != len(call.inputs):
        raise Mixes(f"has the equation '{equation[:60]}', which is not supported")
    sizes: dict[str, Dim] = {}
    places = set()
    for at, term in enumerate(terms):
        value = call.need(at)
        if value.rank != len(term) or len(set(term)) != len(term):
            raise Mixes(f"has the equation '{equation[:60]}', which is not supported")
        for letter, dim in zip(term, value.known_dims, strict=True):
            sizes[letter] = broadcast_dim(sizes.get(letter, ONE), dim, call.symbols)
        if value.axis is not None:
            places.add((term[value.axis], value.before, value.after))
    if not places:
        return [free([sizes[letter] for letter in result])]
    if len(places) > 1:
        raise Mixes("combines rows with other rows")
    letter, before, after = places.pop()
    for at, term in enumerate(terms):
        value = call.need(at)
        if value.axis is None and letter in term and value.known_dims[term.index(letter)] != ONE:
            raise Mixes("combines rows with a constant that has a length along the batch dimension")
    if result.count(letter) != 1:
        raise Mixes("sums over the batch dimension")
    dims = tuple(before * BATCH * after if each == letter else sizes[each] for each in result)
    return [Value(dims, result.index(letter), before, after)]
