"""The end of a server: what a balancer, its clients and a container's supervisor see of it."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import onnx_models
import pytest
from load_clients import SIMPLE, load, wait_until
from support import REPOSITORY, exchange, serving

WARM_UP = """
max_batch_size = 0
[[model_warmup]]
name = "w"
[model_warmup.inputs.x]
data_type = "TYPE_FP32"
dims = [1]
zero_data = true
"""
_PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture
def hanging(tmp_path: Path) -> Path:
    """A repository with a model that loads, and one whose load runs an operator that takes minutes."""
    models = {
        "simple": (REPOSITORY / "simple" / "1" / "model.onnx").read_bytes(),
        "hanging": onnx_models.one_long_operator(),
    }
    for name, model in models.items():
        version = tmp_path / name / "1"
        version.mkdir(parents=True)
        (version / "model.onnx").write_bytes(model)
    (tmp_path / "hanging" / "config.toml").write_text(WARM_UP)
    return tmp_path


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # it was closed at once
        return False
    return False


def asking(server, model: str, body: bytes = b'{"inputs":[]}') -> http.client.HTTPConnection:
    """A connection with a request whose answer is not here yet."""
    connection = server.connect()
    connection.request("POST", f"/v2/models/{model}/infer", body)
    return connection


def in_flight(server, count: int) -> None:
    wait_until(lambda: f'fastinfer_requests_in_flight{{model="fake",version="1"}} {count}.0' in server.metrics())


# --- The delay --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_a_delay_lets_a_balancer_notice(processes):
    """Not ready, and otherwise as before, with `Connection: close`; another signal ends the delay, and drains."""
    options = ("--load", "simple", "--processes", str(processes), "--shutdown-delay-s", "600")
    with serving(*options) as server, contextlib.closing(server.connect()) as kept:
        server.load("workers/fake", {"delay_ms": 1000})
        path = "/v2/models/simple/infer"
        assert "connection" not in exchange(kept, "POST", path, SIMPLE).headers
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.get("/v2/health/ready").status == 503)
        assert server.get("/v2/health/live").status == 200
        answer = exchange(kept, "POST", path, SIMPLE)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        for _ in range(20):  # in any of the processes
            assert server.get("/v2/health/ready").status == 503
            answer = server.infer("simple", SIMPLE)
            assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert server.post("/v2/models/digits/load").status == 200
        running = asking(server, "fake")
        in_flight(server, 1)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(server.port))
        assert running.getresponse().status == 200
        running.close()
        assert server.process.wait(30) == 0
        server.stop = server.process.wait


def test_the_end_comes_after_the_delay():
    with serving("--load", "simple", "--shutdown-delay-s", "0.5") as server, load(server) as running:
        assert server.stop() == 0
        assert not running.failed


def test_a_process_that_dies_in_the_delay_is_replaced():
    with serving("--load", "simple", "--processes", "2", "--shutdown-delay-s", "600") as server:
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.get("/v2/health/ready").status == 503)
        before = server.serving_pids()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server.log.count("'simple' version 1: ") == 4)
        assert not set(before) & set(server.serving_pids())
        for _ in range(20):
            answer = server.infer("simple", SIMPLE)
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert server.get("/v2/health/ready").status == 503
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "SIGHUP is ignored" in server.log)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0
        server.stop = server.process.wait


# --- What is given up -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_what_is_given_up_is_answered_with_503(processes):
    """Running, waiting in the model's queue, and on its way."""
    with serving("--load", "none", "--processes", str(processes), "--drain-timeout-s", "0.5") as server:
        server.load("workers/fake", {"delay_ms": 50_000, "instances": 1})
        waiting = [asking(server, "fake") for _ in range(4)]
        in_flight(server, 4)
        upload = server.connect()
        upload.putrequest("POST", "/v2/models/fake/infer")
        upload.putheader("Content-Length", "100000")
        upload.endheaders(b"x" * 1000)
        waiting.append(upload)
        server.process.send_signal(signal.SIGTERM)
        for connection in waiting:
            answer = connection.getresponse()
            assert (answer.status, answer.headers["retry-after"], answer.headers["connection"]) == (503, "1", "close")
            assert json.loads(answer.read()) == {"error": "the server is ending"}
            connection.close()
        assert server.process.wait(30) == 0
        server.stop = server.process.wait


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_the_end_at_once_answers_too(processes):
    with serving("--load", "none", "--processes", str(processes)) as server:
        server.load("workers/fake", {"delay_ms": 50_000})
        running = asking(server, "fake")
        in_flight(server, 1)
        server.process.send_signal(signal.SIGINT)
        wait_until(lambda: refuses(server.port))
        server.process.send_signal(signal.SIGINT)
        assert running.getresponse().status == 503
        running.close()
        assert server.process.wait(15) == 0  # and not after the 20 seconds of a drain
        server.stop = server.process.wait


