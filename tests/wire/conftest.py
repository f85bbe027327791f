"""A server with handlers to try the protocol with, and a client that sends raw bytes and reads answers strictly."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import uvloop

from fastinfer.base.errors import ApiError
from fastinfer.base.limits import HttpLimits
from fastinfer.http.exchange import Exchange
from fastinfer.http.server import Server

TIMEOUT_S = 10.0


@dataclass
class Match:
    handler: Callable[[Exchange], Any]
    max_body_bytes: int = 64 * 1024 * 1024
    arguments: tuple[str, ...] = ()
    compress_from: int | None = 1024


class Handlers:
    """The router: each route is a behaviour."""

    def __init__(self) -> None:
        self.held: list[Exchange] = []
        self.kept: list[np.ndarray] = []
        self.abandoned = 0
        self.calls = 0

    def resolve(self, method: str, path: bytes) -> Match:
        name, _, argument = path.decode().strip("/").partition("/")
        handler = getattr(self, f"on_{name}", None)
        if handler is None:
            raise ApiError(404, "no such path")
        if name == "echo" and method not in ("GET", "HEAD", "POST"):
            raise ApiError(405, "not allowed", headers=((b"Allow", b"GET, HEAD, POST"),))
        max_body_bytes = 10 if name == "tiny" else 4 * 1024 * 1024
        return Match(handler, max_body_bytes, (argument,), compress_from=None if name == "plain" else 1024)

    def on_echo(self, exchange: Exchange) -> None:
        """The body, at once."""
        self.calls += 1
        exchange.respond(200, bytes(exchange.body))

    on_tiny = on_plain = on_echo

    def on_headers(self, exchange: Exchange) -> None:
        exchange.respond(200, repr(sorted(exchange.headers.items())).encode(), b"text/plain")

    def on_times(self, exchange: Exchange) -> None:
        """When its first byte came, and when it is handled."""
        exchange.respond(200, f"{exchange.arrived_ns} {exchange.handled_ns}".encode())

    def on_later(self, exchange: Exchange) -> None:
        """The body, after as many milliseconds as it says."""
        body = bytes(exchange.body)
        asyncio.get_running_loop().call_later(int(body) / 1000, exchange.respond, 200, body)

    def on_hold(self, exchange: Exchange) -> None:
        """No answer until the test gives it."""
        self.held.append(exchange)

        def abandoned() -> None:
            self.abandoned += 1

        exchange.on_client_gone = abandoned

    def on_large(self, exchange: Exchange) -> None:
        """As many bytes as the path says, in buffers of 64 KiB."""
        size = int(exchange.arguments[0])
        block = memoryview(bytes(65536))
        blocks = [block] * (size // 65536)
        exchange.respond(
            200, [*blocks, block[: size % 65536]], b"application/octet-stream", ((b"X-Size", b"%d" % size),)
        )

    def on_fail(self, exchange: Exchange) -> None:
        raise ValueError(f"a bug: {exchange.method}")

    def on_refuse(self, exchange: Exchange) -> None:
        raise ApiError(503, f"not {exchange.method}", retry_after_s=7)

    def on_misbehave(self, exchange: Exchange) -> None:
        """Answers that cannot be written."""
        body: Any = {"text": "text", "field": b"x", "view": memoryview(bytes(100))[::2]}[exchange.arguments[0]]
        fields = ((b"X", b"a\r\nSet-Cookie: b"),) if exchange.arguments[0] == "field" else ()
        exchange.respond(200, body, fields=fields)

    def on_tensors(self, exchange: Exchange) -> None:
        """Buffers of all shapes and formats."""
        empty = np.empty((0, 3), np.float32)
        values = np.arange(int(exchange.arguments[0]), dtype=np.float32).reshape(2, -1)
        exchange.respond(200, [b"", empty, values, bytearray(b"x")])

    async def on_task(self, exchange: Exchange) -> None:
        await asyncio.sleep(0.01)
        exchange.respond(200, bytes(exchange.body))

    async def on_failing_task(self, exchange: Exchange) -> None:
        await asyncio.sleep(0)
        raise ApiError(400, f"no {exchange.method}")

    def on_keep(self, exchange: Exchange) -> None:
        """Keeps a view into the read buffer, against the rules."""
        self.kept.append(np.frombuffer(exchange.body, np.uint8))
        exchange.respond(200, b"kept")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Client:
    """A raw connection."""

    port: int
    sock: socket.socket = field(init=False)
    rest: bytes = b""

    def __post_init__(self) -> None:
        self.sock = socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> Client:
        self.sock.sendall(data)
        return self

    def send_pieces(self, pieces: list[bytes]) -> Client:
        """Each piece in a segment of its own, as far as the system lets us."""
        for piece in pieces:
            self.sock.sendall(piece)
            time.sleep(0)
        return self

    def _receive(self) -> bool:
        try:
            data = self.sock.recv(1 << 20)
        except ConnectionResetError:
            raise AssertionError(f"connection reset; got {self.rest[:200]!r}") from None
        self.rest += data
        return bool(data)

    def answer(self, head_only: bool = False) -> Answer | None:
        """The next answer; None if the server has closed instead."""
        while b"\r\n\r\n" not in self.rest:
            if not self._receive():
                assert self.rest == b"", f"half an answer: {self.rest[:200]!r}"
                return None
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        version, status, _ = status_line.split(" ", 2)
        assert version == "HTTP/1.1"
        headers = {}
        for line in lines:
            name, value = line.split(": ", 1)
            assert name.lower() not in headers
            headers[name.lower()] = value
        body = b""
        if status != "100":
            size = int(headers["content-length"])
            while not head_only and len(self.rest) < size:
                assert self._receive(), "half a body"
            if not head_only:
                body, self.rest = self.rest[:size], self.rest[size:]
        return Answer(int(status), headers, body)

    def answers(self) -> list[Answer]:
        """All answers until the server closes."""
        found = []
        while (answer := self.answer()) is not None:
            found.append(answer)
        return found

    def closed(self) -> bool:
        """Waits until the server closes; whether it sent nothing more."""
        return self.answer() is None

    def reset(self) -> None:
        """Goes away at once."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()


