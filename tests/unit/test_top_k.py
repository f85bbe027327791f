"""The classification extension: which elements are answered, in what order, and how they are written."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastinfer.base.errors import ApiError
from fastinfer.codec import encode as codec
from fastinfer.tensor.datatype import numpy_dtype
from fastinfer.tensor.message import InferResponse
from fastinfer.tensor.tensor import Tensor
from fastinfer.tensor.top_k import Classification, Labels

INTEGERS = ["UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"]
FLOATS = ["FP16", "BF16", "FP32", "FP64"]


def answered(tensor: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The output as JSON has it, once it is known that the binary form holds the same."""
    parts = {}
    for binary in (False, True):
        response = InferResponse("m", "1", [tensor], b"", (binary,), (Classification(tensor, *args, **kwargs),))
        encoded = codec.encode(response)
        job = codec.EncodeJob(response)
        job.run()
        parts[binary] = [bytes(part) for part in encoded.parts()]
        assert [bytes(part) for part in job.result().parts()] == parts[binary]
        assert sum(map(len, parts[binary])) == encoded.size
    output = json.loads(parts[False][0])["outputs"][0]
    elements = [text.encode() for text in output["data"]]
    assert parts[True][1] == b"".join(len(element).to_bytes(4, "little") + element for element in elements)
    head = json.loads(parts[True][0])["outputs"][0]
    assert head.pop("parameters") == {"binary_data_size": len(parts[True][1])}
    assert head == {key: value for key, value in output.items() if key != "data"}
    assert output["datatype"] == "BYTES"
    assert math.prod(output["shape"]) == len(elements)
    return output


def expected(row: Sequence[float], wanted: int) -> list[str]:
    """Sorts the whole row, as Python does, and writes it, as printf does."""
    order = sorted(range(len(row)), key=lambda i: (math.isnan(row[i]), 0 if math.isnan(row[i]) else -row[i], i))
    return [f"{text_of(row[i])}:{i}" for i in order[:wanted]]


def text_of(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return "-nan" if math.isnan(value) and math.copysign(1, value) < 0 else f"{value:.6f}"


def values_of(tensor: Tensor) -> list[Any]:
    """The elements as Python's numbers, each exact."""
    array = tensor.numpy()
    if tensor.datatype == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.reshape(-1).tolist()


def drawn(datatype: str, shape: Sequence[int], seed: int = 0) -> Tensor:
    """Any bits at all: with infinities and NaN, of both signs, where the datatype has them."""
    dtype = np.dtype(numpy_dtype(datatype))
    raw = np.random.default_rng(seed).bytes(math.prod(shape) * dtype.itemsize)
    return Tensor.from_numpy("scores", np.frombuffer(raw, dtype).reshape(shape), datatype)


@pytest.mark.parametrize("wanted", [1, 2, 5, 299, 300, 301, 2**62])
@pytest.mark.parametrize("datatype", INTEGERS + FLOATS)
def test_the_largest_come_first(datatype: str, wanted: int) -> None:
    tensor = drawn(datatype, [3, 300])
    output = answered(tensor, wanted, batched=True)
    assert output["shape"] == [3, min(wanted, 300)]
    values = values_of(tensor)
    assert output["data"] == [text for at in (0, 300, 600) for text in expected(values[at : at + 300], wanted)]


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_every_value_of_16_bits(datatype: str) -> None:
    bits = np.arange(65536, dtype=np.uint16).view(numpy_dtype(datatype))
    tensor = Tensor.from_numpy("scores", bits, datatype)
    assert answered(tensor, 65536)["data"] == expected(values_of(tensor), 65536)


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, 1.5, math.nan, -math.inf, math.inf, 1e-7]), max_size=12), st.data())
def test_of_equal_ones_the_lower_index_comes_first_and_nan_last(row: list[float], data: st.DataObject) -> None:
    wanted = data.draw(st.integers(1, 13))
    assert answered(Tensor.from_numpy("scores", np.array(row)), wanted)["data"] == expected(row, wanted)


