"""Very many connections, and more than there are files for."""

from __future__ import annotations

import contextlib
import resource
import socket
import time

from bench.load import loadgen
from bench.load.growth import OTHER_FILES
from tests.fault.clients import SIMPLE_BODY, answers, connect, post
from tests.fault.load import asked, half_of_peak, load, neighbours
from tests.fault.subject import Subject, seconds_until, subject, wait_for
from tests.fault.trial import KIB, Trial

ACTIVE = 16


def idle(trial: Trial) -> None:
    """Open connections that say nothing beside some that ask."""
    room = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - OTHER_FILES
    many = min(trial.count(10_000, 2000), room)
    seconds = trial.count(6, 2)
    with subject("--load", "simple") as server:
        rate = half_of_peak(server.port)
        ratios = []
        for _ in range(trial.count(3, 1)):
            alone = loadgen.run(server.port, asked(), ACTIVE, trial.count(2, 1), rate=rate)
            before = server.rss()
            # The warm-up: until all are accepted, which is no idleness.
            with load(server.port, seconds, rate, connections=ACTIVE, silent=many, warmup_s=2) as running:
                wait_for(lambda: server.metric("fastinfer_connections") > many, "all connections")
                held = server.rss() - before
                beside = running.result()
            ratios.append(beside["p99_us"] / alone["p99_us"])
            if len(ratios) == 1:  # later ones find the memory of the first
                trial.most("KiB for each connection", held / many / KIB, 8)
            trial.equal("failed requests", beside["errors"], 0)
            wait_for(lambda: server.metric("fastinfer_connections") <= 1, "no connections")
        silent = [connect(server.port) for _ in range(many)]
        wait_for(lambda: server.metric("fastinfer_connections") > many, "all connections")
        before_s = server.cpu_s()
        time.sleep(4)
        trial.most("share of a core that they take by themselves", (server.cpu_s() - before_s) / 4, 0.01)
        for sock in silent:
            sock.close()
        trial.tell("idle connections", many)
        trial.most("p99 of the active ones, times without", sorted(ratios)[len(ratios) // 2], 1.1, timed=True)


def out_of_files(trial: Trial) -> None:
    """More connections than the process may have files."""
    with subject("--load", "simple") as server:
        existing = connect(server.port)
        rate = half_of_peak(server.port)
        with neighbours(server.port, rate, slice_s=5) as beside:
            wait_for(lambda: server.metric("fastinfer_connections") > ACTIVE, "the neighbours")
            fds = server.fds()
            hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)[1]
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (fds + 50, hard))
            others = [connect(server.port) for _ in range(trial.count(1000, 100))]
            for sock in others:
                sock.sendall(post("simple", SIMPLE_BODY))
            trial.equal("answers on an existing connection", _ask(existing, 100), 100)
            for sock in others:
                sock.close()
            took = seconds_until(lambda: _answers_anew(server))
        trial.equal("failed requests of others", beside["failed"], 0)
        trial.most("seconds until new connections are answered", took, 1, timed=True)
        _spin(trial, server)


def _spin(trial: Trial, server: Subject) -> None:
    """What a full process does while nobody asks anything."""
    hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (server.fds(), hard))
    waiting = [connect(server.port) for _ in range(50)]
    time.sleep(0.2)
    before = server.cpu_s()
    time.sleep(2)
    trial.most("CPU seconds in 2 s with connections that cannot be accepted", server.cpu_s() - before, 0.2)
    for sock in waiting:
        sock.close()


def _ask(sock: socket.socket, times: int) -> int:
    """How many of so many requests are answered with 200, one after the other."""
    right = 0
    for _ in range(times):
        sock.sendall(post("simple", SIMPLE_BODY))
        right += next(answers(sock))[0] == 200
    return right


def _answers_anew(server: Subject) -> bool:
    with contextlib.suppress(OSError), connect(server.port) as sock:
        sock.settimeout(0.2)
        return _ask(sock, 1) == 1
    return False
