"""Part B5: what models have counted, refusals and failures among it."""

import json
import time

import pytest
from load_clients import load
from support import inference, serving, tensor

PAIR = inference(tensor("INPUT0", [1, 16], "INT32", [1] * 16), tensor("INPUT1", [1, 16], "INT32", [2] * 16))
DURATIONS = ["success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"]


def statistics(server, path):
    answer = server.get(path)
    assert answer.status == 200, answer.body
    assert list(answer.json) == ["model_stats"]
    for entry in answer.json["model_stats"]:
        assert list(entry) == [
            "name", "version", "last_inference", "inference_count", "execution_count", "inference_stats",
            "batch_stats", "memory_usage",
        ]  # fmt: skip
        assert list(entry["inference_stats"]) == DURATIONS
        assert all(list(duration) == ["count", "ns"] for duration in entry["inference_stats"].values())
    return answer.json["model_stats"]


def counts(server, model):
    (entry,) = statistics(server, f"/v2/models/{model}/stats")
    return {name: duration["count"] for name, duration in entry["inference_stats"].items()}


def test_an_inference_is_counted(own_server):
    server = own_server
    began = time.time() * 1000
    rows = inference(tensor("INPUT0", [3, 16], "INT32", [1] * 48), tensor("INPUT1", [3, 16], "INT32", [1] * 48))
    assert server.infer("simple", PAIR).status == server.infer("simple", rows).status == 200
    (entry,) = statistics(server, "/v2/models/simple/stats")
    assert (entry["name"], entry["version"], entry["inference_count"], entry["execution_count"]) == (
        "simple",
        "1",
        4,
        2,
    )
    assert began - 1000 <= entry["last_inference"] <= time.time() * 1000 + 1000
    durations = entry["inference_stats"]
    for name in DURATIONS:
        assert durations[name]["count"] == (0 if name in ("fail", "cache_hit", "cache_miss") else 2)
    assert durations["success"]["ns"] >= durations["compute_infer"]["ns"] > 0
    assert [line["batch_size"] for line in entry["batch_stats"]] == [1, 3]
    assert all(line[part]["count"] == 1 for line in entry["batch_stats"]
               for part in ("compute_input", "compute_infer", "compute_output"))  # fmt: skip
    assert statistics(server, "/v2/models/simple/versions/1/stats") == [entry]


def test_statistics_of_all_models_and_of_all_versions(own_server):
    server = own_server
    server.load("models/two_versions")
    server.load("workers/echo")
    every = statistics(server, "/v2/models/stats")
    assert [(entry["name"], entry["version"]) for entry in every] == [
        ("echo", "1"), ("simple", "1"), ("two_versions", "1"), ("two_versions", "2"),
    ]  # fmt: skip
    assert statistics(server, "/v2/models/two_versions/stats") == every[2:]
    assert statistics(server, "/v2/models/two_versions/versions/2/stats") == every[3:]
    server.post("/v2/models/two_versions/unload")
    assert [entry["name"] for entry in statistics(server, "/v2/models/stats/")] == ["echo", "simple"]


WRONG = {
    "no JSON": b"{",
    "no JSON, decoded on another thread": b'{"inputs":[],"x":"' + b"x" * 200_000,
    "not UTF-8": b'{"inputs":[],"id":"\xff"}',
    "a missing input": json.dumps(inference(PAIR["inputs"][0])).encode(),
    "another type": json.dumps(inference(tensor("INPUT0", [1, 16], "FP32", [0] * 16), PAIR["inputs"][1])).encode(),
    "shared memory": b'{"inputs":[],"parameters":{"shared_memory_region":"r"}}',
    "too many rows": json.dumps(
        inference(*[tensor(name, [700_000, 0], "INT32", []) for name in ("INPUT0", "INPUT1")])
    ).encode(),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_request_that_is_refused_counts_as_a_failure(own_server, wrong):
    for number in (1, 2):
        assert own_server.infer("simple", WRONG[wrong]).status == 400
        assert counts(own_server, "simple") == {**dict.fromkeys(DURATIONS, 0), "fail": number}
    assert 'fastinfer_failures_total{cause="client",model="simple",version="1"} 2' in own_server.metrics()
    assert own_server.infer("simple", PAIR).status == 200
    assert counts(own_server, "simple")["success"] == 1


def test_a_wrong_header_counts_as_a_failure(own_server):
    fields = {"Inference-Header-Content-Length": "x"}
    assert own_server.request("POST", "/v2/models/simple/infer", PAIR, fields).status == 400
    assert counts(own_server, "simple")["fail"] == 1


def test_what_a_chain_refuses_is_the_first_stages_failure(own_server):
    server = own_server
    server.load("workers/fake")
    server.load("workers/echo", {"next": "fake"})
    assert server.infer("echo", b"{").status == 400
    assert server.infer("echo", inference(tensor("x", [2], "UINT32", [1, 2]))).status == 400
    assert (counts(server, "echo")["fail"], counts(server, "fake")["fail"]) == (2, 0)


def test_failures_of_a_model_are_counted(own_server):
    own_server.load("workers/fake", {"error_rate": 1})
    assert own_server.infer("fake", PAIR).status == 500
    assert counts(own_server, "fake")["fail"] == 1


def test_zero_rows_are_a_success_without_a_run(own_server):
    nothing = inference(tensor("INPUT0", [0, 16], "INT32", []), tensor("INPUT1", [0, 16], "INT32", []))
    assert own_server.infer("simple", nothing).status == 200
    (entry,) = statistics(own_server, "/v2/models/simple/stats")
    assert entry["inference_stats"]["success"]["count"] == 1
    assert (entry["inference_count"], entry["execution_count"], entry["batch_stats"]) == (0, 0, [])


@pytest.mark.parametrize("options", [("--processes", "0"), ("--processes", "2")], ids=["alone", "two-processes"])
def test_counts_that_belong_together_agree_at_any_moment(options):
    with serving("--load", "simple", *options) as server, load(server):
        for _ in range(500):
            (entry,) = statistics(server, "/v2/models/simple/stats")
            assert entry["inference_count"] > 0
            durations = entry["inference_stats"]
            assert {durations[name]["count"] for name in DURATIONS[:1] + DURATIONS[2:6]} == {entry["inference_count"]}
