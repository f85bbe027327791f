"""Where the rows of inputs are guessed to be, and what gathers and separates them along other dimensions."""

import numpy as np
import onnx_models
import pytest

from fastinfer.backends.onnx.batch_axes import NO_ROWS, guesses, why_no_rows
from fastinfer.backends.onnx.load import load
from fastinfer.backends.onnx.settings import SessionSettings
from fastinfer.base.errors import ApiError
from fastinfer.config.model import ModelConfig
from fastinfer.config.server import ServerConfig
from fastinfer.tensor.message import InferRequest
from fastinfer.tensor.rows import BatchAxes, concatenate, cut
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import Tensor, TensorSpec


def spec(name, shape, symbols=(), datatype="FP32", axis=0):
    return TensorSpec(name, datatype, shape, symbols, axis)


@pytest.mark.parametrize(
    ("shape", "symbols", "axis"),
    [
        ([-1, 4], ["", ""], 0),
        ([-1, 4], ["rows", ""], 0),
        ([2, -1, 128], ["", "", ""], 1),
        ([2, -1, 128], ["", "N", ""], 1),
        ([-1, -1, 8], ["time", "batch", ""], 1),
        ([-1, -1, 8], ["batch", "n", ""], 0),
        ([-1, -1], ["", ""], 0),
        ([], [], NO_ROWS),
        ([2, 8], ["", ""], NO_ROWS),
        ([3, 8], ["", ""], 0),
    ],
    ids=str,
)
def test_the_likely_batch_dimension(shape, symbols, axis):
    first, *_ = guesses([spec("x", shape, symbols)], {})
    assert first == ({"x": axis} if axis else {})


def test_texts_are_not_a_part_of_what_a_batch_has_in_common():
    assert next(guesses([spec("x", [], datatype="BYTES")], {})) == {}


def test_a_configured_dimension_is_kept_in_each_guess():
    inputs = [spec("x", [-1, -1, 8], ["time", "batch", ""]), spec("s", [2, -1, 8])]
    assert list(guesses(inputs, {})) == [{"x": 1, "s": 1}, {}]
    assert list(guesses(inputs, {"s": 1})) == [{"x": 1, "s": 1}, {"s": 1}]
    assert list(guesses(inputs, {"x": 0})) == [{"s": 1}, {}]


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ([spec("x", [-1, 4]), spec("s", [], axis=NO_ROWS)], None),
        ([spec("x", [2, 4])], "without an open first dimension"),
        ([spec("s", [], axis=NO_ROWS)], "without an open first dimension"),
        ([spec("x", [-1, 4]), spec("s", [-1, 4], axis=1)], "without an open dimension 1"),
        ([spec("x", [2, -1], datatype="BYTES", axis=1)], "texts"),
        ([spec("x", [-1, -1], ["n", "n"])], "first dimension 'n' is also another"),
        ([spec("x", [-1, -1], ["n", "m"]), spec("s", [-1, -1], ["n", "k"], axis=1)], "batch dimension 'n' is also"),
    ],
)
def test_why_inputs_have_no_rows(inputs, reason):
    found = why_no_rows(inputs)
    assert found is None if reason is None else reason in found


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("datatype", ["FP32", "INT8", "FP64"])
def test_rows_are_cut_and_joined_along_a_dimension(axis, datatype):
    array = np.arange(60).reshape(3, 4, 5).astype({"FP32": "f4", "INT8": "i1", "FP64": "f8"}[datatype])
    whole = Tensor.from_numpy("x", array)
    rows = array.shape[axis]
    parts = [cut(whole, axis, start, 1) for start in range(rows)]
    for start, part in enumerate(parts):
        np.testing.assert_array_equal(part.numpy(), array.take([start], axis))
    np.testing.assert_array_equal(concatenate(parts, axis).numpy(), array)
    uneven = [cut(whole, axis, 0, 2), cut(whole, axis, 2, rows - 2)]
    np.testing.assert_array_equal(concatenate(uneven, axis).numpy(), array)


def test_what_does_not_fit_is_refused():
    whole = Tensor.from_numpy("x", np.zeros((3, 4), "f4"))
    texts = Tensor.from_numpy("x", np.full((3, 4), b"a", object))
    assert cut(whole, NO_ROWS, 1, 1) is whole
    for axis, start, count in ((1, 3, 2), (1, -1, 1), (2, 0, 1)):
        with pytest.raises(IndexError):
            cut(whole, axis, start, count)
    with pytest.raises(ValueError, match="BYTES"):
        cut(texts, 1, 0, 1)
    with pytest.raises(ValueError, match="dimension 1"):
        concatenate([texts, texts], 1)
    with pytest.raises(ValueError, match="does not fit"):
        concatenate([whole, Tensor.from_numpy("x", np.zeros((2, 4), "f4"))], 1)


def test_rows_along_the_first_dimension_need_no_axes():
    assert BatchAxes.of([spec("x", [-1, 4])], [spec("y", [-1])]) is None
    assert BatchAxes.of([spec("x", [-1, 4])], [spec("y", [2, -1], axis=1)]) is not None


STATE = Signature(
    [spec("x", [-1, -1, 3], ["batch", "t", ""]), spec("s", [2, -1, 4], ["", "batch", ""], axis=1),
     spec("rate", [], datatype="INT64", axis=NO_ROWS)],
    [spec("y", [-1], ["batch"])], batched=True, max_batch_size=8,
)  # fmt: skip


def request(x=(2, 5, 3), s=(2, 2, 4), rate=16):
    return InferRequest(
        [
            Tensor.from_numpy("x", np.zeros(x, "f4")),
            Tensor.from_numpy("s", np.zeros(s, "f4")),
            Tensor.from_numpy("rate", np.int64(rate)),
        ]
    )


def checked(*args, **kwargs):
    made = request(*args, **kwargs)
    STATE.check(made, "m")
    return made


def test_rows_are_counted_along_each_inputs_dimension():
    made = checked()
    assert (made.rows, made.implicit_batch) == (2, False)
    assert checked((1, 5, 3), (2, 1, 4)).shape_key == made.shape_key
    assert checked((2, 6, 3)).shape_key != made.shape_key
    assert checked(rate=8).shape_key != made.shape_key


def test_an_item_gets_its_dimension_where_it_belongs():
    made = checked((5, 3), (2, 4))
    assert made.implicit_batch
    assert [tensor.shape for tensor in made.inputs] == [(1, 5, 3), (2, 1, 4), ()]
    assert made.shape_key == checked().shape_key


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        (((2, 5, 3), (2, 3, 4)), "batch size does not match other inputs"),
        (((2, 5, 3), (3, 2, 4)), "unexpected shape for input 's'"),
        (((2, 5, 3), (2, 2, 5)), "unexpected shape for input 's'"),
        (((5, 3), (2, 2, 4)), "unexpected shape for input 'x'"),
    ],
)
def test_other_shapes_are_refused(shapes, sentence):
    with pytest.raises(ApiError, match=sentence):
        checked(*shapes)


def test_a_batch_needs_an_input_with_rows(tmp_path):
    fixed = onnx_models.identity("FP32", (2, 3))
    path = tmp_path / "m" / "1" / "model.onnx"
    with pytest.raises(ApiError, match=r"needs an open first dimension, but input 'x' has the shape \[2, 3\]"):
        load(path, fixed, ModelConfig(name="m", max_batch_size=4), "m", SessionSettings(), ServerConfig())
