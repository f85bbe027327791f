"""Body -> InferRequest: what is read, and with which sentence the rest is refused."""

from __future__ import annotations

import base64
import itertools
import json
import os
import resource
import struct
from typing import Any

import numpy as np
import pytest

from fastinfer.base import limits
from fastinfer.base.errors import ApiError
from fastinfer.codec import decode as codec
from fastinfer.native.executor import Executor
from fastinfer.tensor.message import InferRequest


def body_of(*inputs: dict[str, Any], **members: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **members}).encode()


def tensor(datatype: str, shape: list[int], data: Any, **members: Any) -> dict[str, Any]:
    return {"name": "x", "shape": shape, "datatype": datatype, "data": data, **members}


def one(datatype: str, shape: list[int], data: Any) -> Any:
    return codec.decode(body_of(tensor(datatype, shape, data))).inputs[0]


def refusal(body: bytes | str, **arguments: Any) -> str:
    raw = body if isinstance(body, bytes) else body.encode()
    with pytest.raises(ApiError) as raised:
        codec.decode(raw, **arguments)
    assert raised.value.status == 400
    job_raised = None
    try:
        job = codec.DecodeJob(raw, **arguments)
        job.run()
        job.result()
    except ApiError as error:
        job_raised = error.message
    assert job_raised == raised.value.message
    return raised.value.message


# --- What is read ----------------------------------------------------------------------------------------------------


def test_a_whole_request() -> None:
    body = b"""{"id":"42","parameters":{"timeout":1500,"priority":2,"binary_data_output":true,"else":{"deep":[1,null]}},
      "inputs":[{"name":"image","shape":[1,2,2],"datatype":"FP32","parameters":{"content_type":"np"},"data":[1,2.5,-3e2,4]},
                {"name":"text","shape":[2],"datatype":"BYTES","data":["a","\\u00e9\\ud83d\\ude00"]}],
      "outputs":[{"name":"scores","parameters":{"binary_data":false,"classification":3}},{"name":"other"}]} """
    request = codec.decode(body)
    assert isinstance(request, InferRequest)
    assert (request.id, request.timeout_us, request.priority) == (b"42", 1500, 2)
    assert request.binary_output
    assert not request.raw
    image, text = request.inputs
    assert (image.name, image.datatype, image.shape) == ("image", "FP32", (1, 2, 2))
    assert image.numpy().tolist() == [[[1, 2.5], [-300, 4]]]
    assert text.numpy().tolist() == [b"a", "é😀".encode()]
    assert [(o.name, o.binary, o.classification) for o in request.outputs] == [("scores", 0, 3), ("other", -1, 0)]


def test_what_was_not_given_has_its_default() -> None:
    request = codec.decode(b'{"inputs":[],"outputs":[],"unknown":{"a":[{"b":"\\n"}]},"id":""}')
    assert (request.id, request.inputs, request.outputs) == (b"", [], [])
    assert (request.timeout_us, request.priority, request.binary_output) == (0, 0, False)


def test_keys_come_in_any_order() -> None:
    members = ['"name":"x"', '"shape":[2,2]', '"datatype":"INT16"', '"data":[[1,2],[3,4]]', '"extra":"[1]"']
    for order in itertools.permutations(members):
        request = codec.decode(f'{{"inputs":[{{{",".join(order)}}}]}}'.encode())
        assert request.inputs[0].numpy().tolist() == [[1, 2], [3, 4]]
    outer = ['"id":"a"', '"outputs":[{"name":"o"}]', '"parameters":{"priority":1}', '"inputss":[1]']
    outer.append('"inputs":[{"name":"x","data":[7],"shape":[1],"datatype":"UINT8"}]')
    for order in itertools.permutations(outer):
        request = codec.decode(("{" + ", ".join(order) + "}").encode())
        assert (request.id, request.priority, request.outputs[0].name) == (b"a", 1, "o")
        assert request.inputs[0].numpy().tolist() == [7]


def test_keys_may_be_escaped() -> None:
    body = '{"\\u0069nputs":[{"n\\u0061me":"x\\u0000","\\u0073hape":[1],"datatype":"\\u0046P32","d\\u0061ta":[1]}]}'
    found = codec.decode(body.encode()).inputs[0]
    assert (found.name, found.datatype) == ("x\x00", "FP32")
    assert "'id' is given twice" in refusal('{"id":"","\\u0069d":"","inputs":[]}')


