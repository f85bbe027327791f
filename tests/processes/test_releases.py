"""Never two models at once: links are swapped, processes killed, and every answer is checked against the file that
should serve."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import releases
from gate import Gate
from load_clients import wait_until
from support import Server, exchange, serving

pytestmark = pytest.mark.long

CONNECTIONS = 12  # that all are accepted by one of two processes is as likely as 11 heads in a row
TWO = ("--processes", "2")


def in_order(server: Server) -> list[int]:
    """Which files answer, on several connections, one after the other."""
    answers = [server.infer("m", releases.BODY) for _ in range(CONNECTIONS)]
    assert {answer.status for answer in answers} == {200}, answers
    return [releases.number_in(answer.body) for answer in answers]


def numbers(server: Server) -> set[int]:
    return set(in_order(server))


@pytest.mark.parametrize("deploy", releases.ALL)
def test_a_load_takes_what_the_links_lead_to(tmp_path: Path, deploy: releases.Deploy) -> None:
    deploy(tmp_path, 1)
    with serving(*TWO, repository=tmp_path / "models") as server:
        assert numbers(server) == {1}
        for number in (2, 3):
            deploy(tmp_path, number)
            assert numbers(server) == {number - 1}  # nobody has asked for it
            assert server.post("/v2/models/m/load").json == {"name": "m", "load": True}
            assert numbers(server) == {number}


@pytest.mark.parametrize("deploy", releases.ALL)
def test_polling_follows_links(tmp_path: Path, deploy: releases.Deploy) -> None:
    deploy(tmp_path, 1)
    options = ("--model-control", "poll", "--poll-interval-s", "0.1")
    with serving(*TWO, *options, repository=tmp_path / "models") as server:
        for number in (2, 3):
            deploy(tmp_path, number)
            wait_until(lambda number=number: numbers(server) == {number})


@pytest.mark.parametrize("deploy", releases.ALL)
def test_after_a_crash_all_serve_what_the_links_lead_to(tmp_path: Path, deploy: releases.Deploy) -> None:
    """The new process can only have that; before all have it, it answers nobody."""
    deploy(tmp_path, 1)
    with serving(*TWO, repository=tmp_path / "models") as server:
        deploy(tmp_path, 2)
        assert numbers(server) == {1}
        before = server.serving_pids()
        os.kill(before[0], signal.SIGKILL)
        seen = in_order(server)
        while seen[-1] != 2:
            seen += in_order(server)
        assert seen == sorted(seen)
        wait_until(lambda: len(server.serving_pids()) == 2)
        assert numbers(server) == {2}
        wait_until(lambda: server.log.count("all processes load it again") == 1)


def test_a_new_process_stays_away_while_the_links_lead_nowhere(tmp_path: Path) -> None:
    releases.version_is_a_link(tmp_path, 1)
    with serving(*TWO, repository=tmp_path / "models") as server:
        releases.swap(tmp_path / "models" / "m" / "1", Path("nowhere"))
        os.kill(server.serving_pids()[0], signal.SIGKILL)
        wait_until(lambda: "'m' cannot be restored" in server.log)
        assert numbers(server) == {1}
        releases.version_is_a_link(tmp_path, 2)
        wait_until(lambda: numbers(server) == {2})


# One process, whichever comes first, keeps the old model although the others change.
FORGETFUL = """
import os, sys

if "process" in sys.orig_argv:
    from fastinfer.repository.repository import Repository

    publish = Repository._publish

    def forget(self, endpoint, versions):
        try:
            os.unlink({flag!r})
        except FileNotFoundError:
            return publish(self, endpoint, versions)
        raise MemoryError

    Repository._publish = forget
