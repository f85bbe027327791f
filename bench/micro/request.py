"""A whole inference request without a socket, and its parts: what each costs on the loop's thread.

    python bench/micro/request.py [--repeats 9] [--json FILE]

The request is read by the HTTP protocol from a transport that is none, decoded, checked, scheduled, run, encoded and
answered by a real service with the model `simple`. Figures are the best of several repeats, in microseconds. Beside
them stands what orjson, numpy and `onnxruntime.InferenceSession` need for the same, without HTTP, limits or checks.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime
import orjson
import uvloop

from fastinfer.api import routes
from fastinfer.api.service import Service
from fastinfer.backends.onnx import ort
from fastinfer.base import limits
from fastinfer.codec.decode import decode
from fastinfer.codec.encode import encode
from fastinfer.config.server import load_config
from fastinfer.http.connection import Connection
from fastinfer.http.head import parse
from fastinfer.http.head_cache import HeadCache
from fastinfer.http.hub import Hub
from fastinfer.schedule.policy import BatchingPolicy
from fastinfer.schedule.scheduler import Scheduler
from fastinfer.shared.statistics import ModelStats
from fastinfer.tensor.message import BatchResult, InferRequest
from fastinfer.tensor.tensor import Tensor

REPOSITORY = Path(__file__).resolve().parents[2] / "model-repository"
INPUTS = {name: np.arange(16, dtype="i4").reshape(1, 16) * 37 - 300 for name in ("INPUT0", "INPUT1")}


def body() -> bytes:
    """What a small request says."""
    tensors = [{"name": n, "shape": a.shape, "datatype": "INT32", "data": a.ravel()} for n, a in INPUTS.items()]
    return orjson.dumps({"inputs": tensors}, option=orjson.OPT_SERIALIZE_NUMPY)


def head(number: int = 0) -> bytes:
    """A head like a client library's; each number makes another."""
    return (
        b"POST /v2/models/simple/infer HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: bench/%d\r\nAccept: */*\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (number, len(body()))
    )


def own_head(number: int) -> bytes:
    """A head as it comes from a gateway: an id, a trace, and a length of the body that are its own."""
    fields = b"X-Request-Id: %032x\r\nTraceparent: 00-%032x-%016x-01\r\n" % (number, number * 77, number * 5)
    sized = head().replace(b"Length: %d" % len(body()), b"Length: %d" % (len(body()) + number % 90))
    return sized.replace(b"Accept: */*\r\n", b"Accept: */*\r\n" + fields)


def own_requests(count: int) -> list[bytes]:
    """Requests with heads of their own; white space after their bodies makes them as long as the heads say."""
    return [own_head(number) + body() + b" " * (number % 90) for number in range(count)]


class Sink(asyncio.Transport):
    """A transport without a socket: counts what is written and keeps the last of it."""

    def __init__(self) -> None:
        super().__init__()
        self.last: bytes = b""
        self.written: Callable[[], object] = lambda: None

    def write(self, data: Any) -> None:
        self.last = data
        self.written()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def is_reading(self) -> bool:
        return True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def abort(self) -> None:
        pass

    close = write_eof = abort


class Connections:
    """So many connections of a server without sockets."""

    def __init__(self, service: Service, count: int) -> None:
        self.hub = Hub(routes.build(service), limits.HttpLimits(), service.loop)
        self.sinks = [Sink() for _ in range(count)]
        self.protocols = [Connection(self.hub) for _ in range(count)]
        for protocol, sink in zip(self.protocols, self.sinks, strict=True):
            protocol.connection_made(sink)

    async def ask(self, turns: int, requests: Sequence[bytes]) -> None:
        """In each turn of the loop every connection asks once, for one after the other; returns when all are
        answered."""
        loop = asyncio.get_running_loop()
        left, answered = turns, loop.create_future()
        following = cycle([(request, len(request)) for request in requests]).__next__

        def turn() -> None:
            nonlocal left
            if left == 0:
                answered.set_result(None)
                return
            left -= 1
            for protocol in self.protocols:
                request, size = following()
                protocol.get_buffer(65536)[:size] = request
                protocol.buffer_updated(size)

        self.sinks[-1].written = lambda: loop.call_soon(turn)
        turn()
        await answered

    def close(self) -> None:
        for protocol in self.protocols:
            protocol.connection_lost(None)
        self.hub.close()


@asynccontextmanager
async def running():  # type: ignore[no-untyped-def]
    """A service that has loaded `simple` and runs it inline, however slow this machine is."""
    ort.configure(1)
    given = {"model_repository": [REPOSITORY], "load": ["simple"], "inline_run_us": 1_000_000}
    service = Service(load_config(given), asyncio.get_running_loop())
    service.start()
    while service.why_not_ready() is not None:
        await asyncio.sleep(0.01)
    try:
        yield service
    finally:
        await service.close()


def check(answer: bytes) -> None:
    """Raises ValueError unless the answer is right."""
    top, _, text = bytes(answer).partition(b"\r\n\r\n")
    got = [tensor["data"] for tensor in orjson.loads(text)["outputs"]] if top.startswith(b"HTTP/1.1 200") else []
    a, b = (array.ravel() for array in INPUTS.values())
    if got != [(a + b).tolist(), (a - b).tolist()]:
        raise ValueError(bytes(answer).decode())


# --- The parts --------------------------------------------------------------------------------------------------------


def best_us(call: Callable[[], object], times: int, repeats: int, each: int = 1) -> float:
    best = float("inf")
    for _ in range(repeats):
        started = perf_counter()
        for _ in range(times):
            call()
        best = min(best, perf_counter() - started)
    return round(best / times / each * 1e6, 3)