@pytest.mark.parametrize("shape", [[], [0], [1], [6], [2, 3], [1, 6, 1], [2, 0, 3], [0, 2], [1] * 16, [3, 1, 2]])
def test_data_is_flat_or_nested(shape: list[int]) -> None:
    array = np.arange(np.prod(shape, dtype=int), dtype=np.int32).reshape(shape)
    for data in (array.tolist() if shape else [0], array.reshape(-1).tolist()):
        found = one("INT32", shape, data)
        assert found.shape == tuple(shape)
        assert found.numpy().tolist() == array.tolist()
    strings = np.array([f"s{i}" for i in range(array.size)], dtype=object).reshape(shape)
    if shape != [0]:
        for data in (strings.tolist() if shape else ["s0"], strings.reshape(-1).tolist()):
            got = one("BYTES", shape, data).numpy()
            assert got.shape == tuple(shape)
            assert [e.decode() for e in got.reshape(-1)] == strings.reshape(-1).tolist()


def test_nested_data_in_its_awkward_places() -> None:
    data = "[ [ [1 ,2 ] , [ 3,4]\n] ,\t[[5,6],[7,8]]]"
    text = f'{{"inputs":[{{"data": {data} ,"name":"x","shape":[2,2,2],"datatype":"FP16"}}]}}'
    assert codec.decode(text.encode()).inputs[0].numpy().tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    big = np.arange(30_000, dtype=np.uint32).reshape(100, 100, 3)
    assert one("UINT32", [100, 100, 3], big.tolist()).numpy().tolist() == big.tolist()


def test_strings_keep_every_byte() -> None:
    cases = ["", "\x00", "a\x00b", '"\\/\b\f\n\r\t', "é", "€", "😀", "\u2028", "x" * 100, "\\u", "é" * 5000, "[1]"]
    for ascii_only in (True, False):
        body = json.dumps({"inputs": [tensor("BYTES", [len(cases)], cases)]}, ensure_ascii=ascii_only).encode()
        assert codec.decode(body).inputs[0].numpy().tolist() == [c.encode() for c in cases]
        late = json.dumps({"inputs": [dict(reversed(tensor("BYTES", [len(cases)], cases).items()))]}).encode()
        assert codec.decode(late).inputs[0].numpy().tolist() == [c.encode() for c in cases]


def test_one_string_with_its_length_as_shape_is_one_element() -> None:
    for text in ("hello", "é", "", "x" * 5000):
        found = one("BYTES", [len(text.encode())], [text])
        assert (found.shape, found.numpy().tolist()) == ((1,), [text.encode()])
    assert one("BYTES", [1], ["h"]).shape == (1,)
    assert one("BYTES", [1], ["hello"]).shape == (1,)
    for shape in ([4], [6], [5, 1], [1, 5]):
        assert "1 element, but the shape" in refusal(body_of(tensor("BYTES", shape, ["hello"])))
    assert "2 elements, but the shape [5] holds 5" in refusal(body_of(tensor("BYTES", [5], ["hello", "x"])))


def test_the_memory_is_the_tensors_own() -> None:
    body = bytearray(body_of(tensor("UINT8", [3], [1, 2, 3])))
    found = codec.decode(body).inputs[0]
    body[:] = b"x" * len(body)
    assert found.numpy().tolist() == [1, 2, 3]


def test_a_job_reads_the_same() -> None:
    values = np.random.default_rng(1).standard_normal(50_000).astype(np.float32)
    body = body_of(tensor("FP32", [50_000], values.tolist()), tensor("BYTES", [1], ["x"], name="y"), id="7")
    job = codec.DecodeJob(body)
    job.run()
    request = job.result()
    assert request.inputs[0].numpy().tobytes() == values.tobytes()
    assert (request.inputs[1].name, request.id) == ("y", b"7")
    codec.DecodeJob(body)  # one that never runs leaves nothing behind
    codec.DecodeJob(body).run()


@pytest.mark.parametrize("count", [4095, 4096, 4097, 8192, 12_289])
def test_a_job_that_gives_way_reads_the_same(count: int) -> None:
    # It looks up after every 4,096 numbers; the loop always has something to do here.
    loop_fd, busy = os.pipe()
    executor = Executor(1, loop_fd)
    try:
        os.write(busy, b"x")
        for width, datatype in ((1, "FP32"), (8, "INT64")):
            values = [i % 1000 * width for i in range(count)]
            for shape, data in (([count], values), ([1, count], [values]), ([2, count], [values, values])):
                job = codec.DecodeJob(body_of(tensor(datatype, shape, data)))
                executor.submit(job)
                while len(executor):
                    executor.drain()
                assert job.result().inputs[0].numpy().tolist() == data
        for spoilt, place in ((values[:-1], f"{count - 1} elements"), ([*values, 1], "more elements")):
            assert place in refusal(body_of(tensor("FP32", [count], spoilt)))
        for at in (0, 4094, count - 1):
            spoilt = [*values[:at], "x", *values[at + 1 :]]
            assert f".data[{at}]" in refusal(body_of(tensor("FP32", [count], spoilt)))
    finally:
        executor.close()
        os.close(loop_fd)
        os.close(busy)


# --- Binary tensors --------------------------------------------------------------------------------------------------


def binary(datatype: str, shape: list[int], size: int, name: str = "x") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}


