"""A connection with a transport that is none; with sockets it is tried in tests/wire."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator
from typing import Any

import pytest

from fastinfer.base.limits import HttpLimits
from fastinfer.http.connection import Connection
from fastinfer.http.exchange import Exchange
from fastinfer.http.hub import Hub
from tests.wire.conftest import Match


class Transport(asyncio.Transport):
    """Keeps what is written; refuses what uvloop's refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.ended = False

    def write(self, data: Any) -> None:
        if self.ended:
            raise RuntimeError("Cannot call write() after write_eof()")
        self.written += bytes(data)

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return False

    def is_reading(self) -> bool:
        return True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


class Router:
    def __init__(self) -> None:
        self.held: list[Exchange] = []

    def resolve(self, *_: object) -> Match:
        return Match(self.held.append, max_body_bytes=1 << 30)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    failures: list[Any] = []
    loop.set_exception_handler(lambda _, context: failures.append(context))
    yield loop
    loop.run_until_complete(asyncio.sleep(0.05))
    loop.close()
    assert failures == []


def read(connection: Connection, data: bytes) -> None:
    with memoryview(connection.get_buffer(-1)) as room:
        room[: len(data)] = data
    connection.buffer_updated(len(data))


@pytest.mark.parametrize("earlier", [0, 1])
def test_without_memory_for_a_body_it_is_refused_once_and_in_its_turn(
    loop: asyncio.AbstractEventLoop, earlier: int
) -> None:
    router, transport = Router(), Transport()
    hub = Hub(router, HttpLimits(linger_s=0.01), loop)
    hub.opening += 1
    connection = Connection(hub)
    connection.connection_made(transport)
    get = b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n"
    read(connection, get)
    router.held.pop().respond(200, b"held")  # small, so that more than one request may run
    read(connection, get * earlier + b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 60000000\r\n\r\nabc")
    with memoryview(connection.get_buffer(-1)) as room:
        size = len(room)
    connection.buffer_updated(size)  # the next read needs more pages
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 20, before[1]))
    try:
        for _ in range(3):  # as libuv asks, while there is something to read
            connection.get_buffer(-1)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    for exchange in router.held:
        exchange.respond(200, b"held")
    loop.run_until_complete(asyncio.sleep(0.02))
    assert transport.written.count(b"HTTP/1.1 503") == transport.written.count(b"Connection: close") == 1
    assert transport.written.count(b"HTTP/1.1 200") == 1 + earlier
    assert transport.ended
    connection.connection_lost(None)
    assert (hub.connections, hub.in_flight_bytes) == (0, 0)
    hub.close()
