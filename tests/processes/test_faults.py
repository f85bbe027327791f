"""Processes that die: what their clients see, and that others take their places."""

from __future__ import annotations

import http.client
import os
import re
import signal
from pathlib import Path

import onnx_models
import pytest
from load_clients import load, wait_until
from support import exchange, inference, serving, tensor


def serving_process(server, connection):
    """The process that has the other end of a connection."""
    port = connection.sock.getsockname()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if (words[1].endswith(f":{server.port:04X}"), words[2].endswith(f":{port:04X}")) == (True, True):
            for pid in server.serving_pids():
                for file in Path(f"/proc/{pid}/fd").iterdir():
                    if file.readlink().name == f"socket:[{words[9]}]":
                        return pid
    raise AssertionError("nobody has the connection")


@pytest.mark.parametrize("processes", [1, 2])
def test_kill_under_load(processes):
    """What was in flight there fails, and nothing else: not even a new connection."""
    with serving("--load", "simple", "--processes", str(processes)) as server:
        for _ in range(3):
            before = server.serving_pids()
            victim = before[0]
            with load(server) as running:
                os.kill(victim, signal.SIGKILL)
                wait_until(lambda: len(server.serving_pids()) == processes and server.serving_pids() != before)  # noqa: B023
                running.goes_on()
                assert all(len(failures) <= 1 for failures in running.failures.values()), running.failed
            wait_until(lambda: f"process {victim} has ended: SIGKILL" in server.log)  # noqa: B023


@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_that_stands_still_is_killed(processes):
    options = ("--load", "simple", "--processes", str(processes), "--hang-timeout-s", "1")
    with serving(*options) as server:
        victim, *others = server.serving_pids()
        os.kill(victim, signal.SIGSTOP)
        wait_until(lambda: f"process {victim} has ended: SIGKILL" in server.log)
        wait_until(lambda: f"process {victim} has not answered for 1 s: it is killed" in server.log)
        wait_until(lambda: len(server.serving_pids()) == processes)
        server.load("models/digits")  # nobody waits for the one that is gone
        assert server.get("/v2/models/digits/ready").status == 200
        assert set(others) <= set(server.serving_pids())
        wait_until(lambda: server.log.count("it is killed") == 1)


def test_the_other_process_loses_nothing():
    with serving("--load", "simple", "--processes", "2") as server:
        connections = [server.connect() for _ in range(20)]
        for connection in connections:
            assert exchange(connection, "GET", "/v2/health/live").status == 200
        owners = [serving_process(server, connection) for connection in connections]
        assert len(set(owners)) == 2
        os.kill(owners[0], signal.SIGKILL)
        for connection, owner in zip(connections, owners, strict=True):
            if owner == owners[0]:
                with pytest.raises((http.client.HTTPException, OSError)):
                    exchange(connection, "GET", "/v2/health/live")
            else:
                assert exchange(connection, "GET", "/v2/health/ready").status == 200
            connection.close()


def divide(a, b):
    return inference(tensor("a", [1, 1], "INT32", [a]), tensor("b", [1, 1], "INT32", [b]))


def test_a_model_that_ends_its_process(tmp_path):
    (tmp_path / "division" / "1").mkdir(parents=True)
    (tmp_path / "division" / "1" / "model.onnx").write_bytes(onnx_models.divide())
    with serving(repository=tmp_path) as server:
        (first,) = server.serving_pids()
        assert server.infer("division", divide(7, 2)).json["outputs"][0]["data"] == [3]
        with pytest.raises((http.client.HTTPException, OSError)):
            server.infer("division", divide(-(2**31), -1))
        # Connections wait for the process that takes its place, which accepts when its models are back.
        assert server.infer("division", divide(7, 2)).json["outputs"][0]["data"] == [3]
        assert server.serving_pids() != [first]
        wait_until(lambda: f"process {first} has ended: SIGFPE" in server.log)


@pytest.mark.parametrize("processes", ["0", "1", "2"])
def test_an_address_that_is_taken(processes, tmp_path):
    with serving("--load", "none") as server:
        other = ["--port", str(server.port), "--processes", processes]
        with pytest.raises(AssertionError, match=r"cannot listen on 127.0.0.1:\d+: Address already in use"):
            serving(*other, repository=tmp_path).__enter__()


def test_two_servers_of_several_processes_do_not_share_an_address(tmp_path):
    with serving("--load", "none", "--processes", "2") as server:
        other = ["--port", str(server.port), "--processes", "2"]
        with pytest.raises(AssertionError, match="Address already in use"):
            serving(*other, repository=tmp_path).__enter__()


def test_the_supervisors_death_ends_the_others():
    with serving("--load", "simple", "--processes", "2") as server:
        children = server.serving_pids()
        server.process.kill()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
        with pytest.raises(ConnectionRefusedError):
            server.get("/v2")
        server.stop = server.process.wait  # it has ended already


def test_a_process_that_is_told_to_end_is_replaced_first():
    with serving("--load", "simple", "--processes", "1") as server, load(server) as running:
        (before,) = server.serving_pids()
        os.kill(before, signal.SIGTERM)
        wait_until(lambda: before not in server.serving_pids())
        assert server.get("/v2/models/simple/ready").status == 200
        assert not running.failed


def test_an_installation_that_cannot_serve_ends_at_once(tmp_path):
    """A package that was not built: one sentence, and no process is started again and again."""
    import fastinfer

    package = Path(fastinfer.__file__).parent
    for file in package.rglob("*.py"):
        copy = tmp_path / "fastinfer" / file.relative_to(package)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(file)
    with pytest.raises(AssertionError, match="fastinfer is not completely installed") as caught:
        serving("--load", "none", repository=tmp_path, env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path).__enter__()
    assert len(re.findall("not completely installed", str(caught.value))) == 1
