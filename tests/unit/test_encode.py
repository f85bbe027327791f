"""InferResponse -> text: the envelope, strings, binary outputs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinfer.base.errors import ApiError
from fastinfer.codec import decode as reader
from fastinfer.codec import encode as codec
from fastinfer.tensor.message import InferResponse
from fastinfer.tensor.tensor import Tensor


def text_of(*tensors: Tensor, **response: object) -> str:
    return bytes(codec.encode(InferResponse("m", "1", list(tensors), **response))).decode()  # type: ignore[arg-type]


def strings(elements: list[bytes]) -> Tensor:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return Tensor.from_numpy("s", array)


def test_the_envelope_is_compact_and_in_order() -> None:
    tensor = Tensor.from_numpy("out", np.array([[1, 2], [3, 4]], dtype=np.int32))
    assert text_of(tensor, id=b"42") == (
        '{"model_name":"m","model_version":"1","id":"42","outputs":'
        '[{"name":"out","datatype":"INT32","shape":[2,2],"data":[1,2,3,4]}]}'
    )
    assert text_of() == '{"model_name":"m","model_version":"1","outputs":[]}'
    scalar = Tensor.from_numpy("x", np.array(1.5, dtype=np.float16))
    assert text_of(scalar, tensor).startswith(
        '{"model_name":"m","model_version":"1","outputs":[{"name":"x","datatype":"FP16","shape":[],"data":[1.5]},{"name"'
    )


def test_the_id_stays_as_it_was_escaped() -> None:
    body = b'{"id":"a\\u00e9\\"\\n\xc3\xa9","inputs":[]}'
    request = reader.decode(body)
    text = text_of(id=request.id)
    assert json.loads(text)["id"] == json.loads(body)["id"] == 'aé"\né'


def test_names_are_escaped() -> None:
    name = 'a"b\\c\n\x00\x1f é😀\x7f'
    tensor = Tensor.from_numpy(name, np.zeros(1, dtype=np.uint8))
    text = text_of(tensor)
    assert json.loads(text)["outputs"][0]["name"] == name
    assert "\\n\\u0000\\u001f é😀\x7f" in text


@given(st.lists(st.text()))
@settings(max_examples=100, deadline=None)
def test_strings_are_written_as_json_writes_them(elements: list[str]) -> None:
    text = text_of(strings([e.encode() for e in elements]))
    assert json.loads(text)["outputs"][0]["data"] == elements
    assert text[text.index('"data":') + 7 : -3] == json.dumps(elements, ensure_ascii=False, separators=(",", ":"))


@given(st.lists(st.binary()))
@settings(max_examples=100, deadline=None)
def test_bytes_that_are_not_utf8_are_replaced(elements: list[bytes]) -> None:
    got = json.loads(text_of(strings(elements)))["outputs"][0]["data"]
    assert got == [e.decode("utf-8", "replace") for e in elements]


def test_each_ill_formed_part_is_one_replacement() -> None:
    cases = b"\xff|\xc0\xaf|\xe2\x82|a\xf0\x9f\x98z|\xed\xa0\x80|\xf4\x90\x80\x80|\xc3\xa9\xc3|\x80".split(b"|")
    got = json.loads(text_of(strings(cases)))["outputs"][0]["data"]
    assert got == [c.decode("utf-8", "replace") for c in cases]


def test_binary_outputs_follow_the_text() -> None:
    first = Tensor.from_numpy("a", np.arange(6, dtype=np.float32).reshape(2, 3))
    second = Tensor.from_numpy("b", np.arange(3, dtype=np.uint8))
    third = strings([b"x", b"\xff\x00"])
    encoded = codec.encode(InferResponse("m", "1", [first, second, third], binary=(True, False, True)))
    document = json.loads(bytes(encoded))
    assert document["outputs"][0] == {
        "name": "a",
        "datatype": "FP32",
        "shape": [2, 3],
        "parameters": {"binary_data_size": 24},
    }
    assert list(document["outputs"][1]) == ["name", "datatype", "shape", "data"]
    parts = encoded.parts()
    assert parts[1] is first
    assert parts[2] is third
    assert [len(bytes(p)) for p in parts] == [encoded.json_size, 24, 11]
    assert bytes(parts[0]) == bytes(encoded)
    assert encoded.binary
    assert encoded.size == encoded.json_size + 24 + 11


def test_an_answer_without_bytes_is_its_text_alone() -> None:
    encoded = codec.encode(InferResponse("m", "1", [Tensor.from_numpy("a", np.zeros(3, dtype=np.int8))]))
    view = memoryview(encoded)
    assert (encoded.json_size, encoded.size, encoded.binary) == (len(view), len(view), False)
    assert view.readonly
    del encoded
    assert bytes(view).startswith(b'{"model_name":"m"')


def test_a_value_that_may_not_be_written_is_an_error_with_its_place() -> None:
    good = Tensor.from_numpy("a", np.zeros(3, dtype=np.float32))
    bad = Tensor.from_numpy("b", np.array([[0, 1], [np.inf, 2]], dtype=np.float64))
    with pytest.raises(ApiError) as raised:
        codec.encode(InferResponse("m", "1", [good, bad]), codec.ERROR)
    assert raised.value.status == 500
    assert raised.value.message.startswith("outputs[1].data[2]: ")
    for at in (4095, 4096, 9_999):
        large = np.zeros(10_000, dtype=np.float32)
        large[at] = np.nan
        with pytest.raises(ApiError, match=rf"outputs\[0\]\.data\[{at}\]: "):
            codec.encode(InferResponse("m", "1", [Tensor.from_numpy("a", large)]), codec.ERROR)
    codec.encode(InferResponse("m", "1", [good, bad], binary=(False, True)), codec.ERROR)  # bytes may hold anything


def test_a_job_writes_the_same() -> None:
    source = np.random.default_rng(6)
    tensors = [
        Tensor.from_numpy("a", source.standard_normal(20_000).astype(np.float32)),
        Tensor.from_numpy("b", source.integers(0, 255, 20_000, dtype=np.uint8)),
        strings([source.bytes(50) for _ in range(500)]),
    ]
    response = InferResponse("model", "3", tensors, b"id")
    job = codec.EncodeJob(response, codec.NULL)
    job.run()
    encoded = job.result()
    assert bytes(encoded) == bytes(codec.encode(response, codec.NULL))
    assert json.loads(bytes(encoded))["outputs"][1]["data"] == tensors[1].numpy().tolist()
    assert job.ended_ns >= job.started_ns > 0
    del codec.EncodeJob(response).done  # a job that never ran leaves nothing behind


@pytest.mark.parametrize("datatype", ["BOOL", "UINT64", "INT8", "INT64", "FP16", "FP32", "FP64"])
def test_the_longest_texts_fit_the_reservation(datatype: str) -> None:
    extremes = {
        "BOOL": np.zeros(5000, dtype=np.bool_),
        "UINT64": np.full(5000, 2**64 - 1, dtype=np.uint64),
        "INT8": np.full(5000, -128, dtype=np.int8),
        "INT64": np.full(5000, -(2**63), dtype=np.int64),
        "FP16": np.full(5000, -0.00012344, dtype=np.float16),
        "FP32": np.full(5000, -1234567900000000.0, dtype=np.float32),
        "FP64": np.full(5000, -2.2250738585072014e-308),
    }
    array = extremes[datatype]
    data = json.loads(text_of(Tensor.from_numpy("x", array)))["outputs"][0]["data"]
    assert np.array(data, dtype=array.dtype).tolist() == array.tolist()


def test_what_is_written_is_read_back() -> None:
    source = np.random.default_rng(7)
    for dtype in ("bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"):
        array = np.frombuffer(source.bytes(8000), dtype="u1" if dtype == "bool" else dtype)
        array = array > 127 if dtype == "bool" else array
        tensor = Tensor.from_numpy("x", array)
        body = '{"inputs":' + text_of(tensor).split('"outputs":')[1]
        back = reader.decode(body.encode()).inputs[0]
        if dtype.startswith("f"):
            nan = np.isnan(array)
            assert np.isnan(back.numpy()[nan]).all()
            assert back.numpy()[~nan].tobytes() == array[~nan].tobytes()
        else:
            assert bytes(back) == bytes(tensor)
