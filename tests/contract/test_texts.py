"""Part B6: the sentences that clients match on and people search for, each to the letter, with its status."""

import contextlib
import json

import pytest
from support import exchange, inference, serving, tensor, wait_for

A, B = tensor("INPUT0", [1, 16], "INT32", [1] * 16), tensor("INPUT1", [1, 16], "INT32", [2] * 16)
EIGHT = {"parameters": {"config": json.dumps({"max_batch_size": 8})}}


@pytest.fixture(scope="module")
def server():
    """The model ``simple`` in batches of at most 8; the worker ``fake``, one request at a time, one more waits."""
    with serving("--load", "simple", "--max-queue-size", "1") as running:
        running.load("repository/models/simple", EIGHT)
        running.load("workers/fake", {"delay_ms": 60_000, "instances": 1})
        yield running


def rows(name, count):
    return tensor(name, [count, 16], "INT32", [1] * (16 * count))


def binary(*sizes, extra=b""):
    """A request with both inputs in binary, of so many bytes, and something behind them; with its header."""
    inputs = [
        {"name": name, "shape": [1, 16], "datatype": "INT32", "parameters": {"binary_data_size": size}}
        for name, size in zip(("INPUT0", "INPUT1"), sizes, strict=True)
    ]
    head = json.dumps({"inputs": inputs}).encode()
    return head + bytes(sum(sizes)) + extra, {"Inference-Header-Content-Length": str(len(head))}


SIMPLE = "/v2/models/simple/infer"
TEXTS = [
    ("/v2/models/nope/infer", inference(A, B), 404, "Request for unknown model: 'nope' is not found"),
    ("/v2/models/nope/versions/1/infer", inference(A, B), 404, "Request for unknown model: 'nope' is not found"),
    (
        "/v2/models/simple/versions/7/infer", inference(A, B), 404,
        "Request for unknown model: 'simple' version 7 is not found",
    ),
    (
        SIMPLE, inference(A), 400,
        "expected 2 inputs but got 1 inputs for model 'simple'. Got input(s) ['INPUT0'], but missing required input(s) "
        "['INPUT1']. Please provide all required input(s).",
    ),
    (
        SIMPLE, inference(), 400,
        "expected 2 inputs but got 0 inputs for model 'simple'. Got input(s) [], but missing required input(s) "
        "['INPUT0','INPUT1']. Please provide all required input(s).",
    ),
    (SIMPLE, inference(A, B, rows("X", 1)), 400, "unexpected inference input 'X' for model 'simple'"),
    (SIMPLE, inference(A, rows("X", 1)), 400, "unexpected inference input 'X' for model 'simple'"),
    (SIMPLE, inference(A, B, outputs=[{"name": "X"}]), 400, "unexpected inference output 'X' for model 'simple'"),
    (
        SIMPLE, inference(tensor("INPUT0", [1, 16], "FP32", [1] * 16), B), 400,
        "inference input 'INPUT0' data-type is 'FP32', but model 'simple' expects 'INT32'",
    ),
    (
        SIMPLE, inference(tensor("INPUT0", [1, 8], "INT32", [1] * 8), B), 400,
        "unexpected shape for input 'INPUT0' for model 'simple'. Expected [-1,16], got [1,8]",
    ),
    (
        SIMPLE, inference(tensor("INPUT0", [1, 1, 16], "INT32", [1] * 16), B), 400,
        "unexpected shape for input 'INPUT0' for model 'simple'. Expected [-1,16], got [1,1,16]",
    ),
    (
        SIMPLE, inference(rows("INPUT0", 9), rows("INPUT1", 9)), 400,
        "inference request batch-size must be <= 8 for 'simple'",
    ),
    (
        SIMPLE, inference(A, rows("INPUT1", 2)), 400,
        "input 'INPUT1' batch size does not match other inputs for 'simple'",
    ),
    (
        SIMPLE, binary(60, 64), 400,
        "input byte size mismatch for input 'INPUT0' for model 'simple'. Expected 64, got 60",
    ),
    (
        SIMPLE, binary(64, 68), 400,
        "input byte size mismatch for input 'INPUT1' for model 'simple'. Expected 64, got 68",
    ),
    (SIMPLE, binary(64, 64, extra=b"more"), 400, "unexpected additional input data for model 'simple'"),
    ("/v2/models/fake/infer", inference(A, parameters={"timeout": 1000}), 504, "Request timeout expired"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "text"), TEXTS)
def test_the_sentence_to_the_letter(server, path, body, status, text):
    body, fields = body if isinstance(body, tuple) else (body, {})
    with contextlib.closing(server.connect()) as connection:
        answer = exchange(connection, "POST", path, body, fields)
        assert (answer.status, answer.error) == (status, text)
        # The connection is as good as before.
        assert exchange(connection, "POST", SIMPLE, inference(A, B)).status == 200


def test_the_sentence_of_a_full_queue(server):
    def waiting():
        page = server.metrics()
        names = ("batches_running", "queue_depth")
        return [f'fastinfer_{name}{{model="fake",version="1"}} 1.0' in page for name in names]

    with contextlib.ExitStack() as clients:
        for expected in ([True, False], [True, True]):
            client = clients.enter_context(contextlib.closing(server.connect()))
            client.request("POST", "/v2/models/fake/infer", json.dumps(inference(A)))
            wait_for(lambda expected=expected: waiting() == expected)
        answer = server.infer("fake", inference(A))
        assert (answer.status, answer.error) == (503, "Exceeds maximum queue size")
        assert int(answer.headers["retry-after"]) >= 1
    wait_for(lambda: waiting() == [False, False])
