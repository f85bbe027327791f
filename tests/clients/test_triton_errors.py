"""Triton's stock client: whatever goes wrong is an InferenceServerException with the server's sentence and status."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from clients.triton import CLIENTS, SyncClient, address, assert_same, http, refusal, sent, texts, wanted
from support import serving

ROW = np.arange(16, dtype=np.int32)[None]
FIRST, SECOND = sent("INPUT0", ROW), sent("INPUT1", ROW)


def reshaped(tensor, shape):
    """A tensor that claims another shape than its data has."""
    return tensor.set_shape(shape)


@pytest.mark.parametrize(
    ("model", "inputs", "options", "status", "sentence"),
    [
        ("nope", [FIRST], {}, "404", "Request for unknown model: 'nope' is not found"),
        ("simple", [FIRST, SECOND], {"model_version": "9"}, "404",
         "Request for unknown model: 'simple' version 9 is not found"),
        ("simple", [], {}, "400", "expected 2 inputs but got 0 inputs for model 'simple'. Got input(s) [], but missing "
         "required input(s) ['INPUT0','INPUT1']. Please provide all required input(s)."),
        ("simple", [SECOND], {}, "400", "expected 2 inputs but got 1 inputs for model 'simple'. Got input(s) "
         "['INPUT1'], but missing required input(s) ['INPUT0']. Please provide all required input(s)."),
        ("simple", [FIRST, SECOND, sent("größe", ROW)], {}, "400",
         "unexpected inference input 'größe' for model 'simple'"),
        ("simple", [FIRST, SECOND], {"outputs": [wanted("X")]}, "400",
         "unexpected inference output 'X' for model 'simple'"),
        ("simple", [sent("INPUT0", ROW.astype(np.float32)), SECOND], {}, "400",
         "inference input 'INPUT0' data-type is 'FP32', but model 'simple' expects 'INT32'"),
        ("simple", [sent("INPUT0", ROW[:, :8]), SECOND], {}, "400",
         "unexpected shape for input 'INPUT0' for model 'simple'. Expected [-1,16], got [1,8]"),
        ("simple", [FIRST, sent("INPUT1", np.tile(ROW, (2, 1)))], {}, "400",
         "input 'INPUT1' batch size does not match other inputs for 'simple'"),
        ("two_at_most", [sent("x", np.zeros((3, 1), np.float32))], {}, "400",
         "inference request batch-size must be <= 2 for 'two_at_most'"),
        ("rows_fp32", [reshaped(sent("x", np.zeros((1, 15), np.float32)), [1, 16])], {}, "400",
         "input byte size mismatch for input 'x' for model 'rows_fp32'. Expected 64, got 60"),
        ("simple", [FIRST, SECOND], {"sequence_id": 5, "sequence_start": True}, "400",
         "parameters.sequence_id: 5 is refused: sequences are not supported"),
        ("simple", [FIRST, SECOND], {"sequence_id": "five"}, "400",
         'parameters.sequence_id: "five" is refused: sequences are not supported'),
        ("simple", [FIRST, SECOND], {"timeout": -1}, "400",
         "parameters.timeout: -1 is not a non-negative integer"),
        ("simple", [FIRST, SECOND], {"headers": {"Content-Encoding": "br"}}, "415",
         "the content codings understood are gzip and deflate"),
        ("simple", [FIRST, FIRST], {}, "400", "input 'INPUT0' is given twice"),
        ("simple", [http.InferInput("INPUT0", [1, 16], "INT32"), SECOND], {}, "400", "inputs[0]"),
        ("simple", [FIRST, SECOND], {"priority": -1}, "400", "parameters.priority: -1 is not a non-negative integer"),
        ("rows_int8", [reshaped(sent("x", np.zeros((1, 2), np.int8), False), [1, 3])], {}, "400",
         "inputs[0].data: 2 elements, but the shape [1,3] holds 3"),
        ("rows_fp32", [sent("x", np.array([[1.5]]), False)], {}, "400",
         "inference input 'x' data-type is 'FP64', but model 'rows_fp32' expects 'FP32'"),
        ("rows_bytes", [reshaped(sent("x", texts("a", "b")[None]), [1, 3])], {}, "400",
         "inputs[0]: 2 elements, but the shape [1,3] holds 3"),
        ("gather", [sent("index", np.array([99]))], {}, "400", "the model cannot run on these inputs: "),
        ("größe", [FIRST], {}, "404", "the name of a model has 1 to 128 letters, digits, "),
    ],
)  # fmt: skip
@pytest.mark.parametrize("coding", [None, "gzip"])
def test_refusals(client, model, inputs, options, status, sentence, coding):
    if coding and "headers" in options:
        return  # the client would overwrite the field
    options = {**options, "response_compression_algorithm": coding, "request_compression_algorithm": coding}
    found, text = refusal(client.infer, model, inputs, **options)
    assert (found, text[: len(sentence)]) == (status, sentence)  # what follows is the runtime's, or tells the rule
    assert_same(client.infer("simple", [FIRST, SECOND]).as_numpy("OUTPUT0"), 2 * ROW)


def test_shared_memory_is_refused(client):
    there = http.InferInput("INPUT0", [1, 16], "INT32")
    there.set_shared_memory("region", 64)
    refused = refusal(client.infer, "simple", [there, SECOND])
    assert refused == ("400", "inputs[0].parameters: shared memory is not supported")
    output = wanted("OUTPUT0")
    output.set_shared_memory("region", 64)
    refused = refusal(client.infer, "simple", [FIRST, SECOND], outputs=[output])
    assert refused == ("400", "outputs[0].parameters: shared memory is not supported")


def test_a_request_that_makes_the_model_fail_fails_alone(server):
    with SyncClient(address(server), concurrency=16) as client:
        indices = [np.array([number % 5]) for number in range(50)]  # of four rows
        requests = [client.async_infer("gather", [sent("index", index)]) for index in indices]
        for index, request in zip(indices, requests, strict=True):
            if index[0] == 4:
                assert refusal(request.get_result)[0] == "400"
            else:
                row = np.array([2 * index, 2 * index + 1], np.float32).T
                assert_same(request.get_result().as_numpy("y"), row)


def test_a_full_queue(server):
    """One request runs, one waits, the others are refused."""
    with SyncClient(address(server), concurrency=8) as client:
        one = [sent("x", np.ones((1, 1), np.float32))]
        requests = [client.async_infer("endless_for_two", one, timeout=2_000_000) for _ in range(8)]
        outcomes = {refusal(request.get_result) for request in requests}
    assert outcomes == {("503", "Exceeds maximum queue size"), ("504", "Request timeout expired")}


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # aiohttp's advice to its user
@pytest.mark.parametrize("form", CLIENTS)
@pytest.mark.parametrize("coding", [None, "gzip"])
def test_a_body_above_the_limit(form, coding):
    large = [sent("INPUT0", np.zeros((1, 1 << 20), np.float32))]
    with (
        serving("--load", "identity_fp32", "--max-body-bytes", "64KiB") as server,
        closing(CLIENTS[form](address(server))) as client,
    ):
        status, sentence = refusal(client.infer, "identity_fp32", large, request_compression_algorithm=coding)
        assert (status, "65536" in sentence) == ("413", True), sentence
        assert client.is_server_live()
