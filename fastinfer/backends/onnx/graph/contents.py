"""Evaluates small tensors of numbers that depend only on constants and shapes.

Exporters compute the shapes for ``Reshape`` and ``Expand`` in the graph itself: ``Shape``, ``Gather``, ``Concat``, …
This module applies these operators to numbers and symbolic dimensions, so that ``[batch, 12, 64]`` is recognised.

Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from fastinfer.backends.onnx.graph.dims import Dim, Symbols, product
from fastinfer.backends.onnx.graph.proto import Tensor
from fastinfer.backends.onnx.graph.values import Content

MAX_ELEMENTS = 256
"""Larger tensors are not evaluated: they are not shapes."""


# Keys are TensorProto.DataType. Narrower types are missing because their overflow and rounding is not modelled.
_LITTLE_ENDIAN = {1: "<f4", 6: "<i4", 7: "<i8", 9: "?", 11: "<f8"}
_FLOATS, _INTEGERS, _BOOL = (1, 11), (6, 7), 9
_EXTERNAL = 1  # TensorProto.DataLocation


def stored(tensor: Tensor) -> Content | None:
    """Return the elements of a constant, in its shape; None: too many, in another file, or not numbers."""
    dims, kind = tensor.dims, tensor.data_type
    if tensor.data_location == _EXTERNAL or kind not in _LITTLE_ENDIAN or not 0 <= math.prod(dims) <= MAX_ELEMENTS:
        return None
    if tensor.entries(9):
        elements = np.frombuffer(tensor.raw_data, _LITTLE_ENDIAN[kind])
    elif kind in (6, 9):
        elements = np.array(tensor.int32_data, dtype=np.int64)
        if (abs(elements) >= 2**31).any():
            return None
    elif kind == 7:
        elements = np.array(tensor.int64_data)
    elif kind == 1:
        elements = np.array(tensor.float_data)
    else:
        return None
    if elements.size != math.prod(dims):
        return None
    content = np.empty(elements.size, dtype=object)
    content[:] = [bool(each) for each in elements.tolist()] if kind == 9 else elements.tolist()
    return content.reshape(dims)


class Unknown(Exception):
    """The operator is not evaluated here, or not with these operands."""


class Arguments(Protocol):
    """The attributes of an operator, and the graph's symbols."""

    symbols: Symbols

    def integer(self, name: str, default: int) -> int: ...

    def integers(self, name: str) -> list[int] | None: ...


def compute(op_type: str, arguments: Arguments, inputs: Sequence[Content | None]) -> list[Content]:
    """Evaluate an operator; returns its outputs.

    Raises:
        Unknown: the operator cannot be evaluated.
        DependsOnBatch: an output depends on the batch size, and not as a product.
    """
    if op_type in _ELEMENTWISE:
        exact = _ELEMENTWISE[op_type]
        given = [_given(content) for content in inputs]
        if math.prod(np.broadcast_shapes(*(content.shape for content in given))) > MAX_ELEMENTS:
            raise Unknown
        apply = np.frompyfunc(lambda *each: arguments.symbols.apply(op_type, exact, *each), len(given), 1)
        return [_checked(apply(*given))]
    if op_type in _STRUCTURAL:
        return [_checked(each) for each in _STRUCTURAL[op_type](arguments, list(inputs))]
    raise Unknown


def _checked(content: Any) -> Content:
    array = np.asarray(content, dtype=object)
    if array.size > MAX_ELEMENTS:
        raise Unknown
    return array


def _given(content: Content | None) -> Content:
    if content is None:
        raise Unknown
    return content


def _divide(a: Any, b: Any) -> Any:
    if b == 0:
        raise Unknown
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _remainder(a: Any, b: Any) -> Any:
    if b <= 0 or a < 0:  # an attribute chooses the sign of the result
        raise Unknown
    return a % b


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Identity": lambda a: a,
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": _divide,
    "Mod": _remainder,
    "Neg": lambda a: -a,
    "Abs": abs,
    "Floor": lambda a: float(math.floor(a)),
    "Ceil": lambda a: float(math.ceil(a)),
    "Round": lambda a: float(round(a)),
    "Equal": lambda a, b: a == b,
    "Less": lambda a, b: a < b,
    "Greater": lambda a, b: a > b,
    "LessOrEqual": lambda a, b: a <= b,
    "GreaterOrEqual": lambda a, b: a >= b,
    "Not": lambda a: not a,
    "And": lambda a, b: bool(a and b),
    "Or": lambda a, b: bool(a or b),
    "Max": lambda *each: max(each),
    "Min": lambda *each: min(each),
}


# --- Structural operators: from the operands' elements to the outputs' ------------------------------------------------


def _numbers(content: Content | None) -> list[int]:
    """Return the elements as integers. Unknown if one is a symbolic dimension."""
    values = _given(content).ravel().tolist()
    if any(isinstance(value, Dim) or int(value) != value for value in values):
        raise Unknown
    return [int(value) for value in values]


def _axes(arguments: Arguments, inputs: Sequence[Content | None], at: int) -> list[int] | None:
    """Return the axes, from the attribute or an input; None: not given."""
    if len(inputs) > at and inputs[at] is not None:
        return _numbers(inputs[at])
    return arguments.integers("axes")


