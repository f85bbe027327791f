"""The bench itself: what it sends is right, wrong answers do not pass, and a late server cannot hide its lateness."""

from __future__ import annotations

import http.server
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("hdrh")
sys.path.append(str(Path(__file__).parents[2]))

from bench.environments import ROOT
from bench.load import goals, loadgen, report
from bench.load.scenarios import SIMPLE, Case, cases, tensors_binary
from bench.peers import PEERS

OUTPUTS = {"y": np.array([[1.5, -2.0]], np.float32)}
CASE = Case("/v2/models/m/infer", b"{}", None, OUTPUTS)
RIGHT = CASE.answer()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers each request with what the server says, after as many seconds as it says."""

    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.server.accepted += 1

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.server.delays.pop(0) if self.server.delays else 0.2 * (self.path == "/slow"))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else self.server.status)
        self.send_header("Content-Length", str(len(self.server.answer)))
        for name, value in self.server.fields.items():
            self.send_header(name, value)  # BaseHTTPRequestHandler acts on Connection: close, too
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.answer, made.status, made.delays, made.accepted = RIGHT, 200, [], 0
    made.statuses, made.fields = [], {}
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def run(server, **options):
    asked = [(SIMPLE, [CASE])]
    return loadgen.run(server.server_address[1], asked, 2, 0.3, warmup=0, **options)


def test_the_closed_loop_counts_every_answer(server):
    measured = run(server)
    assert measured["errors"] == measured["unfinished"] == measured["unchecked"] == 0
    assert measured["answered"] >= measured["classes"]["simple"]["requests"] > 0
    assert 0 < measured["p50_us"] <= measured["p99_us"] <= measured["max_us"]


def test_the_open_loop_sends_what_is_due_and_nothing_else(server):
    measured = run(server, rate=100)
    assert measured["classes"]["simple"]["requests"] == 30


def test_latency_counts_from_the_moment_a_request_was_due(server):
    server.delays = [0.2, 0.2]  # both connections stall: what is due meanwhile waits in the client
    measured = run(server, rate=100)
    assert measured["classes"]["simple"]["requests"] == 30
    assert measured["classes"]["simple"]["p50_us"] > 20_000


def test_a_small_request_never_waits_in_the_client_because_of_large_ones(server):
    large = replace(CASE, path="/slow", body=bytes(3_000_000))
    asked = [(SIMPLE, [CASE]), (replace(SIMPLE, name="large"), [large])]
    measured = loadgen.run(server.server_address[1], asked, 4, 0.3, rate=100, warmup=0)
    assert measured["classes"]["large"]["p50_us"] > 200_000  # two connections of them cannot keep up
    assert measured["classes"]["simple"]["requests"] == 15
    assert measured["classes"]["simple"]["p50_us"] < 150_000


def test_silent_connections_are_open_and_ask_nothing(server):
    assert run(server, silent=5)["errors"] == 0
    assert server.accepted == 2 + 5


def test_a_connection_that_the_server_ends_is_opened_anew(server):
    server.fields = {"Connection": "close"}
    measured = run(server, rate=50)
    assert (measured["errors"], measured["answered"]) == (0, 15)
    assert server.accepted >= 15


def test_answers_are_counted_by_status(server):
    server.statuses = [503] * 5
    server.fields = {"Retry-After": "1"}
    measured = run(server, rate=50, errors_allowed=True)
    counted = measured["classes"]["simple"]
    assert counted["statuses"] == {"200": 10, "503": 5}
    assert (counted["refusals"]["requests"], counted["without_retry_after"], measured["errors"]) == (5, 0, 5)
    server.statuses, server.fields = [503] * 5, {}
    assert run(server, rate=50, errors_allowed=True)["classes"]["simple"]["without_retry_after"] == 5


def test_right_answers_are_demanded_among_errors(server):
    server.statuses, server.answer = [503], b"{}"
    with pytest.raises(loadgen.WrongAnswer):
        run(server, rate=50, errors_allowed=True)


def test_a_run_may_end_when_nobody_listens(server):
    server.fields = {"Connection": "close"}
    threading.Timer(0.3, server.socket.close).start()
    asked = [(SIMPLE, [CASE])]
    options = {"rate": 50, "warmup": 0, "until_refused": True, "errors_allowed": True}
    measured = loadgen.run(server.server_address[1], asked, 2, 60, **options)
    assert measured["refused"] > 0
    assert measured["errors"] == measured["refused"]
    assert measured["unfinished"] == 0
    assert 0 < measured["answered"] < 3000


@pytest.mark.parametrize(
    "answer",
    [
        b"{}",
        RIGHT.replace(b"1.5", b"1.6"),
        RIGHT.replace(b'"y"', b'"z"'),
        RIGHT.replace(b"[1,2]", b"[2,1]"),
        RIGHT.replace(b"FP32", b"FP64"),
        b"not JSON",
    ],
)
def test_a_wrong_answer_does_not_pass(server, answer):
    server.answer = answer
    with pytest.raises(loadgen.WrongAnswer):
        run(server)


def test_an_error_does_not_pass(server):
    server.status = 503
    with pytest.raises(loadgen.WrongAnswer, match="503"):
        run(server)


def test_binary_answers_are_checked():
    text = b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}]}'
    CASE.check(text + OUTPUTS["y"].tobytes(), len(text))
    with pytest.raises(ValueError, match="expected"):
        CASE.check(text + bytes(8), len(text))


def test_binary_requests_have_their_tensors_behind_the_text():
    body, size = tensors_binary(OUTPUTS)
    assert body[size:] == OUTPUTS["y"].tobytes()
    assert dict(Case("/", body, size, {}).headers())["Inference-Header-Content-Length"] == str(size)


def test_cases_are_always_the_same():
    files = {"simple": ROOT / "model-repository" / "simple" / "1" / "model.onnx"}
    first, second = cases(SIMPLE, files), cases(SIMPLE, files)
    assert [case.body for case in first] == [case.body for case in second]
    assert len({case.body for case in first}) == SIMPLE.variants


def test_what_is_absent_is_in_the_report():
    def cell(server, **more):
        head = {"scenario": "simple", "connections": 64, "load": None, "server": server}
        rate = {"requests_per_s": 50.0, "p50_us": 1, "p99_us": 2, "server_user_us": 1, "server_sys_us": 1}
        rounds = [rate | {"requests_per_s": 40.0}, rate | {"requests_per_s": 60.0}]
        return head | ({"median": rate, "classes": {}, "spread": [40, 60], "rounds": rounds} | more)

    result = {
        "time": "now",
        "commit": "",
        "took_s": 1,
        "machine": {"cpu": "a", "cores": 2, "kernel": "k", "load_before": 0},
        "versions": {},
        "method": {"rounds": 2, "seconds": 1, "client": "wrk", "pin": False, "quick": False},
        "servers": dict.fromkeys(("naive", "fastinfer"), ""),
        "absent": {"triton": "no such\nwheel"},
        "results": [cell("naive"), cell("fastinfer")],
    }
    result["results"][1]["rounds"][0]["batches"] = {"1": 1, "8": 3}
    result["goals"] = goals.rows(result)
    text = report.markdown(result, [])
    assert "| triton | all | no such wheel |" in text
    assert "| simple | 64 | 1.00 |" in text
    assert "| ≥ 3.5 | 1.00 (1.00 to 1.00) | **missed** |" in text
    assert "| ≥ 60 | – | **not measured** | mlserver in simple at 64 is not part of this run |" in text
    assert "50 ±20%" in text
    assert "| simple, 64 connections | 25 % | 75 % |" in text


def test_every_peer_says_what_it_is():
    assert [name for name, peer in PEERS.items() if name != peer.name or not (peer.note or name == "fastinfer")] == []
