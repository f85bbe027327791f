"""A file that cannot be looked at: its model is refused with the reason, and nobody else notices.

A link to a name that is too long stands for a dead mount, EIO, ESTALE and the like: stat() fails with it for root, too.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import REPOSITORY, Server, serving, wait_for
from unreliable_disk import UnreliableDisk

pytestmark = pytest.mark.long

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
        server.process.send_signal(signal.SIGHUP)
        # One that cannot load what the others serve stays out.
        ends = ("restarted: 2 processes", "the rolling restart has stopped")
        wait_for(lambda: any(end in server.log for end in ends), 60)
        assert is_well(server)
        assert "a task of the supervisor has failed" not in server.log


@pytest.mark.parametrize("place", PLACES)
def test_a_server_starts_beside_it(repository: Path, place: str) -> None:
    spoil(repository, place)
    with serving("--no-strict-readiness", repository=repository) as server:
        assert is_well(server)


ERRORS = [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENAMETOOLONG, errno.ENOMEM]


@pytest.mark.parametrize("part", ["/bad/", "/models/"])
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_whatever_meets_an_error_goes_on(tmp_path: Path, error: int, part: str) -> None:
    """One model's directory, or the whole repository, fails in a look, a load, the index, a replacement, a restart."""
    models, disk = tmp_path / "models", UnreliableDisk(tmp_path, part)
    for name, source in (("simple", "simple"), ("bad", "identity_fp32")):
        shutil.copytree(REPOSITORY / source, models / name)
    options = ("--processes", "2", "--model-control", "poll", "--poll-interval-s", "0.1")
    with serving(*options, repository=models, env=disk.env) as server:
        disk.fail(error)
        answer = server.post("/v2/models/bad/load")
        assert (answer.status, list(answer.json)) == (400, ["error"])
        assert str(tmp_path) not in answer.error
        assert server.post("/v2/repository/index").status == 200
        killed = server.serving_pids()[0]
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: "cannot be restored" in server.log)  # what cannot be read, the new process does not have
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "the rolling restart has stopped" in server.log, 60)
        assert is_well(server)
        assert server.get("/v2/models/bad/ready").status == 200  # the others have it
        assert server.log.count("' is unloaded") <= server.log.count("cannot be restored")
        disk.answer()
        assert server.post("/v2/models/bad/load").status == 200
        wait_for(lambda: len(server.serving_pids()) == 2)
        assert "a task of the supervisor has failed" not in server.log
        assert "Traceback" not in server.log


def nowhere(models: Path) -> None:
    models.unlink()
    models.symlink_to("nowhere")


def circle(models: Path) -> None:
    models.unlink()
    models.symlink_to("models")


def a_file(models: Path) -> None:
    models.unlink()
    models.write_text("no directory")


def gone(models: Path) -> None:
    models.unlink()


def empty(models: Path) -> None:
    models.unlink()
    (models.parent / "other").mkdir()
    models.symlink_to("other")


@pytest.mark.parametrize("change", [nowhere, circle, a_file, gone, empty])
def test_a_repository_that_becomes_something_else(tmp_path: Path, change: Callable[[Path], None]) -> None:
    real, models = tmp_path / "real", tmp_path / "models"
    for name in ("simple", "digits"):
        shutil.copytree(REPOSITORY / name, real / name)
    models.symlink_to("real")
    options = ("--processes", "2", "--model-control", "poll", "--poll-interval-s", "0.1")
    with serving(*options, repository=models) as server:
        change(models)
        wait_for(lambda: "cannot be read" in server.log or "vanished from the repository" in server.log)
        assert server.post("/v2/models/digits/load").status == 400
        os.kill(server.serving_pids()[0], signal.SIGKILL)
        wait_for(lambda: "cannot be restored" in server.log)
        assert is_well(server)
        assert server.get("/v2/models/digits/ready").status == 200
        models.unlink(missing_ok=True)
        models.symlink_to("real")
        wait_for(lambda: "again" in server.log.rsplit("repository", 1)[-1] or "can be read again" in server.log)
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "restarted: 2 processes" in server.log, 60)
        assert is_well(server)


@pytest.mark.parametrize("target", ["", "bad", "nowhere"])
def test_a_model_that_becomes_a_file_or_a_link_to_nothing_is_unloaded_alone(repository: Path, target: str) -> None:
    with serving("--model-control", "poll", "--poll-interval-s", "0.1", repository=repository) as server:
        shutil.rmtree(repository / "bad")
        if target:
            (repository / "bad").symlink_to(target)
        else:
            (repository / "bad").write_text("no directory")
        wait_for(lambda: "'bad' is unloaded" in server.log)
        assert is_well(server)


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_a_check_names_what_cannot_be_read(tmp_path: Path, error: int) -> None:
    models, disk = tmp_path / "models", UnreliableDisk(tmp_path, "/bad/")
    for name, source in (("simple", "simple"), ("bad", "identity_fp32")):
        shutil.copytree(REPOSITORY / source, models / name)
    disk.fail(error)
    words = [sys.executable, "-m", "fastinfer", "check", str(models)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **disk.env}, timeout=60)
    assert done.returncode == 1
    assert "simple" in done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    assert any("bad" in line for line in (done.stdout + done.stderr).splitlines())


def test_the_working_directory_may_vanish(tmp_path: Path) -> None:
    directory = tmp_path / "work"
    directory.mkdir()
    with serving("--load", "simple", cwd=directory) as server:
        directory.rmdir()
        os.kill(server.serving_pids()[0], signal.SIGKILL)
        wait_for(lambda: server.log.count("'simple' version 1") == 2)
        assert is_well(server)