"""


@pytest.mark.parametrize("processes", [2, 3])
def test_a_process_that_differs_serves_no_more_when_the_load_is_answered(tmp_path: Path, processes: int) -> None:
    flag = tmp_path / "flag"
    (tmp_path / "sitecustomize.py").write_text(FORGETFUL.format(flag=str(flag)))
    releases.version_is_a_link(tmp_path, 1)
    options = ("--processes", str(processes))
    with serving(*options, repository=tmp_path / "models", env={"PYTHONPATH": str(tmp_path)}) as server:
        connections = [server.connect() for _ in range(CONNECTIONS)]
        for connection in connections:  # kept open: what is accepted is not closed by itself
            assert releases.number_in(exchange(connection, "POST", "/v2/models/m/infer", releases.BODY).body) == 1
        releases.version_is_a_link(tmp_path, 2)
        flag.touch()
        assert server.post("/v2/models/m/load").status == 200
        assert not flag.exists()
        for connection in connections:
            with contextlib.suppress(OSError, http.client.HTTPException):  # its process has ended already
                answer = exchange(connection, "POST", "/v2/models/m/infer", releases.BODY)
                assert answer.status == 503 or releases.number_in(answer.body) == 2
            connection.close()
        assert numbers(server) == {2}
        wait_until(lambda: server.log.count("does not serve the same models as the others") == 1)
        wait_until(lambda: len(server.serving_pids()) == processes)
        assert numbers(server) == {2}


def test_where_nobody_serves_one_process_alone_accepts_until_it_has_all_models(tmp_path: Path) -> None:
    """Each of those that start has loaded what lay on the disk at its time."""
    gate = Gate(tmp_path)
    for name in ("m", "slow"):
        releases.write(gate.repository / name / "1" / "model.onnx", 1)
    with gate.serving(*TWO) as server:
        with gate.closed():
            for pid in server.serving_pids():
                os.kill(pid, signal.SIGKILL)
            assert server.get("/v2/models/slow/ready").status == 503  # after ten seconds
            wait_until(lambda: server.get("/v2/models/m/ready").status == 200)
            releases.write(gate.repository / ".new", 2).rename(gate.repository / "m" / "1" / "model.onnx")
            assert in_order(server) == [1] * CONNECTIONS
            server.replace()
            seen = in_order(server)
        while server.get("/v2/models/slow/ready").status != 200:
            seen += in_order(server)
        wait_until(lambda: server.log.count("'slow' version 1") >= 4)
        seen += in_order(server)
        assert seen == sorted(seen)


# --- All of it at random ----------------------------------------------------------------------------------------------


@dataclass
class Asked:
    """An answer that a client got."""

    began: float
    ended: float
    number: int


@dataclass
class Window:
    """An operation: until it has been answered, some processes may have changed and others not."""

    began: float
    ended: float = float("inf")


@dataclass
class Watch:
    """Clients that ask all the time, every other on a connection for each request."""

    server: Server
    asked: list[list[Asked]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def client(self, number: int) -> None:
        connection = self.server.connect()
        while not self.stop.is_set():
            began = time.monotonic()
            try:
                answer = exchange(connection, "POST", "/v2/models/m/infer", releases.BODY)
            except (OSError, http.client.HTTPException):  # its process was killed
                connection.close()
                continue
            if answer.status == 200:
                self.asked[number].append(Asked(began, time.monotonic(), releases.number_in(answer.body)))
            else:
                self.others.append(f"{answer.status} {answer.body.decode()}")
            if number % 2 or answer.headers.get("connection") == "close":
                connection.close()
        connection.close()


@contextlib.contextmanager
def watching(server: Server, clients: int = 4) -> Iterator[Watch]:
    watch = Watch(server, [[] for _ in range(clients)])
    threads = [threading.Thread(target=watch.client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: all(watch.asked))
        yield watch
    finally:
        watch.stop.set()
        for thread in threads:
            thread.join()


def assert_one_model_at_a_time(watch: Watch, windows: list[Window]) -> None:
    """Releases only become newer. So once one has answered, no older one may, but while an operation goes on."""
    asked = sorted((each for found in watch.asked for each in found), key=lambda each: each.began)
    finished = sorted(asked, key=lambda each: each.ended)
    newest, place = Asked(0, 0, 0), 0
    for each in asked:
        while place < len(finished) and finished[place].ended < each.began:
            if finished[place].number >= newest.number:
                newest = finished[place] if finished[place].number > newest.number else newest
            place += 1
        if each.number < newest.number:
            excused = any(window.began < newest.ended and each.began < window.ended for window in windows)
            assert excused, f"release {each.number} has answered after release {newest.number}"


def churn(root: Path, deploy: releases.Deploy, server: Server, seed: int, seconds: float) -> int:
    """Deploys, loads, kills and restarts for so long; returns how many answers were checked."""
    chance = random.Random(seed)
    number, windows = 1, []
    with watching(server) as watch:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            match chance.choice(("deploy", "deploy", "load", "load", "kill", "kill and load", "restart")):
                case "deploy":
                    number += 1
                    deploy(root, number)
                case "load":
                    windows.append(window := Window(time.monotonic()))
                    answer = server.post("/v2/models/m/load")
                    window.ended = time.monotonic()
                    assert answer.status == 200, answer.body
                    assert numbers(server) == {number}
                case "kill":
                    server.replace(chance.randrange(2))
                case "kill and load":
                    os.kill(chance.choice(server.serving_pids()), signal.SIGKILL)
                    windows.append(window := Window(time.monotonic()))
                    with contextlib.suppress(OSError, http.client.HTTPException):
                        answer = server.post("/v2/models/m/load")
                        window.ended = time.monotonic()
                        if answer.status == 200:
                            assert numbers(server) == {number}
                    window.ended = time.monotonic()
                case "restart":
                    wait_until(lambda: len(server.serving_pids()) == 2)
                    done = server.log.count("restarted:")
                    windows.append(window := Window(time.monotonic()))
                    server.process.send_signal(signal.SIGHUP)
                    wait_until(lambda done=done: server.log.count("restarted:") > done)
                    window.ended = time.monotonic()
                    assert numbers(server) == {number}
    checked = sum(map(len, watch.asked))
    # No process may serve for a while, if all were killed.
    assert all(other.startswith("503 ") for other in watch.others), watch.others
    assert_one_model_at_a_time(watch, windows)
    assert "does not serve the same models" not in server.log
    return checked


@pytest.mark.parametrize("deploy", [releases.version_is_a_link, releases.config_map])
def test_one_model_at_a_time(tmp_path: Path, deploy: releases.Deploy) -> None:
    deploy(tmp_path, 1)
    with serving(*TWO, repository=tmp_path / "models") as server:
        assert churn(tmp_path, deploy, server, seed=11, seconds=12) > 100
