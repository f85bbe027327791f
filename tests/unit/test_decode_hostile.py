"""Whatever arrives, the decoder answers with a request or an ApiError, and agrees with the oracle on which."""

from __future__ import annotations

import base64
import json
import random
import resource
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinfer.base.errors import ApiError
from fastinfer.codec import decode as codec
from fastinfer.tensor.message import InferRequest
from tests import reference

VALID = (
    b'{"id":"a\\u00e9\\ud83d\\ude00\xc3\xa9","parameters":{"timeout":15,"priority":0,"binary_data_output":false,'
    b'"sequence_id":0,"sequence_end":null,"shared_memory_x":null,"q":[{"a":[1.5e-3,null,true]},"s"]},"inputs":['
    b'{"name":"f","shape":[2,2],"datatype":"FP32","data":[[1.5,-2e-3],[0.1,NaN]]},'
    b'{"data":["x\\n","\xe2\x82\xac"],"name":"b","datatype":"BYTES","shape":[2],"parameters":{"z":{}}},'
    b'{"name":"c","shape":[2,1],"datatype":"BYTES","data":[["QQ=="],["\\u0051/+="]],'
    b'"parameters":{"content_type":"base64","binary_data_size":null}},'
    b'{"shape":[3],"datatype":"UINT8","data":[1, 25,255],"name":"u"},'
    b'{"name":"t","shape":[1],"datatype":"BOOL","data":[true],"parameters":null}'
    b'],"outputs":[{"name":"o","parameters":{"binary_data":true,"classification":2}},{"name":"p","data":[[]]},'
    b'{"name":"q","parameters":{"binary_data":null,"classification":null}}]}'
)


def outcome(body: bytes, **modes: bool) -> InferRequest | None:
    try:
        return codec.decode(body, **modes)
    except ApiError as error:
        assert error.status == 400
        assert error.message
        assert len(error.message.encode()) < 300
        assert error.message.isprintable()
        return None


def agree(body: bytes) -> None:
    """Ours and the oracle's reading of a body are the same, or both refuse it."""
    agree_in_mode(body)
    if b"null" in body or b"base64" in body:
        agree_in_mode(body, nullable=True)
        agree_in_mode(body, keeps_base64=True)


def agree_in_mode(body: bytes, **modes: bool) -> None:
    try:
        expected = reference.decode(body, **modes)
    except reference.Invalid:
        expected = None
    got = outcome(body, **modes)
    assert (got is None) == (expected is None), body
    if got is None or expected is None:
        return
    assert json.loads(b'"' + got.id + b'"') == expected.id
    assert (got.timeout_us, got.priority, got.binary_output) == (
        expected.timeout_us,
        expected.priority,
        expected.binary_output,
    )
    assert [(o.name, o.binary, o.classification) for o in got.outputs] == [
        (o.name, o.binary, o.classification) for o in expected.outputs
    ]
    assert [(t.name, t.datatype, list(t.shape)) for t in got.inputs] == [
        (t.name, t.datatype, t.shape) for t in expected.inputs
    ]
    for ours, theirs in zip(got.inputs, expected.inputs, strict=True):
        array = ours.numpy().reshape(-1)
        if ours.datatype in reference.FLOATS:
            array = array.view(f"u{array.itemsize}")
        assert array.tolist() == theirs.elements, body


def test_the_oracle_reads_the_valid_body() -> None:
    agree(VALID)
    assert outcome(VALID) is not None


def test_every_truncation_is_refused() -> None:
    for size in range(len(VALID)):
        assert outcome(VALID[:size]) is None, VALID[:size]
        with pytest.raises(ApiError):
            codec.decode(VALID, size) if size else codec.decode(VALID[:1], 1)


def test_every_single_byte_that_is_missing_doubled_or_changed() -> None:
    for at in range(len(VALID)):
        agree(VALID[:at] + VALID[at + 1 :])
        agree(VALID[:at] + VALID[at : at + 1] + VALID[at:])
        for other in b'"[]{},:0-.e\\ \x00\x1f\x80\xff':
            agree(VALID[:at] + bytes([other]) + VALID[at + 1 :])


