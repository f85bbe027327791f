"""A file that cannot be looked at: its model is refused with the reason, and nobody else notices.

A link to a name that is too long stands for a dead mount, EIO, ESTALE and the like: stat() fails with it for root, too.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from support import REPOSITORY, Server, serving, wait_for

TOO_LONG = "x" * 300
PLACES = ["bad", "bad/1", "bad/1/model.onnx", "bad/2", "bad/config.toml", "bad/labels.txt", "bad/warmup"]


def spoil(repository: Path, place: str) -> None:
    """Puts a link that cannot be followed at a place of the model ``bad``."""
    path = repository / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(TOO_LONG)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    shutil.copytree(REPOSITORY / "simple", tmp_path / "simple")
    shutil.copytree(REPOSITORY / "identity_fp32", tmp_path / "bad")
    return tmp_path


def is_well(server: Server) -> bool:
    return server.get("/v2/models/simple/ready").status == 200 and server.process.poll() is None


@pytest.mark.parametrize("place", PLACES)
def test_polls_restarts_and_replacements_survive_it(repository: Path, place: str) -> None:
    options = ("--processes", "2", "--model-control", "poll", "--poll-interval-s", "0.1")
    with serving(*options, repository=repository) as server:
        spoil(repository, place)
        answer = server.post("/v2/models/bad/load")
        assert answer.status in (200, 400)  # what lies beside the version may not matter
        killed = server.serving_pids()[0]
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: killed not in server.serving_pids())
        loads = server.log.count("'simple' version 1")
        wait_for(lambda: server.log.count("'simple' version 1") > loads)  # a replacement has tried
        assert is_well(server)
        # One that cannot load what the others serve stays out.
        out = "'bad' is not served as it was" in server.log
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: out or "restarted: 2 processes" in server.log)
        assert is_well(server)
        assert "a task of the supervisor has failed" not in server.log


@pytest.mark.parametrize("place", PLACES)
def test_a_server_starts_beside_it(repository: Path, place: str) -> None:
    spoil(repository, place)
    with serving("--no-strict-readiness", repository=repository) as server:
        assert is_well(server)
