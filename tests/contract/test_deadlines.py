"""Deadlines over the socket: they run from the request's first byte, and hold for slices and chains as a whole."""

import json
import random
import re
import socket
import threading
import time
from collections import Counter

import onnx_models
import pytest
from support import inference, serving, tensor, wait_for

TIMEOUT_S = 0.4  # the server's own
TRIPS = 20_000  # through a loop, for a run that takes milliseconds
ONE = inference(tensor("x", [1], "UINT32", [1]))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    models = {
        "slow": (onnx_models.endless(TRIPS), ""),
        "quick": (onnx_models.identity("FP32", ("batch", 1)), ""),
        "impatient": (onnx_models.endless(), "[dynamic_batching]\ndefault_timeout_microseconds = 60_000\n"),
    }
    for name, (model, configuration) in models.items():
        (directory / name / "1").mkdir(parents=True)
        (directory / name / "1" / "model.onnx").write_bytes(model)
        if configuration:
            (directory / name / "config.toml").write_text("max_batch_size = 0\n" + configuration)
    with serving("--request-timeout-s", str(TIMEOUT_S), "--load-run-timeout-s", "1", repository=directory) as running:
        yield running


def rows(count, **parameters):
    return inference(tensor("x", [count, 1], "FP32", [1] * count), parameters=parameters)


def message(model, body):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"POST /v2/models/%s/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (
        model.encode(), len(body),
    ) + body  # fmt: skip


def read(stream):
    """The status and the body of the next answer."""
    status = int(stream.readline().split()[1])
    fields = dict(line.strip().lower().split(b": ", 1) for line in iter(stream.readline, b"\r\n"))
    return status, json.loads(stream.read(int(fields[b"content-length"])))


def gauge(server, name, model):
    return float(re.search(rf'^{name}{{model="{model}",version="1"}} (\S+)$', server.metrics(), re.M)[1])


def in_flight(server, model):
    return gauge(server, "fastinfer_requests_in_flight", model)


def runs(server, model):
    return gauge(server, "fastinfer_runs_total", model)


def stats(server, model):
    (entry,) = server.get(f"/v2/models/{model}/stats").json["model_stats"]
    return entry


def failures(server, model, cause):
    found = re.search(
        rf'^fastinfer_failures_total{{cause="{cause}",model="{model}",version="1"}} (\S+)$', server.metrics(), re.M
    )
    return float(found[1]) if found else 0


@pytest.mark.parametrize("timeout", [0, 30_000])
def test_a_sliced_request_has_one_deadline(server, timeout):
    count, before = 64 * 2000, runs(server, "slow")
    late = failures(server, "slow", "timeout")
    answer = server.infer("slow", rows(count, timeout=timeout))
    assert (answer.status, answer.error) == (504, "Request timeout expired")
    wait_for(lambda: gauge(server, "fastinfer_batches_running", "slow") == 0)
    assert in_flight(server, "slow") == 0
    after = runs(server, "slow")
    assert after < before + 2000
    assert failures(server, "slow", "timeout") == late + 1  # one request
    assert server.infer("slow", rows(1)).status == 200
    assert runs(server, "slow") == after + 1  # nothing else has run meanwhile


def test_a_sliced_request_is_one_in_the_statistics(server):
    before = stats(server, "quick")
    assert server.infer("quick", rows(64 * 5 + 1)).status == 200
    after = stats(server, "quick")
    assert after["inference_count"] - before["inference_count"] == 64 * 5 + 1
    assert after["execution_count"] - before["execution_count"] == 6
    for part in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert after["inference_stats"][part]["count"] - before["inference_stats"][part]["count"] == 1
    assert after["inference_stats"]["success"]["ns"] > after["inference_stats"]["compute_infer"]["ns"]


@pytest.fixture
def chain(server):
    """Two stages of which each has the time that the server gives, and both together do not."""
    names = []
    for parameters in ({"delay_ms": 250}, {"delay_ms": 250}):
        if names:
            parameters["next"] = names[-1]
        names.append(server.post("/v2/workers/fake/load", {**parameters, "share": False}).body.decode())
    yield names[::-1]
    for name in reversed(names):
        server.post(f"/v2/models/{name}/unload")


@pytest.mark.parametrize("timeout", [0, 300_000])
def test_a_chain_has_one_deadline(server, chain, timeout):
    first, second = chain
    assert server.infer(second, ONE).status == 200
    answer = server.infer(first, {**ONE, "parameters": {"timeout": timeout}})
    assert (answer.status, answer.error) == (504, "Request timeout expired")
    assert stats(server, first)["inference_stats"]["success"]["count"] == 1
    assert failures(server, second, "timeout") == 1
    assert in_flight(server, second) == 0


def test_a_timeout_may_be_longer_than_the_servers(server, chain):
    assert server.infer(chain[0], {**ONE, "parameters": {"timeout": 60_000_000}}).status == 200


