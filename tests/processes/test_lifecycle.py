"""Start, rolling restart and end of a server of several processes, and of one."""

from __future__ import annotations

import http.client
import json
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from load_clients import SIMPLE, load, wait_until
from support import REPOSITORY, serving


@pytest.mark.parametrize("processes", [1, 2])
def test_rolling_restart_under_load(processes):
    with serving("--load", "simple", "--processes", str(processes)) as server, load(server) as running:
        for round_ in range(1, 3):
            before = set(server.serving_pids())
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: server.log.count("restarted:") == round_)  # noqa: B023
            wait_until(lambda: len(server.serving_pids()) == processes)
            assert not before & set(server.serving_pids())
        running.goes_on()
        assert not running.failed
        assert "ended:" not in server.log  # nobody was replaced because of a fault


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_end_under_load(processes):
    for _ in range(3):
        with (
            serving("--load", "simple", "--processes", str(processes)) as server,
            load(server) as running,
        ):
            assert server.stop() == 0
            children = server.log.count("ended")
            assert children == 1
        assert not running.failed


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
@pytest.mark.parametrize("processes", [1, 2])
def test_what_takes_long_is_finished(processes, number):
    """Uploads, large bodies, slow runs, pipelined requests, old clients: begun before the signal, ended after it."""
    values = (
        b'{"inputs":[{"name":"INPUT0","shape":[1,2000000],"datatype":"FP32","data":[' + b"0.5," * 1_999_999 + b"1]}]}"
    )
    small, slow = json.dumps(SIMPLE).encode(), json.dumps({"inputs": []}).encode()
    with serving("--load", "simple", "identity_fp32", "--processes", str(processes)) as server:
        server.load("workers/fake", {"delay_ms": 1500})
        address = ("127.0.0.1", server.port)
        upload, large, running, pipelining, old, last = (socket.create_connection(address, 60) for _ in range(6))
        upload.sendall(post("simple", small)[:-9])
        large.sendall(post("identity_fp32", values)[:5_000_000])
        running.sendall(post("fake", slow))
        pipelining.sendall(post("simple", small))
        assert receive(pipelining, 1) == [200]
        pipelining.sendall(post("fake", slow) * 12)
        old.sendall(post("fake", slow, "HTTP/1.0"))
        last.sendall(post("fake", slow)[:-1])
        wait_until(lambda: 'fastinfer_requests_in_flight{model="fake",version="1"} 14.0' in metrics(server))
        server.process.send_signal(number)
        if number == signal.SIGHUP:
            wait_until(lambda: "restarted:" in server.log)
        else:
            wait_until(lambda: refuses(server))
        upload.sendall(post("simple", small)[-9:])
        large.sendall(post("identity_fp32", values)[5_000_000:])
        last.sendall(post("fake", slow)[-1:])
        for connection, count in ((upload, 1), (large, 1), (running, 1), (pipelining, 12), (old, 1), (last, 1)):
            assert receive(connection, count) == [200] * count
            connection.close()
        assert server.stop() == 0


def post(model, body, version="HTTP/1.1"):
    return b"POST /v2/models/%b/infer %b\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (
        model.encode(), version.encode(), len(body), body)  # fmt: skip


def receive(connection, count):
    """The statuses of so many answers."""
    with connection.makefile("rb") as file:
        statuses = []
        for _ in range(count):
            statuses.append(int(file.readline().split()[1]))
            file.read(int(http.client.parse_headers(file)["Content-Length"]))
        return statuses


