"""Requests that are sent to do harm: to a model's cost, to its process, to its queue."""

from __future__ import annotations

import http.client
import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Final

from bench.load import loadgen
from tests import onnx_models
from tests.costly_models import ALL
from tests.fault.clients import connect, post
from tests.fault.load import CONNECTIONS, Kind, Request, asked, half_of_peak, neighbours
from tests.fault.subject import Subject, repository_of, subject, wait_for
from tests.fault.trial import Trial
from tests.support import REPOSITORY, inference, tensor

DIMENSIONS: Final = 14  # of 1 or 2 each: 16,384 small shapes
BUSY = "max_batch_size = 4\n[[instance_group]]\ncount = 1\n"


def costly_requests(trial: Trial) -> None:
    """Requests that take a second, to models that were quick until then: of other values, or of another shape."""
    with (
        repository_of({name: costly.model for name, costly in ALL.items()}) as repository,
        subject("--model-repository", str(REPOSITORY), "--inline-run-us", "500", repository=repository) as server,
    ):  # fmt: skip
        for name, costly in ALL.items():
            cheap = json.dumps(costly.cheap).encode()
            for _ in range(50):
                assert server.infer(name, cheap).status == 200
        dear = {name: json.dumps(costly.dear).encode() for name, costly in ALL.items()}
        rate = trial.count(500, 200)
        health = [(Kind("live"), [Request("GET", "/v2/health/live")])]
        with neighbours(server.port, rate, health) as beside:
            time.sleep(1)
        with neighbours(server.port, rate, health) as during, ThreadPoolExecutor(1) as pool:
            for _ in range(trial.count(3, 1)):
                for name, body in dear.items():
                    assert pool.submit(server.infer, name, body).result().status == 200
        trial.equal("unanswered health checks", during["failed"], 0)
        trial.most("ms of a health check meanwhile, p99", during["p99_us"] / 1e3, 50, timed=True)
        trial.tell("the same before", beside["p99_us"] / 1e3, timed=True)
        trial.equal("overruns on the loop's thread", server.metric("fastinfer_inline_overruns_total"), 0)


def withdrawn(trial: Trial) -> None:
    """A model that ends processes, with other values and another shape each time."""
    requests = trial.count(60, 12)
    with (
        repository_of({"divide": onnx_models.divide("INT64")}) as repository,
        subject("--load", "divide", "--load", "simple", "--model-repository", str(REPOSITORY),
                repository=repository, processes=2) as server,
    ):  # fmt: skip
        seen: dict[int, int] = {}
        with neighbours(server.port, half_of_peak(server.port) / 2) as beside:
            for number in range(requests):
                body = inference(
                    tensor("a", [number + 1, 1], "INT64", [-(2**63)] * (number + 1)),
                    tensor("b", [number + 1, 1], "INT64", [-1] * (number + 1)),
                )
                status = _status_of(server, "divide", body)
                seen[status] = seen.get(status, 0) + 1
        deaths = seen.get(0, 0)
        trial.equal("processes that died of it", deaths, 3)
        trial.equal("refused with 503", seen.get(503, 0), requests - 3)
        trial.most("failed requests of others", beside["failed"], deaths * CONNECTIONS)
        trial.equal("readiness of the model", server.get("/v2/models/divide/ready").status, 503)
        trial.equal("readiness of the server", server.get("/v2/health/ready").status, 200)
        trial.equal("models that are withdrawn", server.metric("fastinfer_models_withdrawn"), 1)


def _status_of(server: Subject, model: str, body: Any) -> int:
    """0 where the connection is closed instead."""
    try:
        return server.infer(model, body).status
    except (OSError, http.client.HTTPException):
        return 0


def shapes_that_leave(trial: Trial) -> None:
    """Clients with a shape each wait for one model, and leave at once; before that, as many with one shape."""
    many = trial.count(9000, 1000)
    with (
        repository_of({"busy": onnx_models.endless(rest=["open"] * DIMENSIONS)}, {"busy": BUSY}) as repository,
        subject("--load", "busy", "--load", "simple", "--model-repository", str(REPOSITORY), repository=repository,
                processes=0) as server,
    ):  # fmt: skip
        alike, _, alike_failed = _leave(trial, server, [1] * many)
        different, worst_ms, failed = _leave(trial, server, range(many))
        trial.equal("unanswered health checks", alike_failed + failed, 0)
        trial.most("processor time, times that of clients with one shape", different / alike, 1.5, timed=True)
        trial.tell("ms of a health check meanwhile, at most", worst_ms, timed=True)
        wait_for(lambda: server.metric("fastinfer_batches_running", model="busy") == 0, "no run for nobody")
        trial.equal("failed requests of another model", loadgen.run(server.port, asked(), 4, 0.5)["errors"], 0)


def _leave(trial: Trial, server: Subject, shapes: Sequence[int]) -> tuple[float, float, int]:
    """Clients with these shapes come and leave.

    Returns:
        The processor time that the server took for their departure, in seconds; the longest wait of a health check, in
        milliseconds; and how many of those were not answered.
    """
    health = [(Kind("live"), [Request("GET", "/v2/health/live")])]
    with ExitStack() as stack:
        socks = [stack.enter_context(connect(server.port)) for _ in shapes]
        for number, sock in zip(shapes, socks, strict=True):
            shape = [1, *(1 + (number >> place & 1) for place in range(DIMENSIONS))]
            body = inference(tensor("x", shape, "FP32", [0] * math.prod(shape)))
            sock.sendall(post("busy", json.dumps(body).encode()))
        wait_for(lambda: server.metric("fastinfer_requests_in_flight", model="busy") == len(shapes), "all in flight")
        with neighbours(server.port, trial.count(200, 100), health) as beside:
            before = server.cpu_s()
            for sock in socks:
                sock.close()
            wait_for(lambda: server.metric("fastinfer_queue_depth", model="busy") == 0, "all gone")
            took_s = server.cpu_s() - before
    return took_s, beside["max_us"] / 1e3, beside["failed"]
