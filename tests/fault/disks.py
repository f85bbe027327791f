"""The disk with the models gives way, or what is loaded from it takes for ever or is large."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

from tests.fault.load import neighbours
from tests.fault.subject import Subject, rss, seconds_until, subject
from tests.fault.trial import MIB, Trial
from tests.support import REPOSITORY
from tests.unreliable_disk import UnreliableDisk

PROCESSES = 2
RATE = 200.0  # requests a second of the others
POLL = ("--model-control", "poll", "--poll-interval-s", "0.1")


@contextlib.contextmanager
def _on_a_disk(part: str) -> Iterator[tuple[Path, UnreliableDisk]]:
    """A repository with the models ``simple`` and ``bad``, of which a part is on an unreliable disk."""
    with tempfile.TemporaryDirectory(prefix="fault-") as name:
        directory = Path(name)
        disk = UnreliableDisk(directory, part)
        for model, source in (("simple", "simple"), ("bad", "identity_fp32")):
            shutil.copytree(REPOSITORY / source, directory / "models" / model)
        try:
            yield directory / "models", disk
        finally:
            disk.answer()


def stat_fails(trial: Trial) -> None:
    """Each error below one model's directory, met by polls, a load, the index, a replacement and a restart."""
    errors = (errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOTCONN)[: trial.count(4, 1)]
    with (
        _on_a_disk("/bad/") as (repository, disk),
        subject(*POLL, repository=repository, processes=PROCESSES, env=disk.env) as server,
    ):
        wrong = 0
        with neighbours(server.port, RATE) as beside:
            for error in errors:
                disk.fail(error)
                wrong += server.post("/v2/models/bad/load").status != 400
                wrong += server.post("/v2/repository/index").status != 200
                stopped = server.log.count("the rolling restart has stopped")
                server.process.send_signal(signal.SIGHUP)
                wrong += _came_about(lambda: server.log.count("the rolling restart has stopped") > stopped)  # noqa: B023
                disk.answer()
                wrong += server.post("/v2/models/bad/load").status != 200
        _others(trial, server, beside)
        trial.equal("loads, indices and restarts that were answered or ended otherwise", wrong, 0)


def repository_vanishes(trial: Trial) -> None:
    """The repository is renamed, empty, and there again, while it is polled."""
    with _on_a_disk("/none/") as (repository, _), subject(*POLL, repository=repository, processes=PROCESSES) as server:
        with neighbours(server.port, RATE) as beside:
            for _ in range(trial.count(10, 2)):
                away = repository.with_name("away")
                repository.rename(away)
                time.sleep(0.5)
                repository.mkdir()
                time.sleep(0.5)
                repository.rmdir()
                away.rename(repository)
                time.sleep(0.5)
        _others(trial, server, beside)
        trial.equal("models that were unloaded", server.log.count("' is unloaded"), 0)


def load_hangs(trial: Trial) -> None:
    """Two loads hang; meanwhile a process dies, another model is loaded, and all processes are replaced."""
    limit_s = trial.count(10, 5)
    options = ("--load", "simple", "--load-timeout-s", str(limit_s))
    with (
        _on_a_disk("/bad/1/") as (repository, disk),
        subject(*options, repository=repository, processes=PROCESSES, env=disk.env) as server,
    ):
        statuses: list[int] = []

        def load() -> None:
            with contextlib.suppress(OSError, HTTPException):  # its process may be the one that dies
                statuses.append(server.post("/v2/models/bad/load").status)

        disk.hang()
        began = time.monotonic()
        hanging = [threading.Thread(target=load) for _ in range(2)]
        for thread in hanging:
            thread.start()
        time.sleep(0.5)
        loads = server.log.count("'simple' version 1")
        os.kill(server.children()[0], signal.SIGKILL)
        took = seconds_until(lambda: server.log.count("'simple' version 1") > loads and len(server.children()) == 2)
        trial.most("seconds until the dead process is replaced", took, 5, timed=True)
        wrong = server.post("/v2/workers/echo/load").status != 200
        trial.equal("other loads that failed", wrong, 0)
        with neighbours(server.port, RATE) as beside:
            server.process.send_signal(signal.SIGHUP)
            trial.equal("restarts that have not ended", _came_about(lambda: "restarted: 2" in server.log), 0)
            for thread in hanging:
                thread.join()
        trial.most("seconds until the loads are answered", time.monotonic() - began, 3 * limit_s + 5, timed=True)
        trial.equal("loads answered otherwise than with 504 or 500", len(set(statuses) - {500, 504}), 0)
        disk.answer()
        trial.equal("the same load later: status", server.post("/v2/models/bad/load").status, 200)
        _others(trial, server, beside)


def large_configurations(trial: Trial) -> None:
    """Loads of one model with other configurations of a megabyte, and control requests of a megabyte."""
    loads = trial.count(60, 10)
    options = ("--load", "simple")
    with subject(*options, processes=PROCESSES) as server:
        wrong = 0
        before = rss(server.pid)
        with neighbours(server.port, RATE) as beside:
            for number in range(loads):
                config = json.dumps({"max_batch_size": 4, "metric_tags": {"number": str(number)}}) + " " * 900_000
                given = {"parameters": {"config": config, "number": number}}
                wrong += server.post("/v2/models/simple/load", given).status != 200
            for body in ('{"a":[' + "[]," * 340_000 + "1]}", "{" + '"a":1,' * 140_000 + '"b":1}'):
                for path in ("/v2/models/simple/load", "/v2/repository/index"):
                    wrong += server.post(path, body).status not in (400, 413)
        _others(trial, server, beside)
        trial.equal("loads and refusals answered otherwise", wrong, 0)
        trial.most("ms, the longest wait of others", beside["max_us"] / 1000, 100, timed=True)
        trial.most("MiB more in the supervisor", (rss(server.pid) - before) / MIB, 20 + 1.5 * loads)


def _came_about(condition: object) -> int:
    """0 if something holds soon, else 1."""
    assert callable(condition)
    return int(seconds_until(condition, 60) == float("inf"))


def _others(trial: Trial, server: Subject, beside: dict[str, float]) -> None:
    trial.equal("failed requests of others", beside["failed"], 0)
    trial.tell("requests of others", beside["answered"])
    trial.equal("the server has ended", float(server.process.poll() is not None), 0)
    trial.equal("tasks of the supervisor that failed", server.log.count("a task of the supervisor has failed"), 0)
