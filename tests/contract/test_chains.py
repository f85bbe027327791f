"""Endpoints that come after others (``next``): which may, and what a request sees on its way."""

import pytest
from support import inference, tensor

ONE = inference(tensor("x", [1], "UINT32", [1]))


@pytest.mark.parametrize(
    ("first", "following", "reason"),
    [
        ("models/simple", "identity_fp32", "it has 2 outputs, but the next stage takes 1 inputs"),
        ("workers/echo", "two_versions", "output 'output' is UINT32, but input 'number' is INT32"),
        ("models/identity_fp32", "convnet", "output 'OUTPUT0' [-1, -1] does not fit input 'image' [-1, 3, 224, 224]"),
    ],
)
def test_signatures_that_do_not_fit_are_refused_at_load(own_server, first, following, reason):
    own_server.load(f"models/{following}")
    answer = own_server.post(f"/v2/{first}/load", {"next": following})
    assert answer.status == 400
    assert answer.error.endswith(f"cannot be followed by '{following}': {reason}")


def test_outputs_go_by_name_where_all_names_match(own_server):
    """By position the difference would have the other sign."""
    own_server.load("workers/fake")
    own_server.load("models/simple", {"next": "fake"})
    own_server.load("workers/fake", {"next": "simple"})
    values = inference(tensor("INPUT1", [1, 16], "INT32", [2] * 16), tensor("INPUT0", [1, 16], "INT32", [5] * 16))
    answer = own_server.infer("fake-0", values)
    assert answer.json["outputs"][1]["data"] == [3] * 16


def test_a_stage_that_fails_ends_the_request(own_server):
    own_server.load("workers/echo")
    own_server.load("workers/fake", {"error_rate": 1, "next": "echo"})
    answer = own_server.infer("fake", ONE)
    assert (answer.status, answer.error) == (500, "the worker failed, as its error_rate asks")


def test_what_is_left_of_a_timeout_goes_on_with_the_request(own_server):
    own_server.load("workers/fake", {"delay_ms": 60_000})
    own_server.load("workers/echo", {"next": "fake"})
    answer = own_server.infer("echo", {**ONE, "parameters": {"timeout": 300_000}})
    assert (answer.status, answer.error) == (504, "Request timeout expired")


def test_an_endpoint_cannot_come_before_one_that_is_not_loaded(own_server):
    answer = own_server.post("/v2/workers/echo/load", {"next": "echo"})
    assert (answer.status, answer.error) == (400, "the next endpoint 'echo' is not loaded")
