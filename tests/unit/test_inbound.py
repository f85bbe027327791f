"""Bytes to messages without a socket: however they are cut, the messages are the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from fastinfer.base.errors import ApiError
from fastinfer.base.limits import HttpLimits
from fastinfer.http.exchange import Exchange
from fastinfer.http.hub import Hub
from fastinfer.http.inbound import Inbound
from tests.wire.conftest import Match

LIMITS = HttpLimits(max_head_bytes=1024, max_body_bytes=400_000, in_flight_bytes=1_000_000)
HOST = b" HTTP/1.1\r\nHost: a\r\n"
GET = b"GET /a" + HOST + b"\r\n"


class Router:
    def resolve(self, _: str, path: bytes) -> Match:
        if path == b"/none":
            raise ApiError(404, "no such path")
        return Match(self.handle, max_body_bytes=400_000, arguments=(path.decode(),))

    def handle(self, _: Exchange) -> None:
        raise AssertionError("an Inbound calls no handler")


@pytest.fixture
def hub() -> Iterator[Hub]:
    loop = asyncio.new_event_loop()
    made = Hub(Router(), LIMITS, loop)
    yield made
    made.close()
    loop.close()


def post(body: bytes, *fields: bytes) -> bytes:
    return b"POST /b" + HOST + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


def sized(size: int) -> bytes:
    return post(b"x" * size, b"Content-Length: %d" % size)


def chunked(*chunks: bytes) -> bytes:
    return post(b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in (*chunks, b"")), b"Transfer-Encoding: chunked")


Message = tuple[str, bytes, int]


def messages(inbound: Inbound, pieces: Sequence[bytes]) -> list[Message]:
    """The messages in these reads: method, body, status of the error or 0."""
    found = []
    for now, piece in enumerate(pieces, 1):
        while piece and not inbound.ended:
            room = inbound.room()
            assert room is not None
            with memoryview(room) as view:
                size = min(len(view), len(piece))
                view[:size] = piece[:size]
            piece = piece[size:]
            inbound.received(size, now)
            while inbound.next():
                status = 0 if inbound.error is None else inbound.error.status
                found.append((inbound.head.method, bytes(inbound.body), status))
                inbound.handled()
    return found


MANY_CHUNKS = chunked(*[b"a"] * 2000)  # their allowance of framing exceeds one long line
LONG_CHUNK = b"\r\n1;" + b"e" * 20_000 + b"\r\na\r\n"
ENDING = ("too large", "closes", "malformed", "malformed HEAD", "bad chunk", "long framing")
CONVERSATIONS: dict[str, tuple[bytes, list[Message]]] = {
    "one after the other": (GET + sized(3) + GET, [("GET", b"", 0), ("POST", b"xxx", 0), ("GET", b"", 0)]),
    "empty lines": (b"\r\n\r\n" + GET + b"\r\n" + GET, [("GET", b"", 0)] * 2),
    "large": (sized(300_000) + GET, [("POST", b"x" * 300_000, 0), ("GET", b"", 0)]),
    "chunked": (chunked(b"ab", b"c" * 200_000) + GET, [("POST", b"ab" + b"c" * 200_000, 0), ("GET", b"", 0)]),
    "no such path": (sized(5).replace(b"/b", b"/none") + GET, [("POST", b"", 404), ("GET", b"", 0)]),
    "too large": (sized(400_001) + GET, [("POST", b"", 413)]),
    "closes": (post(b"", b"Connection: close") + GET, [("POST", b"", 0)]),
    "malformed": (GET + b"GET a\r\n\r\n" + GET, [("GET", b"", 0), ("GET", b"", 400)]),
    "malformed HEAD": (b"HEAD /a HTTP/3.1\r\n\r\n", [("HEAD", b"", 505)]),
    "bad chunk": (chunked(b"ab").replace(b"\r\n0\r\n", b"\r\nx\r\n") + GET, [("POST", b"", 400)]),
    "long framing": (MANY_CHUNKS.replace(b"\r\n0\r\n", LONG_CHUNK + b"0\r\n"), [("POST", b"", 400)]),
}  # fmt: skip


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def halves(data: bytes) -> list[bytes]:
    return [data[: len(data) // 2], data[len(data) // 2 :]]


@pytest.mark.parametrize("cut", [lambda data: [data], halves, bytewise])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_messages(hub: Hub, name: str, cut: Callable[[bytes], list[bytes]]) -> None:
    data, expected = CONVERSATIONS[name]
    inbound = Inbound(hub)
    assert messages(inbound, cut(data)) == expected
    assert inbound.ended == (name in ENDING)
    assert hub.in_flight_bytes == 0  # nothing of it is kept, not even by an error


def test_a_body_in_the_buffer_is_lent_until_it_is_handled(hub: Hub) -> None:
    inbound = Inbound(hub)
    hub.buffer[: len(sized(3))] = sized(3)
    inbound.received(len(sized(3)), 1)
    assert inbound.next() and not inbound.body_is_stable
    lent: Any = inbound.body
    assert bytes(lent) == b"xxx"
    inbound.handled()
    with pytest.raises((ValueError, BufferError)):
        memoryview(lent)


def test_arrival_is_that_of_the_first_byte(hub: Hub) -> None:
    inbound = Inbound(hub)
    assert messages(inbound, [GET[:5]]) == []
    assert messages(inbound, [b"", GET[5:] + GET[:1]]) == [("GET", b"", 0)]
    assert inbound.arrived_ns == 1
    assert messages(inbound, [b"", b"", GET[1:]]) == [("GET", b"", 0)]
    assert inbound.arrived_ns == 2


def test_what_is_read_while_paused_is_taken_later(hub: Hub) -> None:
    inbound = Inbound(hub)
    data = GET + sized(2) + GET[:9]
    hub.buffer[: len(data)] = data
    inbound.received(len(data), 1)
    assert inbound.next()
    inbound.handled()
    inbound.pause()
    assert inbound.pending == data[len(GET) :] and not inbound.next()
    hub.buffer[:4] = b"else"  # another connection's
    assert inbound.resume()
    assert inbound.next() and bytes(inbound.body) == b"xx" and inbound.arrived_ns == 1
    inbound.handled()
    assert not inbound.next() and inbound.pending == GET[:9]
    assert messages(inbound, [GET[9:]]) == [("GET", b"", 0)]


def test_refuses_what_has_begun(hub: Hub) -> None:
    for begun, method in (
        (b"", "GET"),
        (b"HEAD /a HT", "HEAD"),
        (sized(9)[:-2], "POST"),
        (chunked(b"ab")[:-4], "POST"),
    ):
        inbound = Inbound(hub)
        assert messages(inbound, [begun]) == []
        inbound.refuse(ApiError(408, "too slow"))
        assert inbound.error is not None and (inbound.head.method, inbound.error.status) == (method, 408)
        assert inbound.ended and not inbound.next() and inbound.upload is None


def test_bodies_beyond_the_budget_are_refused_until_others_end(hub: Hub) -> None:
    begun = sized(300_000)[:-1]
    open_ones = [Inbound(hub) for _ in range(3)]
    assert [messages(inbound, [begun]) for inbound in open_ones] == [[], [], []]
    for _ in range(2):
        assert messages(Inbound(hub), [begun]) == [("POST", b"", 503)]
        assert hub.in_flight_bytes == 3 * 299_999
    open_ones.pop()
    assert messages(Inbound(hub), [begun]) == []
