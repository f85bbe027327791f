"""Processes that end: as they are told, or by a signal that nobody can catch; each time under load."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from functools import partial
from http.client import HTTPException
from importlib.util import find_spec
from statistics import median

import numpy as np
from onnx import helper, numpy_helper

from tests import onnx_models
from tests.fault.clients import answers, connect, post
from tests.fault.load import CONNECTIONS, failed, half_of_peak, load, neighbours
from tests.fault.storm import storm
from tests.fault.subject import Subject, repository_of, seconds_until, subject, wait_for
from tests.fault.trial import AbsentError, Trial
from tests.support import REPOSITORY, Server, inference, tensor

READY = b"GET /v2/health/ready HTTP/1.1\r\nHost: a\r\n\r\n"
PROCESSES = 2
DEATHS = 2  # that one model is made to cause
SMALLEST = -(2**31)


def deadly(number: int) -> bytes:
    """Each another one: the first quotient does not fit, which the processor answers with SIGFPE."""
    dividends, divisors = tensor("a", [2, 1], "INT32", [SMALLEST, number]), tensor("b", [2, 1], "INT32", [-1, 1])
    return json.dumps(inference(dividends, divisors)).encode()


def terminate(trial: Trial) -> None:
    """SIGTERM to a server that is being asked."""
    rounds, seconds = trial.count(20, 3), 0.5
    lost = answered = unready = unclosed = status = 0
    slowest = 0.0
    for _ in range(rounds):
        with subject("--load", "simple") as server, connect(server.port) as sock:
            sock.sendall(READY)
            told = answers(sock)
            assert next(told)[0] == 200
            rate = max(half_of_peak(server.port), trial.count(5000, 500) / seconds)
            with load(server.port, seconds + 5, rate, until_refused=True) as running:
                time.sleep(seconds)
                began = time.monotonic()
                server.process.terminate()
                seconds_until(lambda: _refuses(server))
                sock.sendall(READY)
                last, fields, _ = next(told, (0, {}, b""))
                unready += last == 503
                unclosed += fields.get("connection") != "close"
                sock.close()
                counted = running.result()
            status |= server.process.wait(60)
            slowest = max(slowest, time.monotonic() - began)
            lost += failed(counted)
            answered += counted["answered"]
    trial.equal("failed requests", lost, 0)
    trial.least("requests", answered, trial.count(100_000, 1000))
    trial.equal("times that readiness was 503 at once", unready, rounds)
    trial.equal("last answers without `Connection: close`", unclosed, 0)
    trial.equal("exit status", status, 0)
    trial.most("seconds from the signal to the end, the longest", slowest, 10, timed=True)


def _refuses(server: Subject) -> bool:
    try:
        connect(server.port).close()
    except ConnectionRefusedError:
        return True
    return False


def connects(trial: Trial) -> None:
    """SIGTERM while clients connect without pause: of one process and of two, IPv4 and IPv6."""
    counts = dict.fromkeys(("connected", "answered", "reset", "unanswered", "slow", "other", "refused"), 0)
    refusals: list[float] = []
    status = 0
    for processes, host in ((0, "127.0.0.1"), (1, "127.0.0.1"), (2, "127.0.0.1"), (2, "::1")):
        for _ in range(trial.count(5, 1)):
            options = ("--load", "none", "--host", host, "--processes", str(processes))
            server = Server(*options, wait=False)
            try:
                seconds_until(lambda: _answers(host, server.port))  # noqa: B023
                with storm(server.port, host) as counted:
                    time.sleep(1)
                    server.process.terminate()
                status |= server.process.wait(60)
            finally:
                server.kill()
            for each in counted:
                refusals.append(each["refusal_s"])
                for what in counts:
                    counts[what] += each[what]
    trial.least("connections", counts["connected"], trial.count(50_000, 1000))
    trial.equal("of these without an answer of 200", counts["connected"] - counts["answered"], 0)
    trial.equal("connections that were reset", counts["reset"], 0)
    trial.equal("connects that waited for half a second", counts["slow"], 0)
    trial.equal("other failures", counts["other"] + counts["unanswered"], 0)
    trial.least("connects that were refused", counts["refused"], 1)
    trial.most("ms until a connect was refused, median", 1000 * median(refusals), 1, timed=True)
    trial.equal("exit status", status, 0)


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection((host, port), timeout=5).close()
        return True
    return False


def given_up(trial: Trial) -> None:
    """A run inside of an operator, requests that wait for it, and an upload, at the end of a drain."""
    drain_s = trial.count(3, 1)
    body = json.dumps(inference(tensor("x", [1], "FP32", [0.0]))).encode()
    right, slowest, status = 0, 0.0, 0
    configs = {"long": "max_batch_size = 0\n"}
    with repository_of({"long": onnx_models.one_long_operator()}, configs) as repository:
        for processes in (0, 1, 2):
            with subject("--drain-timeout-s", str(drain_s), repository=repository, processes=processes) as server:
                with contextlib.ExitStack() as stack:
                    asking = [stack.enter_context(connect(server.port)) for _ in range(20)]
                    for sock in asking[1:]:
                        sock.sendall(post("long", body))
                    asking[0].sendall(post("long", body)[:-1])
                    wait_for(lambda: server.metric("fastinfer_requests_in_flight") == len(asking) - 1, "requests")  # noqa: B023
                    began = time.monotonic()
                    server.process.terminate()
                    for sock in asking:
                        code, fields, _ = next(answers(sock), (0, {}, b""))
                        right += code == 503 and "retry-after" in fields and fields.get("connection") == "close"
                status |= server.process.wait(60)
                slowest = max(slowest, time.monotonic() - began)
    trial.equal("answers of 503 with Retry-After and `Connection: close`", right, 60)
    trial.equal("exit status", status, 0)
    trial.most("seconds from the end of the drain to the end, the longest", slowest - drain_s, 5, timed=True)


def inspected(trial: Trial) -> None:
    """SIGUSR1 and SIGUSR2 to a supervisor and its processes, again and again, while they are asked."""
    rounds = trial.count(200, 20)
    with subject("--load", "simple", processes=PROCESSES) as server:
        before = server.children()
        with neighbours(server.port, half_of_peak(server.port), slice_s=2) as beside:
            for _ in range(rounds):
                server.process.send_signal(signal.SIGUSR1)
                server.process.send_signal(signal.SIGUSR2)
                for pid in before:
                    os.kill(pid, signal.SIGUSR1)
                time.sleep(0.05)
        told = seconds_until(lambda: _told(server.log) >= 1)
        trial.equal("failed requests", beside["failed"], 0)
        trial.least("requests", beside["answered"], trial.count(20_000, 1000))
        trial.equal("processes that ended", len(set(before) - set(server.children())), 0)
        trial.equal("times that nothing was written", float(told == float("inf")), 0)
        trial.equal("exit status", server.stop(), 0)


def _told(log: str) -> int:
    """How often a process has written all of its state."""
    return min(log.count(what) for what in ("thread 'MainThread': ", "requests in flight: ", "native threads: "))


# --- A supervisor and its processes -----------------------------------------------------------------------------------


def restart(trial: Trial) -> None:
    """SIGHUP to a supervisor whose processes are being asked: each is replaced."""
    rounds = trial.count(20, 2)
    with subject("--load", "simple", processes=PROCESSES) as server:
        rate = half_of_peak(server.port)
        same = 0
        with neighbours(server.port, rate, slice_s=trial.count(10, 2)) as beside:
            for _ in range(rounds):
                before = set(server.children())
                server.process.send_signal(signal.SIGHUP)
                took = seconds_until(partial(_replaced, server, before), 60)
                same += took == float("inf")
        trial.equal("failed requests", beside["failed"], 0)
        trial.equal("connects that were refused", beside["refused"], 0)
        trial.least("requests", beside["answered"], trial.count(100_000, 1000))
        trial.equal("restarts that did not replace all processes", same, 0)
        trial.equal("exit status", server.stop(), 0)


def _replaced(server: Subject, before: set[int]) -> bool:
    """As many processes as before, all of them others."""
    now = server.children()
    return len(now) == PROCESSES and not before & set(now)


def kill(trial: Trial) -> None:
    """SIGKILL to one of the processes that are being asked."""
    rounds = trial.count(20, 3)
    with subject("--load", "simple", processes=PROCESSES) as server:
        load_s = _load_s(server, "simple")
        rate = half_of_peak(server.port)
        seconds: list[float] = []
        with neighbours(server.port, rate, slice_s=trial.count(10, 2)) as beside:
            for number in range(rounds):
                before = _loads(server)
                os.kill(server.children()[number % PROCESSES], signal.SIGKILL)
                seconds.append(seconds_until(partial(_whole, server, before), 60))
                time.sleep(0.5)
        _survived(trial, server, rounds, beside["failed"], beside["answered"], seconds, load_s)


def _loads(server: Subject) -> int:
    """How often a process has told that it serves `simple`."""
    return server.log.count("'simple' version 1: ")


def _whole(server: Subject, before: int) -> bool:
    """A process more than before has told that it serves."""
    return len(server.children()) == PROCESSES and _loads(server) > before


def _load_s(server: Subject, *names: str) -> float:
    """How long a process needs for so many models, while it has nothing else to do."""
    for name in names:
        assert server.post(f"/v2/models/{name}/unload").status == 200
    began = time.monotonic()
    for name in names:
        assert server.post(f"/v2/models/{name}/load").status == 200
    return (time.monotonic() - began) / PROCESSES  # one after the other


def _survived(
    trial: Trial, server: Subject, deaths: int, lost: int, answered: int, seconds: list[float], load_s: float
) -> None:
    trial.most("failed requests", lost, deaths * CONNECTIONS)
    trial.tell("requests", answered)
    trial.tell("seconds that the models take to load", load_s)
    trial.most("seconds until a replacement is ready, median", median(seconds), 1 + load_s, timed=True)
    trial.most("the longest, with the pause after short lives", max(seconds), 3, timed=True)
    trial.equal("replacements that never came", seconds.count(float("inf")), 0)
    trial.equal("supervisors that ended", float(server.process.poll() is not None), 0)


def floating_point(trial: Trial) -> None:
    """Requests that make the processor raise SIGFPE inside a model."""
    rounds = trial.count(20, 3)
    # Of one model more deaths within a minute would withdraw it (hostile.withdrawn).
    models = [f"divide{number}" for number in range(-(-rounds // DEATHS))]
    loads = [word for name in (*models, "simple") for word in ("--load", name)]
    with (
        repository_of(dict.fromkeys(models, onnx_models.divide())) as repository,
        subject(*loads, "--model-repository", str(REPOSITORY),
                repository=repository, processes=PROCESSES) as server,
    ):  # fmt: skip
        load_s = _load_s(server, *models, "simple")
        rate = half_of_peak(server.port)
        seconds: list[float] = []
        refused = 0
        with neighbours(server.port, rate, slice_s=trial.count(10, 2)) as beside:
            for number in range(rounds):
                for _ in range(2):
                    before = _loads(server)
                    if _ask_deadly(server, models[number // DEATHS], number):
                        refused += 1
                    else:  # it was run, and its process is gone
                        seconds.append(seconds_until(partial(_whole, server, before), 60))
        trial.least("processes that died of it", len(seconds), rounds)
        trial.tell("deadly requests that were asked again and refused", refused)
        _survived(trial, server, len(seconds), beside["failed"], beside["answered"], seconds, load_s)


def _ask_deadly(server: Subject, model: str, number: int) -> int:
    """The status of the answer, 0 where the connection is closed instead."""
    with contextlib.suppress(OSError, AssertionError), connect(server.port) as sock:
        sock.sendall(post(model, deadly(number)))
        return next(answers(sock), (0,))[0]
    return 0


def quarantine(trial: Trial) -> None:
    """A model that kills its process whenever it is loaded: its trial runs divide the smallest number by -1."""
    if find_spec("fastinfer.repository.crashes") is None:
        raise AbsentError("there is no record of what ends processes yet: a deadly load is tried in each of them")
    with (
        repository_of({"deadly": _deadly_when_warm()}) as repository,
        subject("--load", "simple", "--model-repository", str(REPOSITORY), repository=repository,
                processes=PROCESSES) as server,
    ):  # fmt: skip
        told, deaths = [], 0
        with neighbours(server.port, half_of_peak(server.port), slice_s=2) as beside:
            for _ in range(4):
                before = server.children()
                told.append(_status_of_load(server, "deadly"))
                wait_for(lambda: len(server.children()) == PROCESSES, "all processes")
                deaths += len(set(before) - set(server.children()))
        trial.equal("loads that succeeded", told.count(200), 0)
        trial.equal("status of the last load", told[-1], 400)
        trial.most("processes that died of four loads", deaths, PROCESSES)
        trial.most("failed requests of others", beside["failed"], deaths * CONNECTIONS)
        trial.equal("readiness at the end", server.get("/v2/health/ready").status, 200)


def _status_of_load(server: Subject, name: str) -> int:
    """0 where the connection is closed instead."""
    try:
        return server.post(f"/v2/models/{name}/load").status
    except (OSError, HTTPException):
        return 0


def _deadly_when_warm() -> bytes:
    """Divides the smallest number by -1, whatever it is asked."""
    weights = {"zero": 0, "smallest": SMALLEST, "one": 1}

    # x * 0 + smallest: what the optimiser cannot do beforehand.
    nodes = [
        helper.make_node("Mul", ["x", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "smallest"], ["a"]),
        helper.make_node("Sub", ["nothing", "one"], ["b"]),
        helper.make_node("Div", ["a", "b"], ["y"]),
    ]
    return onnx_models.model(
        nodes,
        [onnx_models.value("x", "INT32", ["batch", 1])],
        [onnx_models.value("y", "INT32", ["batch", 1])],
        [numpy_helper.from_array(np.array([value], np.int32), name) for name, value in weights.items()],
    )
