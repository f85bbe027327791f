"""Loads and unloads are the whole server's, and a process that takes another one's place has the same models."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal

import onnx_models
import pytest
from load_clients import wait_until
from support import REPOSITORY, exchange, inference, serving, tensor

CONNECTIONS = 12  # that all are accepted by one of two processes is as likely as 11 heads in a row


@pytest.fixture
def server():
    with serving("--load", "simple", "--processes", "2") as running:
        yield running


def everywhere(server, method, path, body=None):
    """The different answers that several connections get."""
    found = []
    for _ in range(CONNECTIONS):
        answer = server.request(method, path, body)
        if (answer.status, answer.body) not in found:
            found.append((answer.status, answer.body))
    return found


def names(server):
    """The models; they are the same on every connection."""
    (answer,) = everywhere(server, "GET", "/v2/models")
    return sorted(answer[1].decode().split('"')[3::2])


def settled(server):
    """After a crash: ends the process that was left, so that only ones that were made equal are there."""
    server.replace()
    server.replace()


def test_loads_and_unloads_are_seen_everywhere(server):
    assert server.post("/v2/models/digits/load").status == 200
    assert names(server) == ["digits", "simple"]
    assert server.post("/v2/models/digits/load", {"batch_size": 4}).json["name"] == "digits-0"
    assert server.post("/v2/workers/echo/load").status == 200
    assert names(server) == ["digits", "digits-0", "echo", "simple"]
    assert server.post("/v2/models/digits/unload").status == 200
    assert names(server) == ["digits-0", "echo", "simple"]
    assert everywhere(server, "GET", "/v2/models/digits/ready")[0][0] == 404


def test_a_failed_load_changes_nothing_anywhere(server):
    for path, body in (
        ("/v2/models/nope/load", None),
        ("/v2/models/digits/load", {"batch_size": 0}),
        ("/v2/models/digits/load", {"config": "{"}),
        ("/v2/workers/echo/load", {"next": "nope"}),
    ):
        answer = server.post(path, body)
        assert answer.status == 400
        assert answer.error
    assert names(server) == ["simple"]


def test_loads_of_many_clients_at_once(server):
    import concurrent.futures

    def one(number):
        name = server.post("/v2/workers/echo/load", {"number": number % 4}).body.decode()
        return name, server.post("/v2/models/digits/load").status

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(one, range(24)))
    assert {status for _, status in made} == {200}
    assert {name for name, _ in made} == {"echo", "echo-0", "echo-1", "echo-2"}
    assert names(server) == ["digits", "echo", "echo-0", "echo-1", "echo-2", "simple"]


def test_models_come_back_as_they_were(server):
    base = "/v2/models/two_versions"
    assert server.post("/v2/models/digits/load").status == 200
    assert server.post("/v2/models/digits/load", {"batch_size": 4}).json["name"] == "digits-0"
    assert server.post("/v2/models/digits/unload").status == 200
    assert server.post("/v2/models/identity_fp32/load", {"config": '{"max_batch_size": 3}'}).status == 200
    assert server.post(base + "/versions/1/load").status == 200
    for _ in range(2):
        assert server.post("/v2/workers/echo/load", {"share": False}).body == b"echo"
    assert server.post("/v2/workers/echo/load", {"next": "echo"}).body == b"echo-0"
    before = names(server)
    assert before == ["digits-0", "echo", "echo-0", "identity_fp32", "simple", "two_versions"]
    settled(server)
    assert names(server) == before
    assert everywhere(server, "GET", base)[0][1].count(b'"versions":["1"]') == 1
    four = inference(tensor("INPUT0", [4, 1], "FP32", [1, 2, 3, 4]))
    assert server.infer("identity_fp32", four).status == 400
    assert (
        everywhere(server, "POST", "/v2/models/echo-0/infer", inference(tensor("x", [1], "UINT32", [1])))[0][0] == 200
    )
    for expected in (["echo", "echo-0"], ["echo", "echo-0"], ["echo", "echo-0"]):  # it is held by echo-0 at last
        assert [name for name in names(server) if name.startswith("echo")] == expected
        assert server.post("/v2/models/echo/unload").status == 200
    assert server.post("/v2/models/echo-0/unload").status == 200
    assert "does not serve the same models" not in server.log
    assert [name for name in names(server) if name.startswith("echo")] == []


def turned_round() -> bytes:
    """A model like ``onnx_models.identity("FP32")``, with other answers."""
    tensors = [onnx_models.value(name, "FP32", ["batch", None]) for name in "xy"]
    return onnx_models.model([onnx_models.helper.make_node("Neg", ["x"], ["y"])], tensors[:1], tensors[1:])


def answers(server):
    body = inference(tensor("x", [1, 2], "FP32", [1, 2]))
    return everywhere(server, "POST", "/v2/models/m/infer", body)


def test_files_that_have_changed_meanwhile(tmp_path):
    """A new process can only have what lies on the disk now: then all have it."""
    file = tmp_path / "m" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(onnx_models.identity("FP32"))
    with serving("--processes", "2", repository=tmp_path) as server:
        (before,) = answers(server)
        (tmp_path / "m" / "2").mkdir()
        shutil.copy(file, tmp_path / "m" / "2")  # a version that nobody has asked for
        file.write_bytes(turned_round())
        assert answers(server) == [before]
        server.replace()
        wait_until(lambda: "all processes load it again" in server.log)
        wait_until(lambda: len(found := answers(server)) == 1 and b"-1" in found[0][1])
        assert server.get("/v2/models/m").json["versions"] == ["1"]


def test_a_restart_takes_what_lies_on_the_disk(tmp_path):
    file = tmp_path / "m" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(onnx_models.identity("FP32"))
    with serving("--processes", "2", repository=tmp_path) as server:
        file.write_bytes(turned_round())
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "restarted:" in server.log)
        wait_until(lambda: len(server.serving_pids()) == 2)
        (found,) = answers(server)
        assert b"-1" in found[1]
        settled(server)
        assert answers(server) == [found]
        wait_until(lambda: server.log.count("load it again") == 1)  # by the restart, and it is no news any more


def test_a_process_that_cannot_have_the_same_models_stays_away(tmp_path):
    for name in ("simple", "digits"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    with serving("--processes", "2", repository=tmp_path) as server:
        shutil.rmtree(tmp_path / "digits")
        os.kill(server.serving_pids()[0], signal.SIGKILL)
        wait_until(lambda: "'digits' cannot be restored" in server.log)
        assert names(server) == ["digits", "simple"]  # of the one that is left, on all connections
        shutil.copytree(REPOSITORY / "digits", tmp_path / "digits")
        wait_until(lambda: "all processes load it again" in server.log)
        assert names(server) == ["digits", "simple"]


def test_the_only_process_serves_what_it_can(tmp_path):
    for name in ("simple", "digits"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    with serving(repository=tmp_path) as server:
        shutil.rmtree(tmp_path / "digits")
        server.replace()
        assert server.get("/v2/models/simple/ready").status == 200
        answer = server.get("/v2/models/digits/ready")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert server.get("/v2/health/ready").status == 503
        assert server.post("/v2/models/digits/unload").status == 200
        assert server.get("/v2/health/ready").status == 200


def test_what_changes_on_the_disk_is_followed_by_all(tmp_path):
    shutil.copytree(REPOSITORY / "simple", tmp_path / "simple")
    options = ("--processes", "2", "--model-control", "poll", "--poll-interval-s", "0.1")
    with serving(*options, repository=tmp_path) as server:
        shutil.copytree(REPOSITORY / "digits", tmp_path / "digits")
        wait_until(lambda: everywhere(server, "GET", "/v2/models/digits/ready")[-1][0] == 200)
        server.replace()
        shutil.rmtree(tmp_path / "simple")
        wait_until(lambda: [found[0] for found in everywhere(server, "GET", "/v2/models/simple/ready")] == [404])
        assert names(server) == ["digits"]


def test_ready_is_the_whole_server(tmp_path):
    """While any process loads, none says that the server is ready; when one does, every connection finds the models."""
    shutil.copytree(REPOSITORY / "simple", tmp_path / "simple")
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "model.onnx").write_bytes(b"x")
    with serving("--processes", "2", repository=tmp_path, wait=False) as server:
        wait_until(lambda: "not ready: " in server.log)
        (answer,) = everywhere(server, "GET", "/v2/health/ready")
        assert answer[0] == 503
        assert b"broken" in answer[1]
        assert server.post("/v2/models/broken/unload").status == 200
        assert everywhere(server, "GET", "/v2/health/ready") == [(200, b'{"ready":true}')]


def test_what_is_ready_is_ready_on_every_connection():
    with serving("--processes", "2", wait=False) as server, contextlib.ExitStack() as stack:
        while server.get("/v2/health/ready").status != 200:
            pass
        connections = [stack.enter_context(contextlib.closing(server.connect())) for _ in range(CONNECTIONS)]
        for connection in connections:
            assert exchange(connection, "GET", "/v2/models/convnet/ready").status == 200


def test_trials_are_not_repeated_by_processes_that_take_anothers_place(tmp_path):
    shutil.copytree(REPOSITORY / "simple", tmp_path / "simple")
    known = "the trial of rows is known from before: they are independent"
    body = inference(*(tensor(name, [1, 16], "INT32", [0] * 16) for name in ("INPUT0", "INPUT1")))
    with serving("--log-level", "debug", repository=tmp_path) as server:
        assert known not in server.log
        server.replace()
        assert server.infer("simple", body).status == 200
        wait_until(lambda: server.log.count(known) == 1)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "restarted:" in server.log)
        wait_until(lambda: server.log.count(known) == 2)
        (tmp_path / "simple" / "1" / "model.onnx").touch()
        assert server.post("/v2/models/simple/load").status == 200
        server.replace()
        assert server.infer("simple", body).status == 200
        wait_until(lambda: server.log.count(known) == 4)  # of the load, too: the content is the same
