"""Outlines of model files: equal for other weights, and for nothing else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from fastinfer.backends.onnx.graph.outline import Graphs, outline

LARGE, SMALL = 600, 256  # elements; the proof reads constants of up to 256


def model(weights: onnx.TensorProto, op_type: str = "Mul") -> bytes:
    node = helper.make_node(op_type, ["x", weights.name], ["y"])
    x, y = (helper.make_tensor_value_info(name, weights.data_type, ["N", weights.dims[0]]) for name in "xy")
    return helper.make_model(helper.make_graph([node], "g", [x], [y], [weights])).SerializeToString()


def constant(value: float, count: int, dtype: str = "f4", name: str = "w") -> onnx.TensorProto:
    return numpy_helper.from_array(np.full(count, value, dtype), name)


def typed(value: float, data_type: int) -> onnx.TensorProto:
    return helper.make_tensor("w", data_type, [LARGE * 2], [value] * LARGE * 2)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_weights_have_no_effect(dtype: str) -> None:
    count = 3000
    assert outline(model(constant(1.5, count, dtype))) == outline(model(constant(-7, count, dtype)))


@pytest.mark.parametrize("data_type", [onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE])
def test_nor_have_weights_in_typed_fields(data_type: int) -> None:
    assert outline(model(typed(1.5, data_type))) == outline(model(typed(-7, data_type)))


@pytest.mark.parametrize(
    "other",
    [
        model(constant(1, LARGE * 4), "Add"),
        model(constant(1, LARGE * 4, name="v")),
        model(constant(1, LARGE * 4 + 1)),
        model(constant(1, LARGE * 4, "f8")),
    ],
    ids=["operator", "name", "shape", "type"],
)
def test_all_else_has(other: bytes) -> None:
    assert outline(model(constant(1, LARGE * 4))) != outline(other)


@pytest.mark.parametrize(("count", "dtype"), [(SMALL, "f4"), (SMALL, "f8"), (5000, "i8"), (9000, "i1"), (9000, "?")])
def test_so_have_values_that_may_be_shapes_or_indices(count: int, dtype: str) -> None:
    assert outline(model(constant(0, count, dtype))) != outline(model(constant(1, count, dtype)))


@pytest.mark.parametrize("content", [b"", b"\xff" * 50, model(constant(1, LARGE * 4))[:-9]])
def test_what_is_no_model_has_the_outline_of_its_bytes(content: bytes) -> None:
    assert outline(content) == outline(bytearray(content))
    assert outline(content) != outline(content + b"\0")


def test_one_model_is_examined_for_all_with_its_outline(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    monkeypatch.setattr("fastinfer.backends.onnx.graph.outline.read_facts", lambda content: read.append(content) or 1)
    graphs = Graphs()
    for number in range(5):
        assert graphs.facts("a", bytes([number])) == 1
    assert graphs.facts("b", b"b") == 1
    assert read == [b"\0", b"b"]