def with_raw(raw: bytes, *inputs: dict[str, Any]) -> tuple[bytes, int]:
    text = body_of(*inputs)
    return text + raw, len(text)


@pytest.mark.parametrize("stable", [True, False])
def test_binary_and_json_tensors_may_be_mixed(stable: bool) -> None:
    floats = np.arange(4, dtype=np.float32)
    strings = struct.pack("<I3sI", 3, b"a\x00\xff", 0)
    inputs = [binary("FP32", [2, 2], 16, "a"), tensor("INT8", [1], [5]), binary("BYTES", [2], len(strings), "c")]
    body, size = with_raw(floats.tobytes() + strings, *inputs)
    for whole in (body, bytearray(body), memoryview(body)):
        a, b, c = codec.decode(whole, size, stable=stable).inputs
        assert a.numpy().tolist() == [[0, 1], [2, 3]]
        assert b.numpy().tolist() == [5]
        assert c.numpy().tolist() == [b"a\x00\xff", b""]
        if isinstance(whole, bytes):
            assert (a.owner is whole) == stable
        assert b.owner is not whole
    job = codec.DecodeJob(body, size)
    job.run()
    assert job.result().inputs[0].owner is body


def test_a_view_keeps_the_body_from_changing_under_it() -> None:
    body, size = with_raw(b"\x01\x02", binary("UINT8", [2], 2))
    changing = bytearray(body)
    found = codec.decode(changing, size, stable=True).inputs[0]
    with pytest.raises(BufferError):
        changing.clear()
    assert bytes(found) == b"\x01\x02"
    copied = codec.decode(changing, size).inputs[0]
    del found
    changing.clear()
    assert bytes(copied) == b"\x01\x02"


def test_any_byte_but_zero_is_true() -> None:
    body, size = with_raw(b"\x00\x01\x02\xff", binary("BOOL", [4], 4))
    for stable in (True, False):
        assert bytes(codec.decode(body, size, stable=stable).inputs[0]) == b"\x00\x01\x01\x01"


