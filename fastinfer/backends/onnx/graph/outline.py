"""What is known about graphs, kept by the outline of the model file.

Many models of a server often have the same graph with other weights: one for each customer, or for each night's
training. Facts, proof and trial do not depend on the weights, so one model is examined, and the others have its result.

A file's *outline* is a digest of all its bytes, except for the elements of large constants of floating-point numbers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from hashlib import blake2b
from threading import Lock
from typing import Any, TypeVar

from fastinfer.backends.onnx.graph.contents import MAX_ELEMENTS
from fastinfer.backends.onnx.graph.facts import Facts, read_facts
from fastinfer.backends.onnx.graph.proto import Graph, Message, Model, ProtoError, Tensor
from fastinfer.backends.onnx.graph.rows import Proof, prove

T = TypeVar("T")

_MAX_KEPT = 512  # facts and proofs
_MIN_BYTES = 16 * MAX_ELEMENTS + 1  # the proof reads the elements of smaller constants only
_FLOATING = frozenset({1, 10, 11, 16})  # TensorProto.DataType: FLOAT, FLOAT16, DOUBLE, BFLOAT16
_ELEMENTS = (Tensor.float_data.number, Tensor.raw_data.number, 10)  # 10: double_data


def outline(model: bytes | memoryview) -> str:
    """A model file's outline, in hexadecimal; of bytes that are no model, a digest of all."""
    view = memoryview(model)
    try:
        weights = list(_weights(view))
    except ProtoError:
        weights = []
    digest = blake2b(digest_size=16)
    at = 0
    for start, end in weights:
        digest.update(view[at:start])
        at = end
    digest.update(view[at:])
    return digest.hexdigest()


def _weights(model: memoryview) -> Iterator[tuple[int, int]]:
    """Where the elements of large constants of floating-point numbers are, in order. ProtoError."""
    for graph, graph_end in Model(model).positions(Model.graph.number):
        for at, end in Message(model[graph:graph_end]).positions(Graph.initializer.number):
            if end - at < _MIN_BYTES:
                continue
            tensor = Tensor(model[graph + at : graph + end])
            if tensor.data_type in _FLOATING:
                found = sorted(each for number in _ELEMENTS for each in tensor.positions(number))
                yield from ((graph + at + a, graph + at + b) for a, b in found if b - a >= _MIN_BYTES)


class Graphs:
    """Facts and proofs by outline. Thread-safe: used on load threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def facts(self, outline: str, model: bytes | memoryview) -> Facts:
        """See :func:`read_facts`."""
        return self._once("facts", outline, read_facts, model)

    def proof(self, outline: str, model: bytes | memoryview, axes: Mapping[str, int]) -> Proof:
        """See :func:`prove`."""
        return self._once(f"proof {sorted(axes.items())}", outline, partial(prove, axes=axes), model)

    def _once(self, what: str, outline: str, read: Callable[[bytes | memoryview], T], model: bytes | memoryview) -> T:
        with self._lock:
            found: T | None = self._kept.pop((what, outline), None)
        if found is None:
            found = read(model)
        with self._lock:
            self._kept[what, outline] = found
            while len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
        return found
