"""Part A under load: batches form, slow models delay nobody else, deadlines, full queues, draining."""

import concurrent.futures
import contextlib
import json
import os
import re
import resource
import shutil
import socket
import time
from pathlib import Path

import onnx_models
import pytest
from support import REPOSITORY, exchange, inference, serving, tensor

SLOW = 200_000  # trips through a loop: some tenths of a second
SIMPLE = inference(tensor("INPUT0", [1, 16], "INT32", [1] * 16), tensor("INPUT1", [1, 16], "INT32", [1] * 16))


def slow_request(value=1, **more):
    return inference(tensor("x", [1, 1], "FP32", [value]), **more)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The model ``simple``; ``slow``, which is batched by its configuration; ``endless``."""
    directory = tmp_path_factory.mktemp("models")
    shutil.copytree(REPOSITORY / "simple", directory / "simple")
    for name, trips in (("slow", SLOW), ("endless", 2**60)):
        (directory / name / "1").mkdir(parents=True)
        (directory / name / "1" / "model.onnx").write_bytes(onnx_models.endless(trips))
    (directory / "slow" / "config.toml").write_text("max_batch_size = 8\n[dynamic_batching]\nmax_queue_size = 20\n")
    (directory / "endless" / "config.toml").write_text("max_batch_size = 0\n")
    return directory


@pytest.fixture
def server(repository):
    with serving("--load", "simple", "--load", "slow", "--load", "endless", repository=repository) as running:
        yield running


def metric(server, name, model):
    found = re.findall(
        rf'^{name}{{(?=[^}}]*model="{model}")[^}}]*}} (\S+)$', server.get("/metrics").body.decode(), re.M
    )
    return sum(float(value) for value in found)


def test_batches_form_and_the_metrics_show_it(server):
    with concurrent.futures.ThreadPoolExecutor(17) as pool:
        answers = list(pool.map(lambda value: server.infer("slow", slow_request(value)), range(17)))
    assert [answer.status for answer in answers] == [200] * 17
    # Each answer is the request's own: the sum of its value over all trips, as FP32 adds them.
    values = [answer.json["outputs"][0]["data"][0] for answer in answers]
    assert values == sorted(values)
    assert len(set(values)) == 17
    assert metric(server, "fastinfer_rows_total", "slow") == 17
    assert metric(server, "fastinfer_runs_total", "slow") < 12


def test_a_slow_model_delays_nobody_who_asks_for_another(server):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        slow = [pool.submit(server.infer, "endless", slow_request(parameters={"timeout": 2_000_000})) for _ in range(4)]
        time.sleep(0.1)
        connection = server.connect()
        for _ in range(200):
            assert exchange(connection, "POST", "/v2/models/simple/infer", SIMPLE).status == 200
            assert exchange(connection, "GET", "/v2/health/ready").status == 200
        assert not any(answer.done() for answer in slow)
        connection.close()
        assert [answer.result().status for answer in slow] == [504] * 4


def test_a_deadline_is_kept_and_the_run_is_ended(server):
    answer = server.infer("endless", slow_request(parameters={"timeout": 50_000}))
    assert (answer.status, answer.error) == (504, "Request timeout expired")
    # The instance is free again: the next one runs into its own deadline, not into the first one's run.
    assert server.infer("endless", slow_request(parameters={"timeout": 50_000})).status == 504
    server.post("/v2/models/endless/unload")
    assert server.get("/v2/models/endless/ready").status == 404


def test_a_full_queue_refuses_with_retry_after(server):
    with concurrent.futures.ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(lambda _: server.infer("slow", slow_request()), range(60)))
    refused = [answer for answer in answers if answer.status != 200]
    assert {answer.status for answer in refused} == {503}
    assert all("retry-after" in answer.headers and "Exceeds maximum queue size" in answer.error for answer in refused)
    assert len(answers) - len(refused) >= 20


def test_clients_that_go_away_free_the_model(server):
    body = json.dumps(slow_request()).encode()
    head = b"POST /v2/models/endless/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port)) as gone:
            gone.sendall(head + body)
            time.sleep(0.05)
    deadline = time.monotonic() + 10
    while metric(server, "fastinfer_requests_in_flight", "endless") or metric(
        server, "fastinfer_queue_depth", "endless"
    ):
        assert time.monotonic() < deadline, server.get("/metrics").body.decode()
        time.sleep(0.05)


def test_unloading_lets_requests_in_flight_finish(server):
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(server.infer, "slow", slow_request(value)) for value in range(12)]
        while metric(server, "fastinfer_queue_depth", "slow") < 4:
            time.sleep(0.01)
        assert server.post("/v2/models/slow/unload").status == 200
        assert server.get("/v2/models/slow/ready").status == 404
        assert [answer.result().status for answer in answers] == [200] * 12


def test_a_signal_drains(repository):
    with serving("--load", "slow", repository=repository) as server:
        idle = server.connect()
        assert exchange(idle, "GET", "/v2/health/ready").status == 200
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(server.infer, "slow", slow_request()) for _ in range(4)]
            time.sleep(0.2)
            server.process.terminate()
            time.sleep(0.1)
            last = exchange(idle, "GET", "/v2/health/ready")
            assert (last.status, last.headers["connection"]) == (503, "close")
            assert [answer.result().status for answer in answers] == [200] * 4
        assert server.process.wait(30) == 0
        with pytest.raises(ConnectionRefusedError):
            server.get("/v2")


def cpu_s(server):
    """The CPU seconds of the server's processes so far."""
    stats = [Path(f"/proc/{pid}/stat").read_text() for pid in (server.process.pid, *server.serving_pids())]
    words = [stat.rpartition(")")[2].split() for stat in stats]
    return sum(int(user) + int(system) for user, system in (each[11:13] for each in words)) / os.sysconf("SC_CLK_TCK")