def test_binary_sizes_add_up() -> None:
    def said(raw: bytes, *inputs: dict[str, Any]) -> str:
        body, size = with_raw(raw, *inputs)
        return refusal(body, json_size=size, model="M")

    assert said(b"x" * 60, binary("FP32", [16], 60)) == (
        "input byte size mismatch for input 'x' for model 'M'. Expected 64, got 60"
    )
    assert "Expected 36893488147419103232, got 4" in said(b"xxxx", binary("FP64", [2**62], 4))
    assert "Expected 0, got 4" in said(b"xxxx", binary("FP64", [0, 2**62], 4))
    assert said(b"xxxxx", binary("FP32", [1], 4)) == "unexpected additional input data for model 'M'"
    assert said(b"x", tensor("UINT8", [1], [1])) == "unexpected additional input data for model 'M'"
    past_the_end = "inputs[0].parameters.binary_data_size reaches past the end of the body"
    assert said(b"xxx", binary("FP32", [1], 4)) == past_the_end
    assert "past the end" in said(b"x" * 4, binary("FP32", [1], 4, "a"), binary("UINT8", [2**62], 2**62, "b"))
    bad_strings = [b"\x01", b"\x05\x00\x00\x00abcd", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00\x01\x00\x00"]
    for raw in bad_strings:
        assert "BYTES element" in said(raw, binary("BYTES", [1], len(raw)))
    raw = struct.pack("<I1sI", 1, b"a", 0)
    assert said(raw, binary("BYTES", [3], len(raw))) == "inputs[0]: 2 elements, but the shape [3] holds 3"


def test_either_data_or_binary_data_size() -> None:
    both = {**binary("UINT8", [1], 1), "data": [1]}
    body, size = with_raw(b"x", both)
    assert "'data' and 'binary_data_size' are both given" in refusal(body, json_size=size)
    assert "Inference-Header-Content-Length" in refusal(body_of(binary("UINT8", [1], 1)))
    for value in (-1, 1.5, "1", True, [], 2**63):
        wrong = {**binary("UINT8", [1], 1), "parameters": {"binary_data_size": value}}
        assert "inputs[0].parameters.binary_data_size: " in refusal(body_of(wrong), json_size=len(body_of(wrong)))


def test_the_json_ends_where_the_header_says() -> None:
    body, size = with_raw(b"ab", binary("UINT8", [2], 2))
    for wrong in (size - 1, size + 1):
        refusal(body, json_size=wrong)
    refusal(body, json_size=len(body) + 1)
    assert codec.decode(body[:size].replace(b"2", b"0") + b"", size).inputs[0].shape == (0,)


def test_a_raw_request_is_all_bytes() -> None:
    for stable in (True, False):
        request = codec.decode(b"\x00\xff{", 0, stable=stable)
        assert request.raw
        (only,) = request.inputs
        assert (only.name, only.datatype, only.shape, bytes(only)) == ("", "UINT8", (3,), b"\x00\xff{")
    assert codec.decode(b"", 0).inputs[0].shape == (0,)
    job = codec.DecodeJob(b"abc", 0)
    job.run()
    request = job.result()
    assert (bytes(request.inputs[0]), request.raw) == (b"abc", True)


# --- What is refused, and how it is said -----------------------------------------------------------------------------

X = '"name":"x","shape":[2],"datatype":"UINT8"'

SENTENCES = {
    "": "byte 0: expected '{'; the body is empty, and an inference request is JSON: "
    '{"inputs":[{"name":...,"shape":...,"datatype":...,"data":...}]}',
    '{"instances":[[1,2]]}': "'inputs' is missing: 'instances' is of the V1 protocol, and this is V2; an input has "
    "name, shape, datatype and data",
    "[]": "byte 0: expected '{'",
    "{": "byte 1: expected a string as key",
    '{"inputs":[]': "byte 12: expected ',' or '}'",
    '{"inputs":[]}x': "byte 13: expected nothing after the request",
    '{"inputs":[],}': "byte 13: expected a string as key",
    '{"inputs" []}': "byte 10: expected ':'",
    "\ufeff{}": "byte 0: expected '{'",
    "{}": "'inputs' is missing",
    '{"inputs":{}}': "'inputs' must be an array",
    '{"inputs":null}': "'inputs' must be an array",
    '{"inputs":[],"outputs":{}}': "'outputs' must be an array",
    '{"inputs":[],"outputs":[null]}': "outputs[0] must be an object",
    '{"inputs":[null]}': "inputs[0] must be an object",
    '{"inputs":[],"id":null,"id":"a"}': "'id' is given twice",
    '{"inputs":[],"parameters":{},"parameters":null}': "'parameters' is given twice",
    '{"inputs":[],"parameters":{"timeout":null,"timeout":1}}': "parameters.timeout is given twice",
    '{"inputs":[],"id":nul}': "'id' must be a string",
    '{"inputs":[],"id":nullx}': "byte 22: expected ',' or '}'",
    '{"inputs":[{"name":null}]}': "inputs[0].name must be a string",
    '{"inputs":[{"shape":null}]}': "inputs[0].shape must be an array",
    '{"inputs":[{"shape":[null]}]}': "inputs[0].shape[0]: null is not an integer",
    '{"inputs":[{"datatype":null}]}': "inputs[0].datatype must be a string",
    f'{{"inputs":[{{{X},"data":null}}]}}': "inputs[0]: 'data' is missing",
    f'{{"inputs":[{{{X},"data":null,"parameters":{{"binary_data_size":null}}}}]}}': "inputs[0]: 'data' is missing",
    f'{{"inputs":[{{{X},"data":null,"data":[1,2]}}]}}': "inputs[0].data is given twice",
    f'{{"inputs":[{{{X},"data":[1,null]}}]}}': "inputs[0].data[1]: null is not an integer",
    '{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[null]}]}': "inputs[0].data[0]: null is not a number",
    '{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":[null]}]}': "inputs[0].data[0]: null is not a string",
    '{"inputs":[],"outputs":[{"name":null}]}': "outputs[0].name must be a string",
    '{"inputs":[],"parameters":[]}': "'parameters' must be an object",
    '{"inputs":[],"id":7}': "'id' must be a string",
    '{"inputs":[],"inputs":[]}': "'inputs' is given twice",
    '{"inputs":[1]}': "inputs[0] must be an object",
    '{"inputs":[{}]}': "inputs[0]: 'name' is missing",
    '{"inputs":[{"name":"x"}]}': "inputs[0]: 'shape' is missing",
    '{"inputs":[{"name":"x","shape":[]}]}': "inputs[0]: 'datatype' is missing",
    f'{{"inputs":[{{{X}}}]}}': "inputs[0]: 'data' is missing",
    '{"inputs":[{"name":1}]}': "inputs[0].name must be a string",
    '{"inputs":[{"name":"x","name":"x"}]}': "inputs[0].name is given twice",
    '{"inputs":[{"shape":2}]}': "inputs[0].shape must be an array",
    '{"inputs":[{"shape":[1,-5]}]}': "inputs[0].shape[1]: -5 is negative",
    '{"inputs":[{"shape":[true]}]}': "inputs[0].shape[0]: true is not an integer",
    '{"inputs":[{"shape":[1e400]}]}': "inputs[0].shape[0]: 1e400 is not an integer",
    '{"inputs":[{"shape":[9223372036854775808]}]}': "inputs[0].shape[0]: 9223372036854775808 is out of range",
    '{"inputs":[{"shape":["1"]}]}': 'inputs[0].shape[0]: "1" is not an integer',
    '{"inputs":[{"shape":[16,1152921504606846978]}]}': "inputs[0].shape has more elements than 64 bits can count",
    '{"inputs":[{"datatype":"FP8"}]}': 'inputs[0].datatype: "FP8" is not a datatype',
    '{"inputs":[{"datatype":"fp32"}]}': 'inputs[0].datatype: "fp32" is not a datatype; use FP32',
    '{"inputs":[{"datatype":" FP32 "}]}': 'inputs[0].datatype: " FP32 " is not a datatype',
    '{"inputs":[{"datatype":""}]}': 'inputs[0].datatype: "" is not a datatype',
    '{"inputs":[{"datatype":1}]}': "inputs[0].datatype must be a string",
    '{"inputs":[{"parameters":1}]}': "inputs[0].parameters must be an object",
    '{"inputs":[{"data":{}}]}': "inputs[0].data must be an array",
    '{"inputs":[{"name":"A","datatype":"FP32","shape":[2],"data":5}]}': "inputs[0].data must be an array",
    '{"inputs":[{"data":5,"name":"A","datatype":"FP32","shape":[2]}]}': "inputs[0].data must be an array",
    '{"inputs":[{"name":"A","datatype":"INT8","shape":[],"data":128}]}': "inputs[0].data: 128 is out of range for INT8",
    '{"inputs":[{"name":"A","datatype":"INT8","shape":[1],"data":"5"}]}': 'inputs[0].data: "5" is not an integer',
    '{"inputs":[{"name":"A","datatype":"BYTES","shape":[1],"data":5}]}': "inputs[0].data: 5 is not a string",
    f'{{"inputs":[{{{X},"data":"ab"}}]}}': "inputs[0].data must be an array",
    f'{{"inputs":[{{{X},"data":[1,300]}}]}}': "inputs[0].data[1]: 300 is out of range for UINT8",
    f'{{"inputs":[{{{X},"data":[1.5,3]}}]}}': "inputs[0].data[0]: 1.5 is not an integer",
    f'{{"inputs":[{{{X},"data":[1,"2"]}}]}}': 'inputs[0].data[1]: "2" is not an integer',
    f'{{"inputs":[{{{X},"data":[1]}}]}}': "inputs[0].data: 1 element, but the shape [2] holds 2",
    f'{{"inputs":[{{{X},"data":[1,2,3]}}]}}': "inputs[0].data: more elements than the 2 of the shape [2]",
    f'{{"inputs":[{{{X},"data":[[1,2]]}}]}}': "inputs[0].data is not nested like the shape",
    f'{{"inputs":[{{{X},"data":[1,]}}]}}': "byte 64: expected a value",
    f'{{"inputs":[{{{X},"data":[1 2]}}]}}': "byte 64: expected ',' or ']'",
    '{"inputs":[{"name":"x","shape":[2,2],"datatype":"INT8","data":[[1,2],[3]]}]}': (
        "inputs[0].data: an array of 1 element where the shape [2,2] asks for 2"
    ),
    '{"inputs":[{"name":"x","shape":[2],"datatype":"BYTES","data":["a",1]}]}': "inputs[0].data[1]: 1 is not a string",
    '{"inputs":[{"name":"x","shape":[1],"datatype":"BOOL","data":[1]}]}': "inputs[0].data[0]: 1 is not true or false",
    '{"inputs":[{"parameters":{"shared_memory_region":"r"}}]}': "inputs[0].parameters: shared memory is not supported",
    '{"inputs":[],"outputs":[{}]}': "outputs[0]: 'name' is missing",
    '{"inputs":[],"outputs":[{"name":"a"},{"name":"a"}]}': "output 'a' is given twice",
    '{"inputs":[],"outputs":[{"parameters":{"binary_data":1}}]}': (
        "outputs[0].parameters.binary_data: 1 is not true or false"
    ),
    '{"inputs":[],"outputs":[{"parameters":{"classification":-1}}]}': (
        "outputs[0].parameters.classification: -1 is not a positive integer"
    ),
    '{"inputs":[],"outputs":[{"parameters":{"classification":0}}]}': (
        "outputs[0].parameters.classification: 0 is not a positive integer"
    ),
    '{"inputs":[],"outputs":[{"parameters":{"shared_memory_offset":0}}]}': (
        "outputs[0].parameters: shared memory is not supported"
    ),
    '{"inputs":[],"parameters":{"timeout":-1}}': "parameters.timeout: -1 is not a non-negative integer",
    '{"inputs":[],"parameters":{"timeout":"5"}}': 'parameters.timeout: "5" is not a non-negative integer',
    '{"inputs":[],"parameters":{"priority":1.0}}': "parameters.priority: 1.0 is not a non-negative integer",
    '{"inputs":[],"parameters":{"priority":1e99}}': "parameters.priority: 1e99 is not a non-negative integer",
    '{"inputs":[],"parameters":{"timeout":99999999999999999999}}': (
        "parameters.timeout: 99999999999999999999 is too large"
    ),
    '{"inputs":[],"parameters":{"sequence_id":7}}': "parameters.sequence_id: 7 is refused: sequences are not supported",
    '{"inputs":[],"parameters":{"sequence_end":0,"sequence_end":0}}': "parameters.sequence_end is given twice",
    '{"inputs":[],"parameters":{"shared_memory_region":"r"}}': "parameters: shared memory is not supported",
    '{"inputs":[],"parameters":{"shared_memory_byte_size":0}}': "parameters: shared memory is not supported",
    '{"inputs":[],"parameters":{"binary_data_output":"yes"}}': (
        'parameters.binary_data_output: "yes" is not true or false'
    ),
}


@pytest.mark.parametrize("body", SENTENCES)
def test_the_sentence_names_the_place(body: str) -> None:
    assert refusal(body) == SENTENCES[body]


def test_sequences_may_be_named_when_they_are_not_used() -> None:
    parameters = '{"sequence_id":0,"sequence_start":false,"sequence_end":null,"other":null}'
    codec.decode(f'{{"inputs":[],"parameters":{parameters}}}'.encode())
    codec.decode(b'{"inputs":[],"parameters":{"sequence_id":""}}')
    for value in ("true", "1", '"a"', "nil", "0.0", "[]"):
        assert "sequence" in refusal(f'{{"inputs":[],"parameters":{{"sequence_start":{value}}}}}')


def test_null_is_as_if_the_key_were_not_there() -> None:
    body = b"""{"id":null,"outputs":null,"parameters":{"timeout":null,"priority":null,"binary_data_output":null,
      "sequence_id":null,"sequence_start":null,"sequence_end":null,"shared_memory_region":null},"else":null,
      "inputs":[{"name":"x","shape":[2],"datatype":"INT8","data":[1,2],"else":null,"parameters":{"content_type":null,
      "binary_data_size":null,"shared_memory_offset":null}},
      {"name":"y","shape":[1],"datatype":"INT8","parameters":null,"data":[3]}]}"""
    request = codec.decode(body)
    assert (request.id, request.outputs, request.timeout_us, request.priority) == (b"", [], 0, 0)
    assert not request.binary_output
    assert [each.numpy().tolist() for each in request.inputs] == [[1, 2], [3]]
    body = b"""{"parameters":null,"inputs":[],"outputs":[{"name":"a","parameters":null},
      {"name":"b","parameters":{"binary_data":null,"classification":null,"shared_memory_region":null}}]}"""
    for output in codec.decode(body).outputs:
        assert (output.binary, output.classification) == (-1, 0)
    for members in ({"data": None}, {}):
        body, size = with_raw(b"ab", {**binary("UINT8", [2], 2), **members})
        assert bytes(codec.decode(body, size).inputs[0]) == b"ab"


FLOATS = {"FP16": 0x7E00, "BF16": 0x7FC0, "FP32": 0x7FC00000, "FP64": 0x7FF8000000000000}


@pytest.mark.parametrize("datatype", FLOATS)
def test_null_is_nan_where_that_is_asked_for(datatype: str) -> None:
    def bits(shape: list[int], data: str, width: int) -> list[int]:
        body = f'{{"inputs":[{{"data":{data},"name":"x","shape":{shape},"datatype":"{datatype}"}}]}}'.encode()
        job = codec.DecodeJob(body, nullable=True)
        job.run()
        found = codec.decode(body, nullable=True, width=width).inputs[0]
        assert bytes(job.result().inputs[0]) == bytes(found)
        array = found.numpy().reshape(-1)
        return list(array.view(f"u{array.itemsize}"))

    nan = FLOATS[datatype]
    for width in (0, 256, 512):
        assert bits([3], "[null,NaN , null ]", width) == [nan] * 3
        assert bits([], "[null]", width) == [nan]
        long = ["null" if i % 7 in (1, 5) else "0" for i in range(5000)]
        expected = [nan if each == "null" else 0 for each in long]
        assert bits([5000], f"[{','.join(long)}]", width) == expected
        rows = [f"[{', '.join(long[i : i + 50])}]" for i in range(0, 5000, 50)]
        assert bits([100, 50], f"[{', '.join(rows)}]", width) == expected
        assert bits([60_000], f"[{','.join(['null'] * 60_000)}]", width) == [nan] * 60_000


def test_null_is_nothing_else() -> None:
    for datatype in ("INT8", "UINT64", "BOOL", "BYTES"):
        assert "inputs[0].data[0]: null is not" in refusal(body_of(tensor(datatype, [1], [None])), nullable=True)
    for data in ("[nul]", "[nulll]", "[null1]", "[1null]", "[-null]", "[null null]", "[NULL]", "[[null],null]", "null"):
        refusal(f'{{"inputs":[{{"name":"x","shape":[1],"datatype":"FP32","data":{data}}}]}}', nullable=True)
    assert "null is not a number" in refusal(body_of(tensor("FP64", [2], [1, None])))


# --- Content types ---------------------------------------------------------------------------------------------------

ELEMENTS = [b"", b"a", b"ab", b"abc", b"\x00\xff\xfe", bytes(range(256)), b"x" * 100_000]


def text_of(element: bytes) -> str:
    return base64.b64encode(element).decode()


@pytest.mark.parametrize("order", [*itertools.permutations(["shape", "datatype", "data", "parameters"])])
def test_base64_is_decoded_in_any_order_of_keys(order: tuple[str, ...]) -> None:
    entry = {
        "shape": [len(ELEMENTS)],
        "datatype": "BYTES",
        "data": [text_of(each) for each in ELEMENTS],
        "parameters": {"content_type": "base64"},
    }
    body = body_of({"name": "x"} | {key: entry[key] for key in order})
    assert codec.decode(body).inputs[0].numpy().tolist() == ELEMENTS
    job = codec.DecodeJob(body)
    job.run()
    assert job.result().inputs[0].numpy().tolist() == ELEMENTS
    kept = codec.decode(body, keeps_base64=True).inputs[0].numpy().tolist()
    assert kept == [text_of(each).encode() for each in ELEMENTS]


def base64_body(shape: list[int], data: Any, **parameters: Any) -> bytes:
    return body_of(tensor("BYTES", shape, data, parameters={"content_type": "base64", **parameters}))


def test_base64_in_every_form_of_data() -> None:
    nested = [[["QQ=="], ["QUI="]], [["QUJD"], [""]]]
    assert codec.decode(base64_body([2, 2, 1], nested)).inputs[0].numpy().tolist() == [
        [[b"A"], [b"AB"]],
        [[b"ABC"], [b""]],
    ]
    escaped = base64_body([1], ["Q"]).replace(b'"Q"', b'"\\u0051\\/+="')
    assert codec.decode(escaped).inputs[0].numpy().tolist() == [base64.b64decode("Q/+=")]
    key = (
        base64_body([1], ["QQ=="])
        .replace(b"content_type", b"content\\u005ftype")
        .replace(b'"base64"', b'"base6\\u0034"')
    )
    assert codec.decode(key).inputs[0].numpy().tolist() == [b"A"]
    # AMD's form: the length of the text as the shape.
    (only,) = codec.decode(base64_body([8], ["QUJDRA=="])).inputs
    assert (only.shape, only.numpy().tolist()) == ((1,), [b"ABCD"])
    assert "holds 4" in refusal(base64_body([4], ["QUJDRA=="]))
    assert codec.decode(base64_body([0, 3], [])).inputs[0].shape == (0, 3)
    many = [text_of(str(i).encode()) for i in range(200_000)]
    found = codec.decode(base64_body([200_000], many)).inputs[0].numpy().tolist()
    assert found == [str(i).encode() for i in range(200_000)]


NOT_BASE64 = [
    "Q",
    "QQ",
    "QQ=",
    "Q===",
    "====",
    "QQ==QQ==",
    "QQ=Q",
    "QUJD\n",
    "QU JD",
    "QUJ-",
    "QUJ_",
    "QUJ\u00e9",
    "QQ\0=",
]


@pytest.mark.parametrize("text", NOT_BASE64)
def test_text_that_is_not_base64(text: str) -> None:
    said = refusal(base64_body([4], ["QUJD", "QQ==", text, "QUJD"]))
    assert said.startswith("inputs[0].data[2]: ")
    assert said.endswith(" is not base64 text")
    assert refusal(base64_body([2, 2], [["QUJD", ""], ["QQ==", text]])).startswith("inputs[0].data[3]: ")


def test_what_is_not_base64_is_quoted() -> None:
    for size in (37, 38, 39, 40, 41, 80, 80_000):
        text = ("QUJD" * 20_000)[: size - 1] + "*"
        quoted = f'"{text}"' if size <= 38 else f'"{text[:39]}...'
        assert refusal(base64_body([1], [text])) == f"inputs[0].data[0]: {quoted} is not base64 text"
    for text in ("no text!", "Q", " QQ==", "QQ== ", " "):
        assert refusal(base64_body([1], [text])) == f'inputs[0].data[0]: "{text}" is not base64 text'
        assert refusal(base64_body([2], ["QUJD", text])) == f'inputs[0].data[1]: "{text}" is not base64 text'


def test_other_content_types() -> None:
    names = "str np nplist pd pd_json datetime raw dict hf hg_str hg_json hg_jsonlist hg_conversation pillow_image"
    for name in (*names.split(), "", None):
        body = body_of(tensor("BYTES", [1], ["QQ=="], parameters={"content_type": name}))
        assert codec.decode(body).inputs[0].numpy().tolist() == [b"QQ=="]
    for name in ("base64", "unknown", 7, ["base64"], {"a": 1}, None, True):
        body = body_of(tensor("INT8", [1], [5], parameters={"content_type": name}))
        assert codec.decode(body).inputs[0].numpy().tolist() == [5]
        text = body_of(tensor("BYTES", [1], ["QQ=="]), parameters={"content_type": name})
        text = text[:-1] + b',"outputs":[{"name":"y","parameters":{"content_type":"base64"}}]}'
        assert codec.decode(text).inputs[0].numpy().tolist() == [b"QQ=="]

    def said(value: Any) -> str:
        return refusal(body_of(tensor("BYTES", [1], ["QQ=="], parameters={"content_type": value})))

    for name in ("Base64", "image/png", "base64 "):
        assert said(name) == f'inputs[0].parameters.content_type: "{name}" is not a content type'
    for value in (7, True, ["base64"], {}, 1.5):
        assert said(value) == "inputs[0].parameters.content_type must be a string"
    twice = b'{"inputs":[{"parameters":{"content_type":null,"content_type":"base64"}}]}'
    assert refusal(twice) == "inputs[0].parameters.content_type is given twice"
    both = {**binary("BYTES", [1], 8), "parameters": {"binary_data_size": 8, "content_type": "base64"}}
    body, size = with_raw(b"\x04\x00\x00\x00QQ==", both)
    assert refusal(body, json_size=size) == "inputs[0].parameters.content_type is base64, which binary data is not"
    both["parameters"]["content_type"] = "str"
    body, size = with_raw(b"\x04\x00\x00\x00QQ==", both)
    assert codec.decode(body, size).inputs[0].numpy().tolist() == [b"QQ=="]


def test_base64_takes_no_more_memory_than_its_text() -> None:
    body = base64_body([1], [text_of(bytes(30 << 20))])
    codec.decode(body)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert codec.decode(body).inputs[0].nbytes == 4 + (30 << 20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 << 10


def test_what_a_client_wrote_is_clipped_and_printable() -> None:
    long = "9" * 5000
    said = refusal(f'{{"inputs":[{{{X},"data":[{long}]}}]}}')
    assert said == f"inputs[0].data[0]: {'9' * 40}... is out of range for UINT8"
    said = refusal('{"inputs":[{"datatype":"\\u0000\x7f\u2028é' + "é" * 100 + '"}]}')
    assert said.isprintable()
    assert len(said.encode()) < 120
    assert refusal(b'{"inputs":[{"shape":[\xff\xfe\x00\x01]}]}').isprintable()


def test_repeated_names() -> None:
    outputs = [{"name": "x"}, {"name": "x"}]
    assert refusal(json.dumps({"inputs": [], "outputs": outputs})) == "output 'x' is given twice"
    twice = codec.decode(body_of(tensor("INT8", [1], [1]), tensor("INT8", [1], [1])))
    assert [each.name for each in twice.inputs] == ["x", "x"]  # the model's signature tells whether that may be
    many = [tensor("INT8", [1], [1], name=str(i)) for i in range(limits.MAX_INPUTS)]
    assert len(codec.decode(body_of(*many)).inputs) == limits.MAX_INPUTS
    assert refusal(body_of(*many, many[0])) == "'inputs' has more than 1024 entries"
    outputs = [{"name": str(i)} for i in range(limits.MAX_INPUTS + 1)]
    assert refusal(json.dumps({"inputs": [], "outputs": outputs})) == "'outputs' has more than 1024 entries"


def test_the_limits_are_those_of_the_limits_module() -> None:
    assert len(one("INT8", [1] * limits.MAX_RANK, [1]).shape) == limits.MAX_RANK
    assert "more than 16 dimensions" in refusal(body_of(tensor("INT8", [1] * (limits.MAX_RANK + 1), [1])))
    name, request_id = "n" * limits.MAX_NAME_BYTES, "i" * limits.MAX_ID_BYTES
    most = codec.decode(body_of(tensor("INT8", [1], [1], name=name), id=request_id, outputs=[{"name": name}]))
    assert (most.inputs[0].name, most.outputs[0].name, most.id) == (name, name, request_id.encode())
    assert refusal(body_of(tensor("INT8", [1], [1], name=name + "n"))) == "inputs[0].name is longer than 4 KiB"
    assert refusal(body_of(tensor(name + "n", [1], [1]))) == "inputs[0].datatype is longer than 4 KiB"
    assert refusal(body_of(outputs=[{"name": name + "n"}])) == "outputs[0].name is longer than 4 KiB"
    assert refusal(body_of(id=request_id + "i")) == "'id' is longer than 1 MiB"
    deep = limits.MAX_JSON_DEPTH - 1
    codec.decode(('{"inputs":[],"a":' + "[" * deep + "]" * deep + "}").encode())
    assert "nested deeper than 100 levels" in refusal('{"inputs":[],"a":' + "[" * (deep + 1) + "]" * (deep + 1) + "}")