class WireServer:
    """A server on a thread of its own."""

    def __init__(self, sockets: Sequence[socket.socket] = (), **limits: Any) -> None:
        self._sockets = sockets
        self.handlers = Handlers()
        self._limits = HttpLimits(**limits)
        self._started: Future[None] = Future()
        self._ended = asyncio.Event()
        self._clients: list[Client] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._started.result(TIMEOUT_S)

    def _run(self) -> None:
        async def main() -> None:
            self.loop = asyncio.get_running_loop()
            self.server = Server(self.handlers, port=0, sockets=self._sockets, limits=self._limits)
            try:
                await self.server.start()
                self.port = self.server.port
            except BaseException as error:
                self._started.set_exception(error)
                raise
            self._started.set_result(None)
            await self._ended.wait()
            if not self.server.draining:
                await self.server.drain(0.2)
            elif self.server.hub.connections:
                self.server.stop()
                self.server.stop()  # as the second signal does
                await self.server.hub.empty()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls on the loop's thread."""
        result: Future[Any] = Future()

        def called() -> None:
            try:
                result.set_result(function(*arguments))
            except BaseException as error:
                result.set_exception(error)

        self.loop.call_soon_threadsafe(called)
        return result.result(TIMEOUT_S)

    def drain(self, timeout_s: float = 5.0) -> Future[bool]:
        return asyncio.run_coroutine_threadsafe(self.server.drain(timeout_s), self.loop)

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits for something to become true on the loop's thread."""
        end = time.monotonic() + TIMEOUT_S
        while not self.call(condition):
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.005)

    def client(self) -> Client:
        client = Client(self.port)
        self._clients.append(client)
        return client

    def known_client(self) -> Client:
        """One that has had an answer, a small one: the server runs more than one request of it at once."""
        client = self.client().send(b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.answer().status == 200
        return client

    def close(self) -> None:
        for client in self._clients:
            client.sock.close()
        self.loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()


@contextmanager
def serving(**limits: Any) -> Iterator[WireServer]:
    server = WireServer(**limits)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def shared() -> Iterator[WireServer]:
    with serving() as server:
        yield server


@pytest.fixture
def wire(shared: WireServer) -> Iterator[WireServer]:
    """The usual server; every test leaves it without connections and without bytes in flight."""
    shared.handlers.held.clear()
    shared.handlers.abandoned = shared.handlers.calls = 0
    yield shared
    for client in shared._clients:
        client.sock.close()
    shared._clients.clear()
    shared.until(lambda: shared.server.hub.connections == 0)
    assert shared.server.hub.in_flight_bytes == 0


@pytest.fixture
def start() -> Iterator[Callable[..., WireServer]]:
    """Starts servers with limits of their own."""
    servers: list[WireServer] = []

    def start_one(**limits: Any) -> WireServer:
        servers.append(WireServer(**limits))
        return servers[-1]

    yield start_one
    for server in servers:
        server.close()


@pytest.fixture(params=[None, 1, 2])
def split(request: pytest.FixtureRequest) -> Callable[[bytes], list[bytes]]:
    """Cuts a message: not at all, into single bytes, at random places."""
    mode = request.param

    def cut(data: bytes) -> list[bytes]:
        if mode is None:
            return [data]
        if mode == 1:
            return [data[i : i + 1] for i in range(len(data))]
        places = sorted(random.Random(len(data)).sample(range(1, len(data)), min(8, len(data) - 1)))
        return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]

    return cut
