"""The argument of rules, their registration, and the checks that they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fastinfer.backends.onnx.graph.dims import BATCH, Dim, Symbols
from fastinfer.backends.onnx.graph.proto import Attribute, Tensor
from fastinfer.backends.onnx.graph.values import Content, Mixes, Value, broadcast, constant, free, moved, unchanged

ONNX, MICROSOFT, ML = "", "com.microsoft", "ai.onnx.ml"


@dataclass(slots=True)
class Call:
    """One application of an operator.

    Attributes:
        domain, op_type: the operator.
        opset: the version of its domain.
        attributes: by name.
        inputs: the facts about each; None: it is omitted.
        symbols: the graph's symbols.
        outputs: the number of outputs that the graph uses.
        id_limits: for graph inputs that select rows of tables: the rows of the smallest table. Rules add to it.
    """

    domain: str
    op_type: str
    opset: int
    attributes: Mapping[str, Attribute]
    inputs: Sequence[Value | None]
    symbols: Symbols
    outputs: int = 1
    id_limits: dict[str, int] = field(default_factory=dict)

    def value(self, at: int) -> Value | None:
        """Return an input; None: it is omitted."""
        return self.inputs[at] if at < len(self.inputs) else None

    def need(self, at: int) -> Value:
        """Return a required input. Mixes if it is omitted."""
        value = self.value(at)
        if value is None:
            raise Mixes("lacks an input")
        return value

    def content(self, at: int, attribute: str | None = None) -> Content | None:
        """Return the elements of an input, or of the attribute that older opsets have instead; None: neither is given.

        Raises:
            Mixes: the elements are unknown.
        """
        value = self.value(at)
        if value is None:
            given = self.integers(attribute) if attribute is not None else None
            return None if given is None else constant(given).content
        if value.content is None:
            raise Mixes("takes a shape, axes or indices that are computed from values")
        return value.content

    def numbers(self, at: int, attribute: str | None = None) -> list[int] | None:
        """As :meth:`content`, but only whole numbers."""
        content = self.content(at, attribute)
        if content is None:
            return None
        if any(isinstance(each, Dim | float) for each in content.flat):
            raise Mixes("takes axes or sizes that are not constant")
        return [int(each) for each in content.flat]

    def integer(self, name: str, default: int) -> int:
        return self.attributes[name].i if name in self.attributes else default

    def integers(self, name: str) -> list[int] | None:
        return self.attributes[name].ints if name in self.attributes else None

    def reals(self, name: str) -> list[float] | None:
        return self.attributes[name].floats if name in self.attributes else None

    def text(self, name: str, default: str) -> str:
        return str(self.attributes[name].s, "utf-8", "replace") if name in self.attributes else default

    def tensor(self, name: str) -> Tensor | None:
        return self.attributes[name].t if name in self.attributes else None


Rule = Callable[[Call], list[Value]]
RULES: dict[tuple[str, str], Rule] = {}

SHAPE_INPUTS = {
    "ConstantOfShape": {0}, "Expand": {1}, "Pad": {1}, "Range": {1}, "Reshape": {1}, "Resize": {2, 3}, "Shape": {0},
    "Size": {0}, "Slice": {1, 2}, "Tile": {1},
}  # fmt: skip
"""Inputs that may depend on the batch size, because their rules check each number. Any other such input mixes rows."""

RANDOM = frozenset(
    {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
"""Operators that draw random numbers: equal inputs may have different outputs."""

COUPLES = {
    **dict.fromkeys(RANDOM, "draws random numbers"),
    **dict.fromkeys(
        ("DynamicQuantizeLSTM", "DynamicQuantizeLinear", "DynamicQuantizeMatMul"), "quantizes all rows by one scale"
    ),
    **dict.fromkeys(("NonMaxSuppression", "NonZero", "Unique"), "lists what it finds in all rows"),
}
"""Operators without a rule because they couple rows, with the reason. Other operators without a rule are unknown."""

SAME_BITS = frozenset(
    {
        "Abs", "Add", "And", "ArgMax", "ArgMin", "ArrayFeatureExtractor", "Binarizer", "BitShift", "BitwiseAnd",
        "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Clip", "Compress", "Concat",
        "ConstantOfShape", "ConvInteger", "DepthToSpace", "Div", "Dropout", "Equal", "Expand", "Flatten", "Floor",
        "Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual", "Identity", "If", "IsInf", "IsNaN",
        "LabelEncoder", "Less", "LessOrEqual", "MatMulInteger", "MaxPool", "Mul", "Neg", "Not", "OneHot", "Or", "Pad",
        "Range", "ReduceMax", "ReduceMin", "Relu", "Reshape", "Shape", "Sign", "Size", "Slice", "SpaceToDepth", "Split",
        "Sqrt", "Squeeze", "StringConcat", "Sub", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
    }
)  # fmt: skip
"""Operators whose results are exact or correctly rounded, element by element.

