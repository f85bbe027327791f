"""A load that hangs: it is given up, and nobody else waits for it."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY, Answer, serving, wait_for
from unreliable_disk import UnreliableDisk

pytestmark = pytest.mark.long

LIMIT_S = "3"  # what does not hang takes less, also on a busy machine


class Mount(UnreliableDisk):
    """A repository of which the model ``bad`` is on a disk that may not answer."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "/bad/1/")
        self.repository = path / "models"
        for name, source in (("simple", "simple"), ("bad", "identity_fp32"), ("worse", "identity_fp32")):
            shutil.copytree(REPOSITORY / source, self.repository / name)


@pytest.fixture
def mount(tmp_path: Path) -> Any:
    mount = Mount(tmp_path)
    yield mount
    mount.answer()


def in_background(function: Any, *args: Any) -> tuple[threading.Thread, list[Answer]]:
    answers: list[Answer] = []

    def ask() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):  # its process may be killed
            answers.append(function(*args))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, answers


@pytest.mark.parametrize("processes", ["0", "1", "2"])
def test_it_is_given_up_with_its_reason_and_the_name_is_free_again(mount: Mount, processes: str) -> None:
    options = ("--processes", processes, "--load", "simple", "--load-timeout-s", LIMIT_S)
    with serving(*options, repository=mount.repository, env=mount.env) as server:
        mount.hang()
        thread, answers = in_background(server.post, "/v2/models/bad/load")
        server.load("models/worse")  # others are loaded meanwhile
        thread.join(30)
        assert answers[0].status == 504
        assert answers[0].error == "looking at the files of model 'bad' has not ended in 3 s"
        wait_for(lambda: "looking at the files of model 'bad' has not ended in 3 s: it is given up, at" in server.log)
        mount.answer()
        server.load("models/bad")
        wait_for(lambda: "looking at the files of model 'bad': has returned after all" in server.log)


def test_so_many_hang_and_no_further_load_is_begun_before_one_returns(mount: Mount) -> None:
    options = ("--load", "simple", "--load-timeout-s", LIMIT_S)
    with serving(*options, repository=mount.repository, env=mount.env) as server:
        mount.hang()
        hanging = [in_background(server.post, f"/v2/models/bad/versions/{n}/load") for n in range(1, 9)]
        for thread, answers in hanging:
            thread.join(60)
            assert [answer.status for answer in answers] == [504]
        refused = server.post("/v2/models/worse/load")
        assert (refused.status, refused.headers["retry-after"]) == (503, "10")
        assert refused.error == "8 calls have not returned, the first of them looking at the files of model 'bad'"
        assert server.get("/v2/models/simple/ready").status == 200
        assert "\nfastinfer_stuck_loads 8.0\n" in server.metrics()
        mount.answer()
        wait_for(lambda: server.log.count("has returned after all") == 8)
        assert "\nfastinfer_stuck_loads 0.0\n" in server.metrics()
        server.load("models/worse")


def test_meanwhile_a_dead_process_is_replaced_and_a_restart_ends(mount: Mount) -> None:
    options = ("--processes", "2", "--load", "simple")
    with serving(*options, repository=mount.repository, env=mount.env) as server:
        mount.hang()
        waiting = [in_background(server.post, "/v2/models/bad/load") for _ in range(2)]
        wait_for(lambda: len(server.serving_pids()) == 2)
        for killed in server.serving_pids():
            loads = server.log.count("'simple' version 1")
            os.kill(killed, signal.SIGKILL)
            wait_for(lambda: server.log.count("'simple' version 1") > loads)  # noqa: B023
            wait_for(lambda: len(server.serving_pids()) == 2)
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "restarted: 2 processes" in server.log, 60)
        assert server.get("/v2/models/simple/ready").status == 200
        mount.answer()
        for thread, answers in waiting:
            thread.join(30)
            assert all(answer.status in (200, 500) for answer in answers)
        server.load("models/bad")


def test_the_log_says_what_waits(mount: Mount) -> None:
    with serving("--load", "simple", repository=mount.repository, env=mount.env) as server:
        mount.hang()
        thread, _ = in_background(server.post, "/v2/models/bad/load")
        wait_for(lambda: "'load_model' of 'bad' is being prepared: 5 s by now" in server.log)
        mount.answer()
        thread.join(30)
        wait_for(lambda: "'load_model' of 'bad' is being prepared: ended after" in server.log)


def test_who_looks_at_the_repository_is_answered(mount: Mount) -> None:
    options = ("--load", "simple", "--request-timeout-s", LIMIT_S)
    with serving(*options, repository=mount.repository, env=mount.env) as server:
        mount.hang()
        index = server.post("/v2/repository/index")
        assert index.status == 504
        # By the time limit of the look, or by that of the request, which begins a little earlier.
        assert index.error in ("reading the model repository has not ended in 3 s", "Request timeout expired")
        assert server.get("/v2/models/simple/ready").status == 200
        mount.answer()
        wait_for(lambda: server.post("/v2/repository/index").status == 200)


def test_the_end_does_not_wait_for_it(mount: Mount) -> None:
    options = ("--load", "simple", "--load-timeout-s", LIMIT_S, "--drain-timeout-s", "1")
    with serving(*options, repository=mount.repository, env=mount.env) as server:
        mount.hang()
        assert server.post("/v2/models/bad/load").status == 504
        assert server.stop() == 0


def test_a_poll_does_not_try_it_again_and_again(mount: Mount) -> None:
    options = ("--model-control", "poll", "--poll-interval-s", "0.1", "--load-timeout-s", LIMIT_S)
    with serving(*options, repository=mount.repository, env=mount.env) as server:
        (mount.repository / "bad" / "1" / "model.onnx").touch()
        mount.hang()
        wait_for(lambda: "has not ended in 3 s" in server.log)
        assert server.get("/v2/models/bad/ready").status == 200  # as it was
        mount.answer()
        loads = server.log.count("'bad' version 1")
        wait_for(lambda: "has returned after all" in server.log)
        (mount.repository / "bad" / "1" / "model.onnx").touch()
        wait_for(lambda: server.log.count("'bad' version 1") > loads)
