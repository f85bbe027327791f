"""A client that does nothing wrong: `python -m tests.fault.healthy PORT SECONDS SEED`.

It asks at a constant rate whatever happens (an open loop), so a server that stands still delays every request that
falls due meanwhile: a latency counts from the moment that the request was due. Each request has values of its own, and
each answer is compared with them bit for bit. The kinds take the ways that requests can take through the server:
decoded on the event loop or on a native thread, inflated, binary, text, run on a native thread.

It is a process of its own with a normal priority and little to do, since attackers and server share the machine.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import struct
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvloop

from bench.make_models import product_chain
from tests import onnx_models
from tests.fault import bombs
from tests.fault.clients import head

SLOW = "slow"
MODELS: dict[str, bytes] = {
    "simple": onnx_models.simple(),
    SLOW: product_chain(SLOW, 4).SerializeToString(),
    **bombs.MODELS,
}
PATIENCE_S = 45.0  # longer than the server's deadline
LARGE_ELEMENTS = 14_000  # about 150 KB of text: above what is decoded on the loop
CONNECTIONS = 3  # of each kind
WORST = 20

Check = Callable[[bytes, int], bool]
"""Whether a body, with the size of its JSON text (-1: all), is right."""
Maker = Callable[[random.Random], tuple[bytes, Check]]


# --- The kinds of requests --------------------------------------------------------------------------------------------


def _output(body: bytes) -> Any:
    return json.loads(body)["outputs"][0]["data"]


def _integers(source: random.Random) -> tuple[bytes, Check]:
    a, b = ([source.randrange(-(2**30), 2**30) for _ in range(16)] for _ in range(2))
    inputs = [{"name": f"INPUT{i}", "shape": [1, 16], "datatype": "INT32", "data": x} for i, x in enumerate((a, b))]
    body = json.dumps({"inputs": inputs}).encode()

    def right(answer: bytes, _: int) -> bool:
        got = {each["name"]: each["data"] for each in json.loads(answer)["outputs"]}
        return got == {
            "OUTPUT0": [x + y for x, y in zip(a, b, strict=True)],
            "OUTPUT1": [x - y for x, y in zip(a, b, strict=True)],
        }

    return head("/v2/models/simple/infer", len(body)) + body, right


def _binary(source: random.Random) -> tuple[bytes, Check]:
    raw = struct.pack("<256f", *(source.uniform(-1e30, 1e30) for _ in range(256)))
    text = (
        b'{"inputs":[{"name":"x","shape":[1,256],"datatype":"FP32","parameters":{"binary_data_size":1024}}],'
        b'"parameters":{"binary_data_output":true}}'
    )
    message = head("/v2/models/same_fp32/infer", len(text) + 1024, f"Inference-Header-Content-Length: {len(text)}")
    return message + text + raw, lambda answer, size: answer[size:] == raw


def _strings(source: random.Random) -> tuple[bytes, Check]:
    words = [f'é "{source.getrandbits(64):x}"\n😀' for _ in range(8)]
    inputs = [{"name": "x", "shape": [1, 8], "datatype": "BYTES", "data": words}]
    body = json.dumps({"inputs": inputs}, ensure_ascii=source.random() < 0.5).encode()
    return head("/v2/models/same_bytes/infer", len(body)) + body, lambda answer, _: _output(answer) == words


def _run(source: random.Random) -> tuple[bytes, Check]:
    value = float(np.float32(source.random()))
    body = json.dumps({"inputs": [{"name": "input", "shape": [1, 1], "datatype": "FP32", "data": [value]}]}).encode()
    message = head(f"/v2/models/{SLOW}/infer", len(body)) + body
    return message, lambda answer, _: [float(np.float32(each)) for each in _output(answer)] == [value]


def _text(count: int, seed: int) -> bytes:
    """Numbers whose shortest text is what is sent, so that the answer's text must be the same."""
    return b",".join(str(each).encode() for each in np.random.default_rng(seed).random(count, np.float32) * 0.9 + 0.05)


_TAIL = b"," + _text(LARGE_ELEMENTS - 8, 5) + b"]}]}"


