"""Tensors: their memory, its owner, and the views of it."""

from __future__ import annotations

import ctypes
import gc

import numpy as np
import pytest

from fastinfer.tensor import datatype
from fastinfer.tensor.tensor import Tensor, TensorSpec


def test_every_dtype_of_numpy_that_has_a_name() -> None:
    for name in datatype.NAMES:
        if name in ("BF16", "BYTES"):
            continue
        array = np.arange(6).astype(datatype.numpy_dtype(name)).reshape(2, 3)
        tensor = Tensor.from_numpy("x", array)
        assert (tensor.datatype, tensor.shape, tensor.nbytes) == (name, (2, 3), 6 * datatype.itemsize(name))
        assert tensor.numpy().tolist() == array.tolist()
        assert tensor.numpy().dtype == array.dtype
        assert bytes(tensor) == array.tobytes()


def test_bf16_is_carried_as_uint16() -> None:
    array = np.array([0x3F80, 0x4000], dtype=np.uint16)
    tensor = Tensor.from_numpy("x", array, "BF16")
    assert tensor.datatype == "BF16"
    assert tensor.numpy().tolist() == array.tolist()
    with pytest.raises(TypeError):
        Tensor.from_numpy("x", np.zeros(2, dtype=np.float32), "BF16")
    with pytest.raises(ValueError, match="no v2 datatype"):
        Tensor.from_numpy("x", np.zeros(2, dtype=np.complex64))
    with pytest.raises(ValueError, match="unknown datatype"):
        Tensor.from_numpy("x", array, "FP8")


def test_strings_lie_one_behind_the_other() -> None:
    array = np.array([[b"a", b""], ["é", b"\x00\xff"]], dtype=object)
    tensor = Tensor.from_numpy("x", array)
    assert tensor.numpy().tolist() == [[b"a", b""], ["é".encode(), b"\x00\xff"]]
    assert bytes(tensor)[:9] == b"\x01\x00\x00\x00a\x00\x00\x00\x00"
    rows = tensor.slice_rows(1, 1)
    assert (rows.shape, rows.numpy().tolist()) == ((1, 2), [["é".encode(), b"\x00\xff"]])
    assert tensor.slice_rows(2, 0).numpy().tolist() == []


def test_the_memory_lives_as_long_as_a_view_of_it() -> None:
    array = np.arange(1000, dtype=np.int64)
    view = Tensor.from_numpy("x", array.copy()).slice_rows(10, 5).reshaped([5, 1]).renamed("y").numpy()
    gc.collect()
    assert view.tolist() == [[10], [11], [12], [13], [14]]
    assert not view.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1
    with pytest.raises(TypeError, match="read-only"):
        memoryview(Tensor.from_numpy("x", array))[0] = 1
    with pytest.raises(TypeError, match="not writable"):
        (ctypes.c_char * 8).from_buffer(Tensor.from_numpy("x", array))


def test_contiguous_memory_is_used_in_place() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = Tensor.from_numpy("x", array)
    array[0, 0] = 9
    assert tensor.numpy()[0, 0] == 9
    assert Tensor.from_numpy("x", array.T).numpy().tolist() == array.T.tolist()
    assert Tensor.from_numpy("x", np.array(1.5)).shape == ()
    assert Tensor.from_numpy("x", array.astype(">f4")).numpy().tolist() == array.tolist()


def test_rows_outside_and_shapes_that_do_not_fit() -> None:
    tensor = Tensor.from_numpy("x", np.zeros((3, 2), dtype=np.uint8))
    for start, count in ((-1, 1), (0, 4), (3, 1), (1, -1)):
        with pytest.raises(IndexError):
            tensor.slice_rows(start, count)
    for shape in ([5], [-6], [-2, -3], [1] * 17, [2**62, 4]):
        with pytest.raises(ValueError):
            tensor.reshaped(shape)
    with pytest.raises(ValueError, match="at most 16"):
        Tensor.from_numpy("x", np.zeros([1] * 17))


def test_specs_compare_by_what_they_say() -> None:
    spec = TensorSpec("x", "FP32", [-1, 3], ["n", ""])
    assert spec == TensorSpec("x", "FP32", (-1, 3))
    assert hash(spec) == hash(TensorSpec("x", "FP32", (-1, 3)))
    assert spec != TensorSpec("x", "FP64", (-1, 3))
    assert spec != "x"
    assert (spec.datatype, spec.shape, spec.symbols) == ("FP32", (-1, 3), ("n", ""))
    with pytest.raises(ValueError, match="unknown datatype"):
        TensorSpec("x", "FP8", [1])
    with pytest.raises(ValueError, match="at most 16"):
        TensorSpec("x", "FP32", [1] * 17)


# --- What memory safety rests on --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [17, 18, 100, 1000])
def test_more_dimensions_than_there_is_room_for_are_refused(rank: int) -> None:
    tensor = Tensor.from_numpy("x", np.zeros((1, 1), "f4"))
    for make in (lambda shape: Tensor.empty("x", "FP32", shape), tensor.reshaped):
        with pytest.raises(ValueError, match="at most 16 dimensions"):
            make([1] * rank)
    with pytest.raises(ValueError, match="at most 16"):
        Tensor.from_numpy("x", np.zeros((1,) * min(rank, 64), "f4"))


@pytest.mark.parametrize("shape", [[2**62, 2], [2**61], [2**63 - 1], [2**32, 2**31], [-1], [2**40, 2**40, 0, 3][:2]])
def test_more_elements_than_memory_has_bytes_are_refused(shape: list[int]) -> None:
    with pytest.raises((ValueError, MemoryError)):
        Tensor.empty("x", "FP64", shape)


@pytest.mark.parametrize(
    ("start", "count"),
    [
        (0, 4),
        (1, 3),
        (3, 1),
        (4, 0),
        (-1, 1),
        (0, -1),
        (1, 2**63 - 1),
        (2**63 - 1, 1),
        (2**63 - 1, 2**63 - 1),
        (2, -(2**63)),
    ],
)
def test_rows_that_are_not_there_are_refused(start: int, count: int) -> None:
    for array in (np.zeros((3, 2), "f4"), np.array([["a"], ["bc"], [""]], object)):
        with pytest.raises(IndexError):
            Tensor.from_numpy("x", array).slice_rows(start, count)
