"""Before the repository was read, without any model, with one that does not load."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import onnx_models
import pytest
from gate import Gate
from support import REPOSITORY, Server, inference, serving, tensor, wait_for

NOT_READ = "the model repository has not been read yet"
SIMPLE = inference(tensor("INPUT0", [1, 16], "INT32", [0] * 16), tensor("INPUT1", [1, 16], "INT32", [0] * 16))


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


def health(server: Server) -> tuple[int, str]:
    """The status of ``/v2/health/ready``, and the reason."""
    answer = server.get("/v2/health/ready")
    assert answer.json["ready"] == (answer.status == 200)
    return answer.status, answer.json.get("error", "")


def broken(repository: Path, name: str = "broken") -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.onnx").write_bytes(b"x")


def answers(server: Server, name: str) -> dict[str, Any]:
    base = f"/v2/models/{name}"
    paths = [base, *(f"{base}/{each}" for each in ("ready", "config", "stats"))]
    paths += [f"{base}/versions/1{rest}" for rest in ("", "/ready", "/config", "/stats")]
    found = {path: server.get(path) for path in paths}
    found |= {f"{path}/infer": server.post(f"{path}/infer", SIMPLE) for path in (base, base + "/versions/1")}
    return found


def listings(server: Server) -> dict[str, Any]:
    return {path: server.get(path) for path in ("/v2/models", "/v2/models/stats")}


# --- Before the repository was read -----------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", ["0", "1", "2"])
@pytest.mark.parametrize(
    ("options", "loaded"),
    [
        ((), True),
        (("--load", "simple"), True),
        (("--model-control", "none"), True),
        (("--model-control", "poll", "--load", "none"), False),
    ],
)
def test_before_the_repository_was_read(gate: Gate, processes: str, options: tuple[str, ...], loaded: bool) -> None:
    shutil.copytree(REPOSITORY / "simple", gate.repository / "simple")
    with gate.serving_closed("wait", "--processes", processes, *options) as (server, open_gate):
        for name in ("simple", "nope"):
            for path, answer in {**answers(server, name), **listings(server)}.items():
                assert (answer.status, answer.error) == (503, NOT_READ), path
                assert answer.headers["retry-after"] == "1"
        assert health(server) == (503, NOT_READ)
        assert server.get("/v2/health/live").status == server.get("/v2").status == 200
        open_gate()
        wait_for(lambda: health(server)[0] == 200)
        assert {answer.status for answer in answers(server, "simple").values()} == {200 if loaded else 404}
        assert {answer.status for answer in answers(server, "nope").values()} == {404}
        assert {answer.status for answer in listings(server).values()} == {200}


def test_whoever_loads_nothing_knows_its_models_at_once(gate: Gate) -> None:
    with gate.closed(), gate.serving("--load", "none", wait=False) as server:
        assert {answer.status for answer in answers(server, "simple").values()} == {404}
        assert server.get("/v2/models").json == {"models": []}
        assert server.get("/v2/models/stats").json == {"model_stats": []}


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_process_that_replaces_another_knows_which_models_there_are(gate: Gate, processes: str) -> None:
    """Unknown ones are 404 all the time, those that were served never."""
    shutil.copytree(REPOSITORY / "simple", gate.repository / "simple")
    with gate.serving("--processes", processes) as server:
        for _ in range(2):
            pids = server.serving_pids()
            os.kill(pids[0], signal.SIGKILL)
            wait_for(lambda pids=pids: pids[0] not in server.serving_pids())
            for _ in range(20):
                assert server.get("/v2/models/nope/ready").status == 404
                assert server.get("/v2/models/simple/ready").status == 200
            wait_for(lambda pids=pids: len(server.serving_pids()) == len(pids))


def test_a_process_that_replaces_another_before_the_repository_was_read(gate: Gate) -> None:
    shutil.copytree(REPOSITORY / "simple", gate.repository / "simple")
    with gate.serving_closed("wait") as (server, open_gate):
        assert server.get("/v2/models/simple/ready").error == NOT_READ
        (pid,) = server.serving_pids()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: pid not in server.serving_pids())
        assert server.get("/v2/models/simple/ready").error == NOT_READ
        open_gate()
        wait_for(lambda: health(server)[0] == 200)
        assert server.get("/v2/models/nope/ready").status == 404


# --- Without any model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", ["0", "2"])
def test_a_server_without_a_model_is_not_ready(tmp_path: Path, processes: str) -> None:
    (tmp_path / "README").write_text("no model")
    with serving("--processes", processes, repository=tmp_path, wait=False) as server:
        wait_for(lambda: health(server) == (503, "the model repository holds no model"))
        wait_for(lambda: "not ready: the model repository holds no model" in server.log)
        assert server.get("/v2/models/m/ready").status == 404
        assert server.get("/v2/models").json == {"models": []}
        shutil.copytree(REPOSITORY / "simple", tmp_path / "simple")
        assert health(server)[0] == 503
        server.load("models/simple")
        assert health(server) == (200, "")
        assert server.post("/v2/models/simple/unload").status == 200
        assert health(server) == (200, "")  # what is unloaded later does not change it


@pytest.mark.parametrize("options", [("--allow-empty",), ("--load", "none")])
@pytest.mark.parametrize("control", ["explicit", "poll", "none"])
def test_an_empty_server_that_is_wanted_is_ready(tmp_path: Path, options: tuple[str, ...], control: str) -> None:
    with serving(*options, "--model-control", control, repository=tmp_path) as server:
        assert server.get("/v2/models/m/ready").status == 404


@pytest.mark.parametrize("processes", ["0", "2"])
def test_a_model_that_a_poll_finds_makes_the_server_ready(tmp_path: Path, processes: str) -> None:
    options = ("--processes", processes, "--model-control", "poll", "--poll-interval-s", "0.1")
    with serving(*options, repository=tmp_path, wait=False) as server:
        wait_for(lambda: health(server)[1] == "the model repository holds no model")
        shutil.copytree(REPOSITORY / "simple", tmp_path / "simple")
        wait_for(lambda: health(server) == (200, ""))


def test_a_process_that_replaces_another_is_as_ready_as_that_was(tmp_path: Path) -> None:
    with serving(repository=tmp_path, wait=False) as server:
        wait_for(lambda: health(server)[1] == "the model repository holds no model")
        for expected in (503, 200):
            (pid,) = server.serving_pids()
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: pid not in server.serving_pids())
            assert health(server)[0] == expected
            if expected == 503:
                server.load("workers/echo")
                server.post("/v2/workers/echo/unload")


# --- With models that do not load -------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", ["0", "2"])
def test_one_failed_model_and_readiness(tmp_path: Path, processes: str) -> None:
    broken(tmp_path)
    shutil.copytree(REPOSITORY / "simple", tmp_path / "simple")
    with serving("--processes", processes, repository=tmp_path, wait=False) as server:
        wait_for(lambda: "not ready: " in server.log)
        status, reason = health(server)
        assert status == 503
        assert "'broken' does not load" in reason
    with serving("--processes", processes, "--no-strict-readiness", repository=tmp_path) as server:
        wait_for(lambda: "'broken' is not served" in server.log)  # not before it was tried
        assert server.infer("simple", SIMPLE).status == 200
        assert server.get("/v2/models/broken/ready").status == 503


def test_where_no_model_loads_a_lenient_server_is_not_ready_either(tmp_path: Path) -> None:
    broken(tmp_path)
    with serving("--no-strict-readiness", repository=tmp_path, wait=False) as server:
        wait_for(lambda: "not ready: " in server.log)
        assert "'broken' does not load" in health(server)[1]
    with serving("--no-strict-readiness", "--allow-empty", repository=tmp_path) as server:
        assert server.get("/v2/models/broken/ready").status == 503


def test_a_lenient_server_waits_for_all_that_are_loading(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "simple", tmp_path / "simple")
    (tmp_path / "endless" / "1").mkdir(parents=True)
    (tmp_path / "endless" / "1" / "model.onnx").write_bytes(onnx_models.endless())
    (tmp_path / "endless" / "config.toml").write_text(onnx_models.ENDLESS_LOAD)
    with serving("--no-strict-readiness", repository=tmp_path, wait=False) as server:
        wait_for(lambda: health(server) == (503, "models are not ready: model 'endless' is loading"))
        assert server.get("/v2/models/simple/ready").status == 200


def test_a_failed_model_that_is_removed_from_the_disk(tmp_path: Path) -> None:
    broken(tmp_path)
    shutil.copytree(REPOSITORY / "simple", tmp_path / "simple")
    options = ("--model-control", "poll", "--poll-interval-s", "0.1")
    with serving(*options, repository=tmp_path, wait=False) as server:
        wait_for(lambda: "not ready: " in server.log)
        shutil.rmtree(tmp_path / "broken")
        wait_for(lambda: health(server) == (200, ""))


# --- A repository that cannot be read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [("--processes", "0"), ("--model-control", "poll"), ("--processes", "2")])
def test_a_repository_that_cannot_be_read_at_start(gate: Gate, options: tuple[str, ...]) -> None:
    shutil.copytree(REPOSITORY / "simple", gate.repository / "simple")
    reason = "the model repository cannot be read: Permission denied"
    with gate.serving_closed("refuse", *options) as (server, open_gate):
        wait_for(lambda: health(server) == (503, reason))
        answer = server.get("/v2/models/simple/ready")
        assert (answer.status, answer.error, answer.headers["retry-after"]) == (503, reason, "1")
        # The directory, and why it is not ready.
        wait_for(lambda: server.log.count("cannot be read: Permission denied") == 2)
        open_gate()
        wait_for(lambda: health(server) == (200, ""))
        assert server.infer("simple", SIMPLE).status == 200
        assert server.get("/v2/models/nope/ready").status == 404


def test_a_poll_unloads_nothing_while_the_repository_cannot_be_read(gate: Gate) -> None:
    shutil.copytree(REPOSITORY / "simple", gate.repository / "simple")
    with gate.serving("--model-control", "poll", "--poll-interval-s", "0.1") as server:
        with gate.closed("refuse"):
            wait_for(lambda: "the model repository cannot be read: Permission denied" in server.log)
            answer = server.post("/v2/models/other/load")
            assert (answer.status, "Permission denied" in answer.error) == (400, True)
        wait_for(lambda: "the model repository can be read again" in server.log)
        assert server.infer("simple", SIMPLE).status == 200
        assert "unloaded" not in server.log
        shutil.copytree(REPOSITORY / "digits", gate.repository / "digits")
        wait_for(lambda: server.get("/v2/models/digits/ready").status == 200)