def test_a_client_that_leaves_in_the_second_stage_ends_it(server):
    last = server.post("/v2/workers/fake/load", {"delay_ms": 50_000, "share": False}).body.decode()
    first = server.post("/v2/workers/echo/load", {"next": last, "share": False}).body.decode()
    with socket.create_connection(("127.0.0.1", server.port)) as gone:
        gone.sendall(message(first, {**ONE, "parameters": {"timeout": 60_000_000}}))
        wait_for(lambda: gauge(server, "fastinfer_batches_running", last) == 1)
    wait_for(lambda: gauge(server, "fastinfer_batches_running", last) == 0)
    assert failures(server, last, "cancelled") == 1
    for name in (first, last):
        server.post(f"/v2/models/{name}/unload")


def test_the_models_own_timeout(server):
    answer = server.infer("impatient", rows(1))
    assert (answer.status, answer.error) == (504, "Request timeout expired")


@pytest.mark.parametrize("timeout", [20_000, 0])
@pytest.mark.parametrize("cut", [30, -30])
def test_the_upload_counts(server, timeout, cut):
    """The head or the body takes longer than the whole request may."""
    before = runs(server, "quick")
    data = message("quick", rows(1, timeout=timeout))
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(data[:cut])
        time.sleep(0.03 if timeout else TIMEOUT_S + 0.03)
        slow.sendall(data[cut:])
        stream = slow.makefile("rb")
        status, answer = read(stream)
        assert (status, answer) == (504, {"error": "Request timeout expired"})
        slow.sendall(message("quick", rows(1)))  # a request of its own, on the same connection
        assert read(stream)[0] == 200
    assert runs(server, "quick") == before + 1


def test_the_wait_behind_earlier_requests_of_the_connection_counts(server, chain):
    """The first request of a connection runs alone, so the second waits where it lies; a third comes later."""
    before = runs(server, "quick")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        stream = connection.makefile("rb")
        connection.sendall(message(chain[1], ONE) + message("quick", rows(1, timeout=100_000)))
        assert read(stream)[0] == 200
        assert read(stream)[0] == 504
        connection.sendall(message("quick", rows(1, timeout=10_000_000)))
        assert read(stream)[0] == 200
    assert runs(server, "quick") == before + 1


def test_an_idle_connection_has_no_deadline(server):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        stream = connection.makefile("rb")
        for _ in range(2):
            connection.sendall(message("quick", rows(1)))
            assert read(stream)[0] == 200
            time.sleep(TIMEOUT_S * 1.2)
            connection.sendall(b"\r\n")  # belongs to no request


def test_a_timeout_below_a_millisecond_can_be_met(server):
    """However busy this machine is, one of many tries has its turn in time."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        stream = connection.makefile("rb")
        for _ in range(200):
            connection.sendall(message("quick", rows(1)))
            assert read(stream)[0] == 200

        def met():
            connection.sendall(message("quick", rows(1, timeout=900)))
            status, _ = read(stream)
            assert status in (200, 504)
            return status == 200

        wait_for(met)


def test_whoever_asks_is_answered_once_and_whoever_leaves_costs_no_more(server, chain):
    """Plain, sliced and chained requests, with and without timeouts, some of whose clients leave."""
    source = random.Random(11)
    asked = []
    for _ in range(120):
        model, body = source.choice(
            [("quick", rows(source.choice([1, 7, 200]))), ("slow", rows(source.choice([1, 3, 640]))), (chain[0], ONE)]
        )
        timeout = source.choice([0, 700, 5_000, 60_000, 350_000])
        asked.append((model, {**body, "parameters": {"timeout": timeout}}, source.choice([None, None, 0.0, 0.02, 0.1])))
    names = sorted({model for model, _, _ in asked})
    before = {name: stats(server, name)["inference_stats"] for name in names}
    statuses = Counter()
    lock = threading.Lock()
    work = iter(asked)

    def client():
        while True:
            with lock:
                model, body, patience_s = next(work, (None, None, None))
            if model is None:
                return
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
                connection.sendall(message(model, body))
                if patience_s is not None:
                    time.sleep(patience_s)
                    continue
                status, _ = read(connection.makefile("rb"))
                with lock:
                    statuses[model, status] += 1

    threads = [threading.Thread(target=client) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stayed = sum(patience_s is None for _, _, patience_s in asked)
    assert sum(statuses.values()) == stayed
    assert {status for _, status in statuses} <= {200, 504}
    for name in [*names, chain[1]]:
        wait_for(lambda name=name: in_flight(server, name) == 0)
        wait_for(lambda name=name: gauge(server, "fastinfer_batches_running", name) == 0)
    settled = {name: runs(server, name) for name in ("quick", "slow")}
    for name in names:
        counted = stats(server, name)["inference_stats"]
        ended = sum(counted[part]["count"] - before[name][part]["count"] for part in ("success", "fail"))
        assert ended == sum(model == name for model, _, _ in asked)
        if name != chain[0]:
            answered = counted["success"]["count"] - before[name]["success"]["count"]
            left = sum(model == name and patience_s is not None for model, _, patience_s in asked)
            assert statuses[name, 200] <= answered <= statuses[name, 200] + left
    assert {name: runs(server, name) for name in ("quick", "slow")} == settled