def _large_parts(source: random.Random) -> tuple[bytes, bytes]:
    """The start of a large body, whose numbers are its own, and all numbers."""
    own = _text(8, source.getrandbits(32))
    start = b'{"inputs":[{"name":"x","shape":[1,%d],"datatype":"FP32","data":[' % LARGE_ELEMENTS + own
    return start, own + _TAIL[: -len(b"}]}")]


def _large(source: random.Random) -> tuple[bytes, Check]:
    start, numbers = _large_parts(source)
    message = head("/v2/models/same_fp32/infer", len(start) + len(_TAIL)) + start + _TAIL
    return message, lambda answer, _: numbers in answer


def _deflated_tail() -> bytes:
    """The tail as blocks of deflate that refer to nothing before them: compressed once for all requests."""
    made = zlib.compressobj(6, wbits=-zlib.MAX_WBITS)
    return made.compress(_TAIL) + made.flush()


_DEFLATED_TAIL = _deflated_tail()


def _gzip(source: random.Random) -> tuple[bytes, Check]:
    start, numbers = _large_parts(source)
    made = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    blocks = made.compress(start) + made.flush(zlib.Z_FULL_FLUSH) + _DEFLATED_TAIL
    end = struct.pack("<II", zlib.crc32(_TAIL, zlib.crc32(start)), len(start) + len(_TAIL))
    body = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + blocks + end
    message = head("/v2/models/same_fp32/infer", len(body), "Content-Encoding: gzip") + body
    return message, lambda answer, _: numbers in answer


KINDS: dict[str, tuple[Maker, float]] = {
    "integers": (_integers, 40),
    "binary": (_binary, 20),
    "strings": (_strings, 15),
    "run on a thread": (_run, 10),
    "large": (_large, 8),
    "gzip": (_gzip, 8),
}
"""How a request of each kind is made, and how many there are in a second."""


# --- The client -------------------------------------------------------------------------------------------------------


@dataclass
class Due:
    """A request that is due or sent."""

    at: float
    message: bytes
    right: Check


@dataclass
class Seen:
    """What came of a kind's requests: milliseconds of those that were answered, and what failed."""

    ms: list[float] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


class Connection(asyncio.Protocol):
    """One request at a time; opened again when the server has closed it."""

    def __init__(self, client: Client, kind: str) -> None:
        self._client, self._kind = client, kind
        self._transport: asyncio.Transport | None = None
        self._data = bytearray()
        self._head: tuple[int, dict[bytes, bytes], int] | None = None
        self._sent: Due | None = None
        self._opening = False

    @property
    def free(self) -> bool:
        return self._sent is None and not self._opening

    def send(self, due: Due) -> None:
        self._sent = due
        if self._transport is None:
            self._opening = True
            self._client.tasks.add(task := asyncio.ensure_future(self._open()))
            task.add_done_callback(self._client.tasks.discard)
        else:
            self._transport.write(due.message)

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await asyncio.wait_for(loop.create_connection(lambda: self, "127.0.0.1", self._client.port), 20)
        except (OSError, TimeoutError) as error:
            self._opening = False
            self._failed(f"no connection: {type(error).__name__}")
            return
        self._opening = False
        if self._sent is not None and self._transport is not None:
            self._transport.write(self._sent.message)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while self._sent is not None:
            if self._head is None:
                end = self._data.find(b"\r\n\r\n")
                if end < 0:
                    return
                line, *lines = bytes(self._data[:end]).split(b"\r\n")
                fields = {name.lower(): value.strip() for name, _, value in (each.partition(b":") for each in lines)}
                del self._data[: end + 4]
                status = int(line[9:12])
                if status < 200:
                    continue
                self._head = status, fields, int(fields.get(b"content-length", b"0"))
            status, fields, size = self._head
            if len(self._data) < size:
                return
            body = bytes(self._data[:size])
            del self._data[:size]
            self._head = None
            self._answered(status, fields, body)

    def _answered(self, status: int, fields: dict[bytes, bytes], body: bytes) -> None:
        assert self._sent is not None
        due, self._sent = self._sent, None
        now = time.monotonic()
        if fields.get(b"connection") == b"close" and self._transport is not None:
            self._transport.close()
            self._transport = None
        seen = self._client.seen[self._kind]
        if status != 200:
            self._client.fail(self._kind, f"{status} {body[:150].decode(errors='replace')}")
        else:
            seen.ms.append(1000 * (now - due.at))
            seen.at.append(due.at - self._client.began)
            try:
                right = due.right(body, int(fields.get(b"inference-header-content-length", b"-1")))
            except (ValueError, KeyError, IndexError):
                right = False
            if not right:
                self._client.fail(self._kind, f"a wrong answer: {body[:150]!r}")
        self._client.next(self._kind)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport, self._head = None, None
        self._data.clear()
        if self._sent is not None and not self._opening:
            self._failed("closed without an answer")

    def _failed(self, how: str) -> None:
        self._sent = None
        self._client.fail(self._kind, how)
        self._client.next(self._kind)

    def give_up(self) -> None:
        if self._sent is not None:
            self._sent = None
            self._client.fail(self._kind, f"no answer in {PATIENCE_S:g} s")
        if self._transport is not None:
            self._transport.abort()