# --- Signals at bad moments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_a_load_that_hangs_does_not_hold_up_the_end(hanging, processes):
    with serving(
        "--load", "simple", "--processes", str(processes), "--drain-timeout-s", "0.5", repository=hanging
    ) as server:
        loading = server.connect()
        loading.request("POST", "/v2/models/hanging/load")
        wait_until(lambda: "hanging" in str([each for each in index(server) if each["state"] == "LOADING"]))
        server.process.send_signal(signal.SIGTERM)
        assert loading.getresponse().status == 503
        loading.close()
        assert server.process.wait(30) == 0
        server.stop = server.process.wait


def index(server):
    return server.post("/v2/repository/index").json


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_the_end_while_models_are_loaded_for_the_first_time(hanging, processes):
    """What waits for a connection is answered, too, though no process accepts yet."""
    options = ("--load", "simple", "hanging", "--processes", str(processes), "--drain-timeout-s", "0.5")
    with serving(*options, repository=hanging, wait=False) as server:
        waiting = [asking(server, "simple", json.dumps(SIMPLE).encode()) for _ in range(4)]
        server.process.send_signal(signal.SIGTERM)
        for connection in waiting:
            assert connection.getresponse().status in (200, 503)
            connection.close()
        assert server.process.wait(30) == 0
        server.stop = server.process.wait


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.2, 0.4, 0.6])
@pytest.mark.parametrize("processes", [1, 2])
def test_the_end_during_the_start(processes, delay_s):
    """Before there is a process that can be talked to: those who wait are answered, nobody is reset."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "fastinfer", "serve", "--load", "simple", "--processes", str(processes)]
    words += ["--port", str(port), "--model-repository", str(REPOSITORY)]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: not refuses(port))
            with socket.create_connection(("127.0.0.1", port), timeout=20) as waiting:
                waiting.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: a\r\n\r\n")
                time.sleep(delay_s)
                server.send_signal(signal.SIGTERM)
                assert re.match(rb"HTTP/1.1 (503|200) ", waiting.recv(1000))
            assert server.wait(30) == 0
        finally:
            server.kill()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("supervisor_first", [True, False])
def test_a_signal_for_all_processes_at_once(processes, supervisor_first):
    with serving("--load", "none", "--processes", str(processes)) as server:
        server.load("workers/fake", {"delay_ms": 1000})
        running = [asking(server, "fake") for _ in range(4)]
        in_flight(server, 4)
        pids = [server.process.pid, *server.serving_pids()]
        for pid in pids if supervisor_first else pids[::-1]:
            os.kill(pid, signal.SIGTERM)
        for connection in running:
            assert connection.getresponse().status == 200
            connection.close()
        assert server.process.wait(30) == 0
        server.stop = server.process.wait


@pytest.mark.parametrize("processes", [1, 2])
def test_the_end_during_a_restart(processes):
    with serving("--load", "simple", "--processes", str(processes)) as server, load(server) as running:
        for delay_s in (0.0, 0.3):
            server.process.send_signal(signal.SIGHUP)
            time.sleep(delay_s)
        assert server.stop() == 0
        assert not running.failed


# --- State and debug logging ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_the_state_is_written_to_the_log(processes):
    with serving("--load", "simple", "--processes", str(processes)) as server:
        server.load("workers/fake", {"delay_ms": 50_000, "instances": 1})
        waiting = [asking(server, "fake") for _ in range(4)]
        in_flight(server, 4)
        upload = server.connect()
        upload.putrequest("POST", "/v2/models/simple/infer")
        upload.putheader("Content-Length", "100000")
        upload.endheaders(b"x" * 777)
        wait_until(lambda: "fastinfer_in_flight_bytes 777" in server.metrics())
        server.process.send_signal(signal.SIGUSR1)
        count = max(processes, 1)
        wait_until(lambda: told(server) == count and server.log.count("state of the supervisor") == (processes > 0))
        log = server.log
        assert log.count("state of process") == count
        assert log.count("thread 'MainThread': ") == count + (processes > 0)
        assert (
            log.count("< serve_for (fastinfer/cli/process.py:" if processes else "< serve (fastinfer/cli/process.py:")
            == count
        )
        stages = re.findall(r"request: POST \w+ (\w+): (\w+)", log)
        assert sorted(stages) == [("fake", "queued")] * (4 - count) + [("fake", "running")] * count + [
            ("simple", "receiving")
        ] or (processes == 2 and ("simple", "receiving") in stages and len(stages) == 5)
        assert "777 bytes so far" in log
        assert sum(map(int, re.findall(r"model 'fake' version 1: (\d) requests in flight", log))) == 4
        assert "1 receives a body" in log
        server.process.send_signal(signal.SIGUSR1)  # it lives, and does it again
        wait_until(lambda: told(server) == 2 * count)
        assert server.get("/v2/health/ready").status == 200
        upload.close()
        for connection in waiting:
            connection.close()


def told(server) -> int:
    """How many serving processes have written the last lines of their state."""
    return len(re.findall(r"native threads: \d+ of \d+ busy", server.log))


def test_the_state_tells_what_an_operation_waits_for(hanging):
    with serving("--load", "simple", "--processes", "2", repository=hanging) as server:
        loading = server.connect()
        loading.request("POST", "/v2/models/hanging/load")
        wait_until(lambda: "hanging" in str([each for each in index(server) if each["state"] == "LOADING"]))
        server.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: told(server) == 2)
        wait_until(lambda: re.search(r"task: .*Operations\.\w+:\d+ \[load_model\]", server.log))
        loading.close()
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == 0
        server.stop = server.process.wait


def test_debug_logging_in_all_processes():
    with serving("--load", "simple", "--processes", "2") as server:
        server.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: server.log.count("debug logging is on") == 3)
        os.kill(server.serving_pids()[0], signal.SIGKILL)  # so is the next one
        wait_until(lambda: server.log.count("debug logging is on") == 4)
        wait_until(lambda: len(server.serving_pids()) == 2)
        wait_until(lambda: "DEBUG    process" in server.log)
        server.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: server.log.count("debug logging is off; the level is info") == 3)
        pid = server.serving_pids()[0]
        os.kill(pid, signal.SIGUSR2)  # one alone
        wait_until(lambda: server.log.count("debug logging is on") == 5)
        assert server.get("/v2/health/ready").status == 200


@pytest.mark.parametrize("processes", [0, 2])
def test_signals_at_any_moment_of_a_start_end_nothing(processes):
    words = [sys.executable, "-m", "fastinfer", "serve", "--load", "simple", "--processes", str(processes)]
    words += ["--port", "0", "--model-repository", str(REPOSITORY)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        try:
            lines: list[str] = []
            reading = threading.Thread(target=lambda: lines.extend(iter(server.stderr.readline, "")))
            wait_until(lambda: holds_signals(server.pid))
            reading.start()
            children: set[int] = set()
            while not any("ready: 1 models" in line for line in lines):
                assert server.poll() is None
                now = set(children_of(server.pid))
                children |= now
                for pid in (server.pid, *now):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGUSR1)
                        os.kill(pid, signal.SIGUSR2)
                time.sleep(0.02)
            assert len(children) == processes
            server.terminate()
            assert server.wait(30) == 0
            reading.join()
        finally:
            server.kill()


def holds_signals(pid: int) -> bool:
    blocked = re.search(r"SigBlk:\s+(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(blocked[1], 16) >> signal.SIGUSR1 - 1 & 1)


def children_of(pid: int) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if path.read_text().rpartition(")")[2].split()[1] == str(pid):
                yield int(path.parent.name)


# --- The first process of a container ---------------------------------------------------------------------------------


def become_reaper() -> None:
    """As a container's first process does, this one inherits processes whose parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def test_a_supervisor_collects_processes_that_were_left_to_it():
    """Those of a shell that it took over from, and orphans; its own children's ends are still known to it."""
    serve = f"exec {sys.executable} -m fastinfer serve --load simple --processes 2 --port 0 --model-repository"
    script = f"for i in 1 2 3 4 5; do (sleep 2.$i & sleep 3.$i &); sleep 1.$i & done; {serve} {REPOSITORY}"
    with subprocess.Popen(["sh", "-c", script], stderr=subprocess.PIPE, text=True, preexec_fn=become_reaper) as server:
        try:
            lines: list[str] = []
            reading = threading.Thread(target=lambda: lines.extend(iter(server.stderr.readline, "")))
            reading.start()
            wait_until(lambda: any("ready: 1 models" in line for line in lines))
            wait_until(lambda: len(list(children_of(server.pid))) == 2)  # all others have ended, and are gone
            victim = next(children_of(server.pid))
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: any("SIGKILL" in line for line in lines))
            wait_until(lambda: len(list(children_of(server.pid))) == 2 and victim not in children_of(server.pid))
            server.terminate()
            assert server.wait(30) == 0
            reading.join()
            assert not any("Unknown child" in line for line in lines)
        finally:
            server.kill()