def test_an_idle_server_sleeps():
    """Also after many quick requests, while which it may have looked for the next one instead of sleeping."""
    with (
        serving("--load", "simple", "--busy-poll-us", "10000") as server,
        contextlib.closing(server.connect()) as connection,
    ):
        for _ in range(300):
            assert exchange(connection, "POST", "/v2/models/simple/infer", SIMPLE).status == 200
        before = cpu_s(server)
        time.sleep(1)
        assert cpu_s(server) - before < 0.3


def serving_pid(server):
    """The process itself, or its child where it is a supervisor."""
    pid = server.process.pid
    return int((Path(f"/proc/{pid}/task/{pid}/children").read_text().split() or [pid])[0])


def test_load_threads_end_when_nothing_is_loaded(repository):
    def threads():
        return [(task / "stat").read_text() for task in Path(f"/proc/{serving_pid(server)}/task").iterdir()]

    with serving("--load", "simple", "--threads", "2", "--intra-op-threads", "1", repository=repository) as server:
        deadline = time.monotonic() + 30
        while len(threads()) > 6:  # the loop, the log, the one for signals, two native ones, one of ONNX Runtime
            assert time.monotonic() < deadline, threads()
            time.sleep(0.05)
        assert server.post("/v2/models/slow/load").status == 200  # they come again
        assert server.infer("simple", SIMPLE).status == 200


def test_no_memory_for_a_body_is_told(tmp_path):
    (tmp_path / "same" / "1").mkdir(parents=True)
    (tmp_path / "same" / "1" / "model.onnx").write_bytes(onnx_models.identity("FP32"))
    count = 12 << 20
    header = json.dumps(
        {
            "inputs": [
                {"name": "x", "shape": [1, count], "datatype": "FP32", "parameters": {"binary_data_size": 4 * count}}
            ],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        }
    )
    body, fields = header.encode() + bytes(4 * count), {"Inference-Header-Content-Length": str(len(header))}
    with serving(repository=tmp_path) as server:
        pid = serving_pid(server)
        size = int(re.search(r"VmSize:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) << 10
        before = resource.prlimit(pid, resource.RLIMIT_AS, (size + (16 << 20), resource.RLIM_INFINITY))
        refused = server.request("POST", "/v2/models/same/infer", body, fields)
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert server.get("/v2/health/ready").status == 200
        resource.prlimit(pid, resource.RLIMIT_AS, before)
        answer = server.request("POST", "/v2/models/same/infer", body, fields)
        assert answer.status == 200
        assert answer.body.endswith(bytes(1000))


def test_a_run_that_cannot_be_ended_does_not_hold_up_the_end(tmp_path):
    (tmp_path / "long" / "1").mkdir(parents=True)
    (tmp_path / "long" / "1" / "model.onnx").write_bytes(onnx_models.one_long_operator())
    (tmp_path / "long" / "config.toml").write_text("max_batch_size = 0\n")
    body = json.dumps(inference(tensor("x", [1], "FP32", [0.0]))).encode()
    head = b"POST /v2/models/long/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with (
        serving("--drain-timeout-s", "0.2", repository=tmp_path) as server,
        socket.create_connection(("127.0.0.1", server.port)) as asking,
    ):
        asking.sendall(head + body)
        deadline = time.monotonic() + 30
        while not metric(server, "fastinfer_batches_running", "long"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert server.stop() == 0
