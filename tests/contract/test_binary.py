"""Part B2: tensors as bytes behind the JSON, in requests and answers; raw requests."""

import contextlib
import json

import numpy as np
import pytest
from support import exchange, inference, tensor

LENGTH = "Inference-Header-Content-Length"
ROWS = np.arange(32, dtype="<i4").reshape(2, 16)


def ask(server, model, head, payload=b""):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return server.request("POST", f"/v2/models/{model}/infer", text + payload, {LENGTH: str(len(text))})


def raw(server, model, payload):
    """A raw request: no JSON at all, the whole body is the one input."""
    return ask(server, model, b"", payload)


def told(answer):
    """The JSON of an answer with binary outputs, and the bytes behind it."""
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "application/octet-stream"
    size = int(answer.headers[LENGTH.lower()])
    return json.loads(answer.body[:size]), answer.body[size:]


def binary(name, array, **more):
    size = {"binary_data_size": array.nbytes}
    return {"name": name, "shape": list(array.shape), "datatype": "INT32", "parameters": size, **more}


def test_both_kinds_in_one_request_and_one_answer(server):
    head = inference(
        tensor("INPUT0", [2, 16], "INT32", ROWS.ravel().tolist()),
        binary("INPUT1", ROWS),
        outputs=[{"name": "OUTPUT1"}, {"name": "OUTPUT0", "parameters": {"binary_data": True}}],
    )
    text, payload = told(ask(server, "simple", head, ROWS.tobytes()))
    assert text["outputs"][0]["data"] == [0] * 32
    assert text["outputs"][1] == {
        "name": "OUTPUT0", "datatype": "INT32", "shape": [2, 16], "parameters": {"binary_data_size": 128},
    }  # fmt: skip
    assert payload == (ROWS + ROWS).tobytes()


@pytest.mark.parametrize("name", ["inference-header-content-length", "INFERENCE-Header-Content-LENGTH"])
def test_heads_that_differ_in_each_request_of_a_connection(server, name):
    """Ids, the length of the body and that of its JSON, beside a head that is known."""
    with contextlib.closing(server.connect()) as connection:
        for number in range(12):
            rows = np.arange(16, dtype="<i4").reshape(1, 16) * number
            parameters = {"binary_data_output": True}
            head = inference(
                binary("INPUT0", rows), binary("INPUT1", rows), id="i" * (number + 1), parameters=parameters
            )
            text = json.dumps(head).encode()
            fields = {
                "X-Request-Id": f"{number * 7919:x}",
                name: f" {len(text)}\t",
                "X-Empty": "" if number % 2 else "a",
            }
            answer = exchange(connection, "POST", "/v2/models/simple/infer", text + rows.tobytes() * 2, fields)
            answered, payload = told(answer)
            assert (answered["id"], payload) == ("i" * (number + 1), (rows + rows).tobytes() + (rows - rows).tobytes())
        fields[name] = str(len(text) - 1)
        assert exchange(connection, "POST", "/v2/models/simple/infer", text, fields).status == 400
        fields[name] = "-1"
        assert exchange(connection, "POST", "/v2/models/simple/infer", text, fields).status == 400


def test_an_output_decides_for_itself_before_the_request_does(server):
    head = inference(
        binary("INPUT0", ROWS),
        binary("INPUT1", ROWS),
        outputs=[{"name": "OUTPUT0"}, {"name": "OUTPUT1", "parameters": {"binary_data": False}}],
        parameters={"binary_data_output": True},
    )
    text, payload = told(ask(server, "simple", head, ROWS.tobytes() * 2))
    assert "data" not in text["outputs"][0]
    assert text["outputs"][1]["data"] == [0] * 32
    assert payload == (ROWS + ROWS).tobytes()


def test_without_a_binary_output_the_answer_is_plain(server):
    answer = ask(server, "simple", inference(binary("INPUT0", ROWS), binary("INPUT1", ROWS)), ROWS.tobytes() * 2)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert LENGTH.lower() not in answer.headers


@pytest.mark.parametrize("columns", [1, 7, 40_000])
def test_a_raw_request_is_one_row_and_its_open_dimension_is_as_long_as_the_body(server, columns):
    values = np.linspace(-1, 1, columns, dtype="<f4")
    text, payload = told(raw(server, "identity_fp32", values.tobytes()))
    assert text["outputs"][0]["shape"] == [1, columns]
    assert payload == values.tobytes()


def test_a_raw_request_for_a_fixed_shape(server):
    text, payload = told(raw(server, "digits", bytes(256)))
    assert [output["shape"] for output in text["outputs"]] == [[1, 1], [1, 10]]
    assert len(payload) == 8 + 40


def test_a_raw_request_for_a_worker(own_server):
    own_server.load("workers/echo")
    assert told(raw(own_server, "echo", b"\x29\0\0\0"))[1] == b"\x2a\0\0\0"


@pytest.mark.parametrize(
    ("model", "size", "sentence"),
    [
        ("simple", 64, "a raw request needs a model with exactly 1 input, but model 'simple' has 2"),
        (
            "identity_bytes",
            8,
            "a raw request cannot carry BYTES, the datatype of input 'INPUT0' of model 'identity_bytes'",
        ),
        ("digits", 255, "input byte size mismatch for input 'pixels' for model 'digits'. Expected 256, got 255"),
        ("digits", 512, "input byte size mismatch for input 'pixels' for model 'digits'. Expected 256, got 512"),
        (
            "identity_fp32",
            6,
            "input byte size mismatch for input 'INPUT0' for model 'identity_fp32'. Expected 4, got 6",
        ),
    ],
)
def test_a_raw_request_that_does_not_fit(server, model, size, sentence):
    answer = raw(server, model, bytes(size))
    assert (answer.status, answer.error) == (400, sentence)


def test_a_raw_request_without_a_byte_has_no_elements(server):
    text, payload = told(raw(server, "identity_fp32", b""))
    assert (text["outputs"][0]["shape"], payload) == ([1, 0], b"")


@pytest.mark.parametrize("length", ["-1", "+1", "1.0", "x", "", "1000000", "99999999999999999999999"])
def test_a_length_that_is_none_is_refused(server, length):
    answer = server.request("POST", "/v2/models/simple/infer", b"{}", {LENGTH: length})
    assert (answer.status, bool(answer.error)) == (400, True)