def test_the_longest_texts() -> None:
    row = [1.7976931348623157e308, 5e-324, -5e-324, -1.7976931348623157e308, math.pi, 0.0000005, 2.5e-7]
    assert answered(Tensor.from_numpy("scores", np.array(row)), 9)["data"] == expected(row, 9)
    lowest = Tensor.from_numpy("scores", np.array([-(2**63), 2**63 - 1]))
    assert answered(lowest, 2)["data"] == ["9223372036854775807:1", "-9223372036854775808:0"]
    highest = Tensor.from_numpy("scores", np.array([2**63, 2**64 - 1], dtype=np.uint64))
    assert answered(highest, 2)["data"] == ["18446744073709551615:1", "9223372036854775808:0"]


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "INT64"])
def test_elements_may_lie_at_odd_addresses(datatype: str) -> None:
    there = drawn(datatype, [50])
    moved = np.frombuffer(b"x" + bytes(there), numpy_dtype(datatype), offset=1)
    assert moved.ctypes.data % 2 == 1
    assert answered(Tensor.from_numpy("scores", moved), 50) == answered(there, 50)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("", ["", "", "", ""]),
        ("a", [":a", "", "", ""]),
        ("a\nb\nc\nd\n", [":a", ":b", ":c", ":d"]),
        ("a\n\nc\nd\ne\nf", [":a", "", ":c", ":d"]),
        ("\n\n\n\n\n", ["", "", "", ""]),
        ('tabby, "cat":1\n \nè😀\\\n\x00', [':tabby, "cat":1', ": ", ":è😀\\", ":\x00"]),
    ],
)
def test_labels(text: str, labels: list[str]) -> None:
    scores = Tensor.from_numpy("scores", np.array([4, 3, 2, 1], dtype=np.int8))
    assert answered(scores, 4, labels=Labels(text))["data"] == [f"{4 - i}:{i}{labels[i]}" for i in range(4)]


def test_labels_are_counted() -> None:
    assert [len(Labels(text)) for text in ("", "a", "a\n", "a\nb", "\n\n")] == [0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("shape", "batched", "answer"),
    [
        ([2, 3, 4], True, [2, 5]),
        ([2, 3, 4], False, [5]),
        ([2, 3], True, [2, 3]),
        ([4], True, [4, 1]),
        ([4], False, [4]),
        ([], False, [1]),
        ([0, 3], True, [0, 3]),
        ([0, 3], False, [0]),
        ([2, 0], True, [2, 0]),
        ([2**40, 0], True, [2**40, 0]),
        ([0, 2**40, 2**40], True, [0, 5]),
    ],
)
def test_shapes(shape: list[int], batched: bool, answer: list[int]) -> None:
    scores = Tensor.from_numpy("scores", np.zeros(math.prod(shape), dtype=np.uint8)).reshaped(shape)
    output = answered(scores, 5, batched=batched)
    assert output["shape"] == answer
    assert output["data"] == [f"0:{i}" for i in range(answer[-1])] * (math.prod(answer) // max(answer[-1], 1))


@pytest.mark.parametrize(("datatype", "element"), [("BOOL", True), ("BYTES", b"x")])
def test_what_has_no_order_is_refused(datatype: str, element: object) -> None:
    array = np.array([element], dtype=object if datatype == "BYTES" else None)
    with pytest.raises(ApiError) as raised:
        Classification(Tensor.from_numpy("scores", array), 1)
    assert (raised.value.status, raised.value.message) == (
        400,
        f"class result not available for output 'scores' due to unsupported type '{datatype}'",
    )


def test_what_cannot_be_asked_for_over_the_wire() -> None:
    with pytest.raises(ValueError, match="no 0 classes"):
        Classification(drawn("FP32", [3]), 0)
    with pytest.raises(ValueError, match="classes of"):
        Classification(drawn("FP32", []), 1, batched=True)


def test_outputs_without_classes_stay_as_they_are() -> None:
    plain, scores = Tensor.from_numpy("plain", np.arange(3, dtype=np.int8)), drawn("FP32", [2, 4])
    classes = Classification(scores, 1, batched=True)
    response = InferResponse("m", "1", [plain, scores, plain], b"", (True, False, False), (None, classes, None))
    encoded = codec.encode(response)
    first, second, third = json.loads(bytes(encoded))["outputs"]
    assert (first["datatype"], second["shape"], third["data"]) == ("INT8", [2, 1], [0, 1, 2])
    assert encoded.parts()[1] is plain
    # What leaves as bytes holds its memory, whatever else goes away.
    response = InferResponse("m", "1", [scores], b"", (True,), (classes,))
    part = codec.encode(response).parts()[1]
    before = bytes(part)
    del response, classes, scores
    assert bytes(part) == before


def test_lines_of_labels_are_bounded() -> None:
    assert len(Labels("\n" * 1_000_000)) == 1_000_000
    assert len(Labels("é" * 512 + "\nb")) == 2
    for text in ("a\n" + "é" * 512 + "x", "a\n" + "x" * 1025 + "\nb"):
        with pytest.raises(ValueError, match="line 2: is longer than 1 KiB"):
            Labels(text)
    with pytest.raises(ValueError, match="line 1000001: is one more than there may be"):
        Labels("\n" * 1_000_000 + "x")
    with pytest.raises(ValueError, match="line 1000001"):
        Labels("\n" * 3_000_000)