Neither the order of summation nor the kernel for the last elements of a vector changes a bit of them. Sums of products
and approximated functions such as Exp are missing, and so are Max and Min, because their choice between 0.0 and -0.0
depends on an element's place in a vector register.
"""


def rule(*op_types: str, domains: Sequence[str] = (ONNX,)) -> Callable[[Rule], Rule]:
    """Registers a rule for operators."""

    def register(function: Rule) -> Rule:
        for domain in domains:
            for op_type in op_types:
                RULES[domain, op_type] = function
        return function

    return register


# --- Common parts -----------------------------------------------------------------------------------------------------


def axis_of(value: Value, axis: int, rank: int | None = None) -> int:
    """Return an axis counted from the front. Mixes if it does not exist."""
    rank = value.rank if rank is None else rank
    if not -rank <= axis < rank:
        raise Mixes("names an axis that does not exist")
    return axis % rank


def require_untouched(value: Value, axes: Sequence[int], does: str) -> None:
    """Raises Mixes if an operator works along the axis of rows."""
    if value.axis is not None and value.axis in axes:
        raise Mixes(f"{does} over the batch dimension")


def require_free(call: Call, *positions: int) -> None:
    """Raises Mixes if one of these inputs, mostly parameters, is not the same for all rows."""
    for at in positions:
        value = call.value(at)
        if value is not None and not value.is_free:
            raise Mixes("takes parameters that differ from row to row")


def require_rows_first(*values: Value | None) -> None:
    """Raises Mixes unless all values have the same rows along the first axis, or none has rows."""
    given = [value for value in values if value is not None]
    if any(value.axis is not None for value in given) and any(value.axis != 0 for value in given):
        raise Mixes("takes rows that are not all on the first axis")
    require_same_rows(*given)


def require_same_rows(*values: Value) -> None:
    """Raises Mixes unless all values have their rows on the same axis, or none has rows."""
    places = {(value.axis, value.before, value.after) for value in values}
    if len(places) > 1:
        raise Mixes("combines rows with a value that does not have the same rows")


def unary(call: Call) -> list[Value]:
    return [unchanged(call.need(0))]


def nary(call: Call) -> list[Value]:
    return [broadcast([value for value in call.inputs if value is not None], call.symbols)]


def require_scalars(call: Call, *positions: int) -> None:
    """Raises Mixes if one of these inputs is not a scalar, because a vector may differ between rows."""
    require_free(call, *positions)
    for at in positions:
        value = call.value(at)
        if value is not None and not value.is_scalar:
            raise Mixes("takes a parameter for each row of a matrix")


def added(call: Call, to: Value, what: Value) -> Value:
    """Return a product plus a bias that is broadcast to it. Mixes."""
    if to.axis is None and what.axis is not None:
        raise Mixes("adds rows to a value without rows")
    return moved(broadcast([to, what], call.symbols), to.known_dims)


def require_image(x: Value) -> Value:
    if x.rank < 3:
        raise Mixes("takes a value that is not an image")
    if x.axis not in (None, 0):
        raise Mixes("works over the batch dimension")
    return x


def sizes_of(content: Content | None) -> list[Dim]:
    """Return a shape's dimensions. Mixes if one is negative, or there is no shape."""
    if content is None:
        raise Mixes("has no shape")
    sizes = [each if isinstance(each, Dim) else Dim(int(each)) for each in content.flat]
    if any(size.factor < 0 for size in sizes):
        raise Mixes("is given a negative dimension")
    return sizes


def joined(call: Call, values: Sequence[Value]) -> Value:
    if all(value.axis is None for value in values) and any(value.dims is None for value in values):
        return free(None)
    first = values[0]
    axis = axis_of(first, call.integer("axis", 1))
    if any(value.rank != first.rank for value in values):
        raise Mixes("joins values of different ranks")
    if first.axis == axis:
        return _stacked(values, axis)
    require_same_rows(*values)
    dims = list(first.known_dims)
    along = [value.known_dims[axis].number for value in values]
    known = [number for number in along if number is not None]
    dims[axis] = Dim(sum(known)) if len(known) == len(along) else call.symbols.any_size()
    return moved(first, dims)


def _stacked(values: Sequence[Value], axis: int) -> Value:
    """Join values along their axis of rows: the axis then has the rows of each value, one value after the other."""
    first = values[0]
    if any((value.axis, value.after) != (axis, first.after) for value in values):
        raise Mixes("joins rows with a value that does not have the same rows")
    blocks = [value.before.number for value in values]
    before = Dim(sum(block for block in blocks if block is not None))
    if None in blocks:
        raise Mixes("joins over the batch dimension")
    dims = list(first.known_dims)
    dims[axis] = before * BATCH * first.after
    return Value(tuple(dims), axis, before, first.after)


def permuted(x: Value, order: Sequence[int]) -> Value:
    """Return a value with its axes in another order. Mixes if ``order`` is not a permutation."""
    if sorted(order) != list(range(x.rank)):
        raise Mixes("has an invalid permutation")
    dims = [x.known_dims[i] for i in order]
    return moved(x, dims, None if x.axis is None else list(order).index(x.axis))
