"""Load while something happens: `bench/load/loadgen` at a constant rate, its answers checked."""

from __future__ import annotations

import contextlib
import json
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

from bench.load import loadgen
from bench.load.scenarios import SIMPLE, Case, cases
from tests.support import REPOSITORY

CONNECTIONS = 16
PEAK_S = 0.5


@dataclass(frozen=True)
class Kind:
    """A class of requests, as the load generator counts them."""

    name: str
    weight: int = 1


@dataclass(frozen=True)
class Request:
    """One request; `right` says whether the body of a 200 is what it should be."""

    method: str
    path: str
    body: bytes = b""
    right: Callable[[Any], bool] | None = None
    fields: str = ""

    def request(self) -> bytes:
        """As it is sent."""
        head = f"{self.method} {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(self.body)}\r\n"
        return f"{head}{self.fields}\r\n".encode() + self.body

    def check(self, body: bytes, json_size: int = -1) -> None:  # noqa: ARG002
        """ValueError unless it is right."""
        if self.right is not None and not self.right(json.loads(body)):
            raise ValueError(f"a wrong answer: {body[:200]!r}")


def infer(model: str, body: Any, right: Callable[[Any], bool] | None = None) -> Request:
    """An inference request; `right` sees the data of the first output."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    seen = None if right is None else lambda answer: right(answer["outputs"][0]["data"])
    return Request("POST", f"/v2/models/{model}/infer", text, seen)


@cache
def simple() -> list[Case]:
    """Requests to `simple` with their right answers, bit for bit."""
    return cases(SIMPLE, {"simple": REPOSITORY / "simple" / "1" / "model.onnx"})


def asked(*parts: tuple[Kind, Sequence[Any]]) -> Any:
    """What the load generator takes; `simple` where nothing is said."""
    return parts or [(SIMPLE, simple())]


def peak(port: int, what: Any = None, connections: int = CONNECTIONS, seconds: float = PEAK_S) -> float:
    """Requests a second in the closed loop."""
    return float(loadgen.run(port, what or asked(), connections, seconds)["requests_per_s"])


@contextlib.contextmanager
def load(
    port: int,
    seconds: float,
    rate: float,
    what: Any = None,
    connections: int = CONNECTIONS,
    *,
    silent: int = 0,
    warmup_s: float = 0,
    until_refused: bool = False,
) -> Iterator[Future[dict[str, Any]]]:
    """Load during a block, and for so many seconds at least; the result holds what was counted after the warm-up.

    WrongAnswer where an answer of 200 is not right.
    """
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            loadgen.run,
            port,
            what or asked(),
            connections,
            seconds,
            rate=rate,
            silent=silent,
            warmup=warmup_s,
            errors_allowed=True,
            until_refused=until_refused,
        )
        yield running


def half_of_peak(port: int) -> float:
    """Half of what the server reaches on `simple`."""
    return 0.5 * peak(port)


@contextlib.contextmanager
def neighbours(port: int, rate: float, what: Any = None, *, slice_s: float = 1.0) -> Iterator[dict[str, Any]]:
    """Load for as long as the block lasts, in slices; what was counted stands in the dict afterwards.

    ``answered``, ``failed`` and ``refused`` are sums; ``p99_us`` is the median of the slices, ``max_us`` the largest.
    WrongAnswer as above.
    """
    total: dict[str, Any] = {}
    slices: list[dict[str, Any]] = []
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            with load(port, slice_s, rate, what) as running:
                slices.append(running.result())

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(run)
        try:
            yield total
        finally:
            ended.set()
            asking.result()
    total["answered"] = sum(each["answered"] for each in slices)
    total["failed"] = sum(map(failed, slices))
    total["refused"] = sum(each["refused"] for each in slices)
    total["first_error"] = next(
        (each.get("first_error", "no answer in five seconds") for each in slices if failed(each)), ""
    )
    total["p99_us"] = statistics.median(each["p99_us"] for each in slices)
    total["max_us"] = max(each["max_us"] for each in slices)


def failed(counted: dict[str, Any]) -> int:
    """Requests that were not answered with 200: refused connects are none, nor is what waited for a connection."""
    return int(counted["errors"] - counted["refused"] + counted["unfinished"] - counted["unsent"])


def statuses(counted: dict[str, Any], name: str) -> dict[str, int]:
    """How often a class was answered with what."""
    seen = counted["classes"].get(name, {})
    return dict(seen.get("statuses", {"200": seen.get("requests", 0)}))