class Client:
    def __init__(self, port: int, seed: int) -> None:
        self.port = port
        self.seen = {kind: Seen() for kind in KINDS}
        self.tasks: set[asyncio.Future[None]] = set()
        self._seed = seed
        self._waiting: dict[str, deque[Due]] = {kind: deque() for kind in KINDS}
        self._connections = {kind: [Connection(self, kind) for _ in range(CONNECTIONS)] for kind in KINDS}
        self._late: list[float] = []
        self.began = 0.0

    def fail(self, kind: str, how: str) -> None:
        self.seen[kind].failures.append(f"{time.monotonic() - self.began:.1f} s: {how}")

    def next(self, kind: str) -> None:
        """Sends what waits, if there is a connection for it."""
        waiting = self._waiting[kind]
        for connection in self._connections[kind]:
            if waiting and connection.free:
                connection.send(waiting.popleft())

    async def run(self, seconds: float) -> None:
        source = random.Random(self._seed)
        self.began = began = time.monotonic() + 0.05
        schedule = sorted(
            (began + (number + source.random()) / rate, kind)
            for kind, (_, rate) in KINDS.items()
            for number in range(int(seconds * rate))
        )
        for at, kind in schedule:
            message, right = KINDS[kind][0](source)
            wait = at - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            self._late.append(time.monotonic() - at)
            self._waiting[kind].append(Due(at, message, right))
            self.next(kind)
        patient_until = time.monotonic() + PATIENCE_S
        while time.monotonic() < patient_until and not self._done():
            await asyncio.sleep(0.02)
        for kind, connections in self._connections.items():
            for connection in connections:
                connection.give_up()
            for _ in self._waiting[kind]:
                self.fail(kind, "never sent, since no connection was free")
        await asyncio.sleep(0.05)

    def _done(self) -> bool:
        return not any(self._waiting.values()) and all(
            connection.free for connections in self._connections.values() for connection in connections
        )

    def report(self) -> dict[str, Any]:
        worst = sorted(((ms, at, kind) for kind, ms, at in self._all()), reverse=True)
        together = Seen([ms for ms, _, _ in worst], [], [text for seen in self.seen.values() for text in seen.failures])
        return {
            "kinds": {kind: _figures(seen) for kind, seen in self.seen.items()},
            "all": _figures(together),
            "worst": [{"ms": round(ms, 1), "at_s": round(at, 2), "kind": kind} for ms, at, kind in worst[:WORST]],
            "client_late_p99_ms": round(1000 * float(np.percentile(self._late, 99)), 2),
        }

    def _all(self) -> Iterator[tuple[str, float, float]]:
        for kind, seen in self.seen.items():
            for ms, at in zip(seen.ms, seen.at, strict=True):
                yield kind, ms, at


def _figures(seen: Seen) -> dict[str, Any]:
    ms = seen.ms or [float("nan")]
    percentiles = {
        f"p{q:g}_ms".replace(".", "_"): round(float(np.percentile(ms, q)), 3) for q in (50, 90, 99, 99.9, 100)
    }
    return {"answered": len(seen.ms), "failed": len(seen.failures), "failures": seen.failures[:20], **percentiles}


def main() -> None:
    port, seconds, seed = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    gc.disable()
    client = Client(port, seed)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(client.run(seconds))
    print(json.dumps(client.report()))


if __name__ == "__main__":
    main()