def _cast(arguments: Arguments, inputs: list[Content | None]) -> list[Any]:
    to = arguments.integer("to", 0)
    if to not in _LITTLE_ENDIAN:
        raise Unknown

    def cast(value: Any) -> Any:
        if isinstance(value, Dim):
            if to == _BOOL:
                raise Unknown
            return value if to in _FLOATS else arguments.symbols.truncated(value)
        if to == _BOOL:
            return bool(value)
        made = float(value) if to in _FLOATS else int(value)
        # Values that do not fit are rounded or wrap around.
        if (to == 1 and float(np.float32(made)) != value) or (to == 6 and not -(2**31) <= made < 2**31):
            raise Unknown
        return made

    return [np.frompyfunc(cast, 1, 1)(_given(inputs[0]))]


def _gather(arguments: Arguments, inputs: list[Content | None]) -> list[Any]:
    indices = np.array(_numbers(inputs[1]), dtype=np.int64).reshape(_given(inputs[1]).shape)
    return [np.take(_given(inputs[0]), indices, axis=arguments.integer("axis", 0))]


def part(size: int, start: int, end: int, step: int) -> slice:
    """Return the Python slice that ``Slice`` takes of an axis."""
    if step < 0:
        # ONNX clamps the start to the first element, and an end before it means None in Python.
        return slice(max(start, -size), None if end < -size else end, step)
    return slice(start, end, step)


def _slice(arguments: Arguments, inputs: list[Content | None]) -> list[Any]:
    data = _given(inputs[0])
    if len(inputs) > 1:
        starts, ends = _numbers(inputs[1]), _numbers(inputs[2])
        axes = _numbers(inputs[3]) if len(inputs) > 3 and inputs[3] is not None else []
        axes = axes or list(range(len(starts)))
        steps = _numbers(inputs[4]) if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    else:
        starts, ends = arguments.integers("starts") or [], arguments.integers("ends") or []
        axes, steps = arguments.integers("axes") or list(range(len(starts))), [1] * len(starts)
    where = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        where[axis] = part(data.shape[axis], start, end, step)
    return [data[tuple(where)]]


def _concat(arguments: Arguments, inputs: list[Content | None]) -> list[Any]:
    return [np.concatenate([_given(content) for content in inputs], axis=arguments.integer("axis", 0))]


def _unsqueeze(arguments: Arguments, inputs: list[Content | None]) -> list[Any]:
    axes = _axes(arguments, inputs, 1)
    if axes is None:
        raise Unknown
    return [np.expand_dims(_given(inputs[0]), tuple(axes))]


def _squeeze(arguments: Arguments, inputs: list[Content | None]) -> list[Any]:
    axes = _axes(arguments, inputs, 1)
    return [np.squeeze(_given(inputs[0]), tuple(axes) if axes else None)]


def _reshape(_: Arguments, inputs: list[Content | None]) -> list[Any]:
    return [_given(inputs[0]).reshape(_numbers(inputs[1]))]


def _where(_: Arguments, inputs: list[Content | None]) -> list[Any]:
    def choose(condition: Any, a: Any, b: Any) -> Any:
        if not isinstance(condition, Dim):
            return a if condition else b
        if a == b:
            return a
        raise Unknown

    return [np.frompyfunc(choose, 3, 1)(*(_given(content) for content in inputs))]


def _reduce(arguments: Arguments, inputs: list[Content | None]) -> list[Any]:
    """ReduceProd of a vector."""
    content, axes = _given(inputs[0]), _axes(arguments, inputs, 1)
    if content.ndim > 1 or axes not in (None, [0], [-1]) or arguments.integer("noop_with_empty_axes", 0):
        raise Unknown
    if any(isinstance(value, float) or (isinstance(value, Dim) and not value.is_whole) for value in content.flat):
        raise Unknown
    made = np.empty((1,) * content.ndim if arguments.integer("keepdims", 1) else (), dtype=object)
    dims = [value if isinstance(value, Dim) else Dim(int(value)) for value in content.ravel().tolist()]
    total = product(dims)
    if abs(total.factor) >= 2**31:
        raise Unknown
    made[...] = total if total.number is None else total.number
    return [made]


def _range(_: Arguments, inputs: list[Content | None]) -> list[Any]:
    bounds = [_given(content).item() for content in inputs]
    if not all(isinstance(bound, int) for bound in bounds) or not bounds[2]:
        raise Unknown
    return [list(range(*bounds)[: MAX_ELEMENTS + 1])]


def _filled(shape: list[int], value: Any) -> Content:
    if math.prod(shape) > MAX_ELEMENTS:
        raise Unknown
    made = np.empty(shape, dtype=object)
    made[...] = value
    return made


def _expand(_: Arguments, inputs: list[Content | None]) -> list[Any]:
    data = _given(inputs[0])
    return [np.broadcast_to(data, np.broadcast_shapes(data.shape, _filled(_numbers(inputs[1]), 0).shape))]


def _transpose(arguments: Arguments, inputs: list[Content | None]) -> list[Any]:
    return [np.transpose(_given(inputs[0]), arguments.integers("perm"))]


_STRUCTURAL: dict[str, Callable[[Arguments, list[Content | None]], list[Any]]] = {
    "Cast": _cast,
    "Concat": _concat,
    "Expand": _expand,
    "Gather": _gather,
    "Range": _range,
    "ReduceProd": _reduce,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