def refuses(server):
    try:
        socket.create_connection(("127.0.0.1", server.port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_second_signal_ends_at_once():
    with serving("--load", "none", "--processes", "2") as server:
        assert server.post("/v2/workers/fake/load", {"delay_ms": 50_000}).status == 200
        connection = server.connect()
        connection.request("POST", "/v2/models/fake/infer", json.dumps({"inputs": []}))
        wait_until(lambda: 'fastinfer_requests_in_flight{model="fake",version="1"} 1.0' in metrics(server))
        server.process.send_signal(signal.SIGINT)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        connection.close()
        server.stop = server.process.wait


def metrics(server):
    return server.get("/metrics").body.decode()


def test_no_supervisor():
    with serving("--load", "simple", "--processes", "0") as server:
        assert server.serving_pids() == []
        assert server.get("/v2/models/simple/ready").status == 200


def test_the_supervisor_imports_no_data_plane():
    code = (
        "import sys, fastinfer.supervisor.server\n"
        "heavy = ('fastinfer.backends.onnx.ort', 'fastinfer.tensor.tensor', 'onnxruntime', 'numpy', 'uvloop')\n"
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_log_tells_the_process_and_the_address_once():
    with serving("--load", "simple", "--processes", "2") as server:
        lines = server.log.splitlines()
        assert len([line for line in lines if "http://" in line]) == 1
        assert {line.split()[3] for line in lines if "'simple'" in line} == {"[0]", "[1]"}
        assert len([line for line in lines if "ready: 1 models" in line]) == 1
    with serving("--load", "simple", "--processes", "2", "--log-format", "json") as server:
        records = [json.loads(line) for line in server.log.splitlines()]
        assert {record["slot"] for record in records if "'simple'" in record["message"]} == {0, 1}


def test_a_restart_reads_the_configuration_file_again(tmp_path):
    file = tmp_path / "server.toml"
    file.write_text('server_name = "before"\nlog_level = "info"')
    with serving("--load", "none", "--config", str(file)) as server:
        assert server.get("/v2").json["name"] == "before"
        file.write_text("server_name = 3")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "nothing is restarted, because the configuration cannot be used" in server.log)
        file.write_text('server_name = "after"\nprocesses = 2')
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "restarted:" in server.log)
        assert server.get("/v2").json["name"] == "after"
        wait_until(lambda: "processes cannot change while the server runs" in server.log)


def test_a_restart_stops_where_a_model_is_gone(tmp_path):
    shutil.copytree(REPOSITORY / "simple", tmp_path / "simple")
    with serving(repository=tmp_path) as server:
        before = server.serving_pids()
        shutil.rmtree(tmp_path / "simple")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "the rolling restart has stopped" in server.log)
        wait_until(lambda: server.serving_pids() == before)
        assert server.get("/v2/models/simple/ready").status == 200
        shutil.copytree(REPOSITORY / "simple", tmp_path / "simple")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "restarted:" in server.log)
        assert server.serving_pids() != before


def test_models_come_and_go_during_restarts_and_the_end():
    """Control requests are requests: none fails because a process hands over, or ends."""
    with serving("--load", "simple", "--processes", "2") as server:
        found: Counter[object] = Counter()
        ending = threading.Event()

        def control(name: str) -> None:
            while True:
                for action in ("load", "unload"):
                    try:
                        found[server.post(f"/v2/models/{name}/{action}").status] += 1
                    except ConnectionRefusedError:  # the server has ended
                        assert ending.is_set()
                        return

        with ThreadPoolExecutor(8) as clients:
            controlling = [clients.submit(control, name) for name in ("digits", "simple") * 4]
            for round_ in range(1, 4):
                server.process.send_signal(signal.SIGHUP)
                wait_until(lambda: server.log.count("restarted:") == round_)  # noqa: B023
            ending.set()
            assert server.stop() == 0
            for each in controlling:
                each.result()
        assert list(found) == [200]


def test_files_that_may_not_be_large():
    """``ulimit -f``, perhaps to keep the log small: the counters' memory is a file to the kernel, too."""
    with serving("--load", "simple", limits={resource.RLIMIT_FSIZE: (1 << 16, resource.RLIM_INFINITY)}) as server:
        assert server.get("/v2/models/simple/ready").status == 200
    with pytest.raises(AssertionError, match="memory to share between processes cannot be created: File too large"):
        serving("--load", "simple", limits={resource.RLIMIT_FSIZE: (1 << 16, 1 << 16)}).__enter__()
