"""Reads nodes for the proof: their attributes, the constants that they hold, the operator sets that they are from.

Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from fastinfer.backends.onnx.graph import contents
from fastinfer.backends.onnx.graph.dims import Dim
from fastinfer.backends.onnx.graph.operators import ONNX, Call
from fastinfer.backends.onnx.graph.proto import Attribute, Function, Node, OperatorSetId
from fastinfer.backends.onnx.graph.values import Value, constant, free


def constant_of(call: Call) -> Value:
    tensor = call.tensor("value")
    if tensor is not None:
        return Value(tuple(Dim(dim) for dim in tensor.dims), content=contents.stored(tensor))
    for name in ("value_int", "value_float"):
        if name in call.attributes:
            attribute = call.attributes[name]
            return constant(attribute.i if name == "value_int" else attribute.f)
    numbers = call.integers("value_ints") or call.reals("value_floats")
    if numbers is not None:
        return constant(numbers) if len(numbers) <= contents.MAX_ELEMENTS else free([Dim(len(numbers))])
    if "value_strings" in call.attributes:
        return free([Dim(len(call.attributes["value_strings"].strings))])
    return free([] if "value_string" in call.attributes else None)


def with_known(function: Function, given: Collection[str]) -> Sequence[Node]:
    """Return the function's nodes; references to inputs that the call omits become empty names."""
    missing = {name for name in function.input if name not in given}
    if not missing:
        return function.node
    nodes = []
    for node in function.node:
        node.input = ["" if name in missing else name for name in node.input]
        nodes.append(node)
    return nodes


class Attributes(Mapping[str, Attribute]):
    """A node's attributes; references to the function's attributes are replaced by those of its call.

    Only the attributes that are asked for are read: tree ensembles have lists of millions of numbers.
    """

    def __init__(self, node: Node, given: Mapping[str, Attribute]) -> None:
        self._own = {each.name: each for each in node.attribute}
        self._given = given

    def __getitem__(self, name: str) -> Attribute:
        own = self._own[name]
        reference = own.ref_attr_name if self._given or own.first(21) else ""
        return self._given[reference] if reference else own

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._own if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def opsets_of(imports: Sequence[OperatorSetId]) -> dict[str, int]:
    return {domain_of(each.domain): each.version for each in imports}


def domain_of(name: str) -> str:
    return ONNX if name == "ai.onnx" else name


def named(node: Node) -> str:
    name = node.name
    return f" ('{name[:60]}')" if name else ""