async def best_ask_us(service: Service, connections: int, repeats: int, requests: Sequence[bytes]) -> float:
    """Microseconds a request."""
    made = Connections(service, connections)
    turns = max(50, 4000 // connections)
    best = float("inf")
    for _ in range(repeats + 1):
        started = perf_counter()
        await made.ask(turns, requests)
        best = min(best, perf_counter() - started)
    check(made.sinks[-1].last)
    made.close()
    return round(best / turns / connections * 1e6, 3)


async def best_schedule_us(count: int, repeats: int) -> float:
    """Microseconds a request: submit, group, decide, tell; the batch itself does nothing."""

    def start(batch: list[InferRequest], finished: Callable[[BatchResult], None]) -> None:
        finished(BatchResult([[] for _ in batch]))

    loop = asyncio.get_running_loop()
    policy = BatchingPolicy(max_batch_size=64)
    scheduler = Scheduler(start, policy, instances=1, max_queue_size=4096, timeout_s=60, stats=ModelStats(), loop=loop)
    ended = 0

    def complete(_request: InferRequest, _outcome: object) -> None:
        nonlocal ended
        ended += 1

    best, turns = float("inf"), max(50, 4000 // count)
    for _ in range(repeats):
        waves = [[request_of(INPUTS) for _ in range(count)] for _ in range(turns)]
        for wave in waves:
            for request in wave:
                request.complete = complete
                request.rows = 1
        started = perf_counter()
        for wave in waves:
            wanted = ended + count
            for request in wave:
                scheduler.submit(request)
            while ended < wanted:
                await asyncio.sleep(0)
        best = min(best, perf_counter() - started)
    return round(best / turns / count * 1e6, 3)


def request_of(arrays: dict[str, np.ndarray]) -> InferRequest:
    return InferRequest([Tensor.from_numpy(name, array) for name, array in arrays.items()])


def plain() -> Callable[[], bytes]:
    """orjson, numpy and InferenceSession: body to answer."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(REPOSITORY / "simple" / "1" / "model.onnx", options)
    names, text = [output.name for output in session.get_outputs()], body()

    def call() -> bytes:
        tensors = orjson.loads(text)["inputs"]
        feeds = {each["name"]: np.array(each["data"], np.int32).reshape(each["shape"]) for each in tensors}
        outputs = [
            {"name": name, "datatype": "INT32", "shape": array.shape, "data": array.ravel()}
            for name, array in zip(names, session.run(names, feeds), strict=True)
        ]
        return orjson.dumps({"model_name": "simple", "outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)

    return call


async def measured(repeats: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    async with running() as service:
        for connections in (1, 16, 64):
            for heads, requests in (("equal heads", [head() + body()]), ("heads of their own", own_requests(200))):
                name = f"whole request, {heads}, {connections} in a turn"
                figures[name] = await best_ask_us(service, connections, repeats, requests)
        router, http_limits, raw, text = routes.build(service), limits.HttpLimits(), head(), body()
        cache, own, other = HeadCache(), own_head(1), own_head(2**70)
        for each in (raw, own):
            cache.remember(each, parse(each, http_limits, router))
        figures["head, understood"] = best_us(lambda: parse(raw, http_limits, router), 2000, repeats)
        figures["head, remembered"] = best_us(lambda: cache.get(raw), 20_000, repeats)
        figures["head, remembered with other values"] = best_us(lambda: cache.get(other), 20_000, repeats)
        figures["decode"] = best_us(lambda: decode(text, -1, stable=True, model="simple"), 5000, repeats)
        model = service.repository.find("simple", None)
        request = decode(text, -1, stable=True, model="simple")
        figures["check against the signature"] = best_us(
            lambda: model.signature.check(request, "simple"), 5000, repeats
        )
        outputs = [Tensor.from_numpy(f"OUTPUT{i}", array) for i, array in enumerate(INPUTS.values())]
        respond = model.signature.respond
        response = respond(request, outputs, "simple", "1")
        figures["make the response"] = best_us(lambda: respond(request, outputs, "simple", "1"), 5000, repeats)
        figures["encode"] = best_us(lambda: encode(response), 5000, repeats)
        policy = BatchingPolicy(max_batch_size=64)
        figures["policy, 1 waits"] = best_us(lambda: policy.decide((1,), 0), 20_000, repeats)
        waiting = (1,) * 64
        figures["policy, 64 wait"] = best_us(lambda: policy.decide(waiting, 0), 2000, repeats)
        for count in (1, 64):
            figures[f"scheduler, {count} in a turn"] = await best_schedule_us(count, repeats)
    call = plain()
    figures["orjson + numpy + InferenceSession, no HTTP"] = best_us(call, 2000, repeats)
    figures["orjson.loads + np.array"] = best_us(
        lambda: [np.array(each["data"], np.int32) for each in orjson.loads(text)["inputs"]], 5000, repeats
    )
    listed = [{"name": f"OUTPUT{i}", "data": array} for i, array in enumerate(INPUTS.values())]
    option = orjson.OPT_SERIALIZE_NUMPY
    figures["orjson.dumps of numpy"] = best_us(lambda: orjson.dumps({"outputs": listed}, option=option), 5000, repeats)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    gc.freeze()
    figures = uvloop.run(measured(arguments.repeats))
    for name, us in figures.items():
        print(f"{name:50}{us:9.2f} µs")
    if arguments.json:
        machine = {"cpu": platform.machine(), "cores": len(os.sched_getaffinity(0)), "kernel": platform.release()}
        versions = {"python": platform.python_version(), "onnxruntime": ort.version(), "uvloop": uvloop.__version__}
        document = {"machine": machine, "versions": versions, "repeats": arguments.repeats, "us": figures}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
