"""Requests of more rows than a batch holds, where they do not go well."""

import json
import re
import socket

import onnx_models
import pytest
from support import inference, serving, tensor, wait_for


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    for name, model in (("gather", onnx_models.gather_rows()), ("slow", onnx_models.slow_rows())):
        (directory / name / "1").mkdir(parents=True)
        (directory / name / "1" / "model.onnx").write_bytes(model)
    with serving(repository=directory) as running:
        for name in ("gather", "slow"):
            assert running.get(f"/v2/models/{name}/config").json["max_batch_size"] == 64
        yield running


def in_flight(server, model):
    found = re.search(rf'^fastinfer_requests_in_flight{{model="{model}",version="1"}} (\S+)$', server.metrics(), re.M)
    return float(found[1])


@pytest.mark.parametrize("place", [0, 100, 999])
def test_a_row_that_fails_fails_the_request_and_the_next_is_answered(server, place):
    indices = [0, 1, 2, 3] * 250
    good = inference(tensor("index", [1000], "INT64", indices))
    indices = [*indices[:place], 77, *indices[place + 1 :]]
    answer = server.infer("gather", inference(tensor("index", [1000], "INT64", indices)))
    assert (answer.status, "idx=77 must be within the inclusive range [-4,3]" in answer.error) == (400, True)
    again = server.infer("gather", good)
    assert again.status == 200
    assert again.json["outputs"][0]["data"] == [0, 1, 2, 3, 4, 5, 6, 7] * 250
    assert in_flight(server, "gather") == 0


def test_a_client_that_hangs_up_ends_all_slices(server):
    rows = 64 * 2000
    body = json.dumps(inference(tensor("x", [rows, 1], "FP32", [1] * rows))).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as gone:
        gone.sendall(b"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        wait_for(lambda: in_flight(server, "slow") > 0)
    wait_for(lambda: in_flight(server, "slow") == 0)
    (entry,) = server.get("/v2/models/slow/stats").json["model_stats"]
    assert entry["inference_count"] < rows
    assert 'fastinfer_failures_total{cause="cancelled",model="slow",version="1"}' in server.metrics()
    assert entry["inference_stats"]["fail"]["count"] >= 1