def test_random_mutations() -> None:
    source = random.Random(8)
    pieces = rb'[ ] { } , : " \ \u \ud800 \udc00 1e5 - 0 null true NaN Infinity "data": "shape": [1]'.split(b" ")
    pieces += [b"\xed\xa0\x80", b"\xc0\x80", b"\xef\xbb\xbf", b"\t"]
    for _ in range(6000):
        body = bytearray(VALID)
        for _ in range(source.choice([1, 1, 1, 2, 3])):
            at = source.randrange(len(body))
            kind = source.randrange(4)
            if kind == 0:
                body[at] = source.randrange(256)
            elif kind == 1:
                body[at : at + source.randrange(4)] = source.choice(pieces)
            elif kind == 2:
                del body[at : at + source.randrange(1, 20)]
            else:
                start = source.randrange(len(body))
                body[at:at] = body[start : start + source.randrange(1, 40)]
        agree(bytes(body))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [
        "inputs",
        "outputs",
        "id",
        "parameters",
        "name",
        "shape",
        "datatype",
        "data",
        "timeout",
        "content_type",
        "binary_data",
        "priority",
        "x",
    ]
)
LIKE_A_REQUEST = st.recursive(
    st.sampled_from(
        [0, 1, 2, -1, 2**63, 1.5, True, None, "x", "FP32", "BYTES", "INT8", "BOOL", "base64", "QQ==", [], [1], [2, 2]]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=16,
)


@given(st.dictionaries(KEYS, JSON | LIKE_A_REQUEST, max_size=6))
@settings(max_examples=300, deadline=None)
def test_documents_that_look_like_requests(document: Any) -> None:
    agree(json.dumps(document).encode())


@given(
    st.fixed_dictionaries(
        {
            "name": st.text(max_size=5),
            "shape": st.lists(st.integers(-1, 3), max_size=3),
            "datatype": st.sampled_from([*reference.FLOATS, *reference.INTEGERS, "BOOL", "BYTES"]),
            "data": st.recursive(
                st.integers(-130, 260)
                | st.floats(width=16)
                | st.booleans()
                | st.none()
                | st.text(max_size=3)
                | st.binary(max_size=4).map(lambda each: base64.b64encode(each).decode()),
                lambda inner: st.lists(inner, max_size=3),
                max_leaves=9,
            ),
            "parameters": st.none()
            | st.fixed_dictionaries(
                {},
                optional={
                    "content_type": st.sampled_from(["base64", "base64", "np", "str", "pdf", "", None, 1, []]),
                    "binary_data_size": st.none(),
                },
            ),
        }
    ),
    st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_tensors_of_every_kind(tensor: dict[str, Any], ascii_only: bool) -> None:
    agree(json.dumps({"inputs": [tensor]}, ensure_ascii=ascii_only).encode())
    agree(json.dumps({"inputs": [dict(reversed(tensor.items()))]}, ensure_ascii=ascii_only, indent=1).encode())


# --- The classes of hostile input ------------------------------------------------------------------------------------

HEAD = b'{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","data":'
DEEP = 100_000


@pytest.mark.parametrize(
    "body",
    [
        HEAD + b"[" * DEEP,
        HEAD + b"[" * DEEP + b"1" + b"]" * DEEP + b"}]}",
        b'{"inputs":[{"data":' + b"[" * DEEP + b"]" * DEEP + b',"name":"x","shape":[2],"datatype":"INT8"}]}',
        b'{"inputs":[],"a":' + b"[" * DEEP + b"]" * DEEP + b"}",
        b'{"inputs":[],"a":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
        b"[" * DEEP,
        b'{"inputs":' * DEEP,
        b'{"inputs":[],"parameters":{"a":' + b"[{" * DEEP,
        b'{"inputs":[],"outputs":[{"name":"a","parameters":{"z":' + b"[" * DEEP + b"]" * DEEP + b"}}]}",
    ],
)
def test_depth_bombs(body: bytes) -> None:
    assert outcome(body) is None
    job = codec.DecodeJob(body)
    job.run()
    with pytest.raises(ApiError):
        job.result()


SHAPES = """
    [16,1152921504606846978] [9223372036854775808] [-5,-5] [1e400] [true] [null] ["2"] [2.0] [[2]] 2 {} [2,] [,2]
    [4611686018427387904] [2147483648] [4294967296,4294967296,4294967296,4294967296] [3037000500,3037000500] [0,-1]
    [9223372036854775807,2]
"""
ABSURD_SHAPES = [*SHAPES.split(), "[" + "1," * 63 + "2]", "[" + "1," * 99_999 + "2]"]


@pytest.mark.parametrize("shape", ABSURD_SHAPES)
@pytest.mark.parametrize("datatype", ["FP64", "BYTES", "BOOL"])
def test_absurd_shapes(shape: str, datatype: str) -> None:
    element = {"FP64": "1", "BYTES": '"abc"', "BOOL": "true"}[datatype]
    for data in (f"[{element},{element}]", f"[{element}]", "[]", f"[[{element}],[{element}]]"):
        for text in (
            f'{{"name":"x","shape":{shape},"datatype":"{datatype}","data":{data}}}',
            f'{{"data":{data},"name":"x","datatype":"{datatype}","shape":{shape}}}',
        ):
            assert outcome(f'{{"inputs":[{text}]}}'.encode()) is None


def test_a_shape_takes_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for datatype in ("FP64", "BYTES", "UINT8"):
        for shape in ("[2147483648]", "[4611686018427387904]", "[1000000,1000000]"):
            for data in ("[1]", "[]", "[[1]]", '["a"]', "[1,1," + "1," * 10_000 + "1]"):
                outcome(f'{{"inputs":[{{"name":"x","shape":{shape},"datatype":"{datatype}","data":{data}}}]}}'.encode())
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 32 * 1024


NOT_TEXT = rb"\ud800 \udc00 \ud800\ud800 \ud800x \udbff\u0041 \u12 \uZZZZ \x41".split()
NOT_TEXT += [b"\\", b"\n", b"\x00", b"\x1f"]
NOT_TEXT += b"\xc0\xaf|\xe0\x80\xaf|\xf0\x80\x80\xaf|\xed\xa0\x80|\xf4\x90\x80\x80".split(b"|")
NOT_TEXT += b"\xff|\x80|\xc3|\xe2\x82|\xf0\x9f\x98".split(b"|")
NOT_TEXT += [b"\xfe\xfe\xff\xff", b"\xf8\x88\x80\x80\x80"]


@pytest.mark.parametrize("text", NOT_TEXT)
def test_strings_that_are_not_text(text: bytes) -> None:
    for padding in (b"", b"abcdefgh" * 3):
        string = b'"' + padding + text + b'"'
        for body in (
            b'{"inputs":[],"id":' + string + b"}",
            b'{"inputs":[],"unknown":[' + string + b"]}",
            b'{"inputs":[],' + string + b":1}",
            b'{"inputs":[{"name":' + string + b',"shape":[1],"datatype":"INT8","data":[1]}]}',
            b'{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":[' + string + b"]}]}",
            b'{"inputs":[{"data":[' + string + b'],"name":"x","shape":[1],"datatype":"BYTES"}]}',
        ):
            assert outcome(body) is None
            agree(body)


def test_nul_in_a_name_is_kept() -> None:
    body = b'{"inputs":[{"name":"a\\u0000b","shape":[1],"datatype":"INT8","data":[1]}],"outputs":[{"name":"\\u0000"}]}'
    request = codec.decode(body)
    assert (request.inputs[0].name, request.outputs[0].name) == ("a\x00b", "\x00")


def test_many_keys() -> None:
    unknown = ",".join(f'"k{i % 7}":{i}' for i in range(100_000))
    assert outcome(("{" + unknown + ',"inputs":[]}').encode()) is not None
    for repeated in ('"id":""', '"inputs":[]', '"outputs":[]', '"parameters":{}'):
        assert outcome(("{" + ",".join([repeated] * 100_000) + "}").encode()) is None
    collisions = ",".join(['"\\u0000":1'] * 100_000)
    assert outcome(('{"inputs":[],"parameters":{' + collisions + "}}").encode()) is not None


def test_a_million_inputs() -> None:
    entry = '{"name":"a","shape":[1],"datatype":"INT8","data":[1]}'
    assert outcome(('{"inputs":[' + ",".join([entry] * 100_000) + "]}").encode()) is None
    assert outcome(('{"inputs":[' + ",".join(["{}"] * 1_000_000) + "]}").encode()) is None
    assert outcome(('{"inputs":[],"outputs":[' + ",".join(['{"name":"a"}'] * 1_000_000) + "]}").encode()) is None


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7"])
def test_other_encodings(encoding: str) -> None:
    body = VALID.decode().encode(encoding)
    if encoding != "utf-7":
        assert outcome(body) is None


@pytest.mark.parametrize("space", ["\x0b", "\x0c", "\xa0", "\u2003", "\x00", "//x\n", "/**/", "#"])
def test_what_is_not_white_space(space: str) -> None:
    for template in ('_{"inputs":[]}', '{"inputs":_[]}', '{"inputs":[]}_', '{"inputs":[_]}', '{_"inputs":[]}'):
        assert outcome(template.replace("_", space).encode()) is None
    assert outcome(f'{{"inputs":[{{"name":"x","shape":[2],"datatype":"INT8","data":[1,{space}2]}}]}}'.encode()) is None
