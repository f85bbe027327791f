"""Where bodies lie: in the shared read buffer where that is possible, else in memory of their own, which is aligned,
grows with the bytes that come, and is used again when nobody looks at it any more."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

SIZE = 200_000  # does not fit into the read buffer


def head(route: bytes, size: int, fields: bytes = b"") -> bytes:
    return b"POST /%b HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n" % (route, fields, size)


def apart(client, *pieces: bytes):
    """Sends pieces so far apart that each is read alone."""
    for piece in pieces:
        client.send(piece)
        time.sleep(0.02)
    return client


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def kept(wire):
    """Views that handlers have kept; dropped after the test."""
    wire.handlers.kept.clear()
    yield wire.handlers.kept
    wire.handlers.kept.clear()


@pytest.mark.parametrize("first", [0, 1, 4, 5])
def test_head_and_body_apart_with_followers(wire, first):
    message = head(b"echo", 5)
    client = apart(wire.client(), message + b"hello"[:first], b"hello"[first:] + message + b"again" + message, b"third")
    assert [client.answer().body for _ in range(3)] == [b"hello", b"again", b"third"]


def test_heads_and_bodies_apart_on_many_connections(wire):
    clients = [wire.client().send(head(b"echo", 100 + i)) for i in range(40)]
    time.sleep(0.02)
    for i, client in enumerate(clients):
        client.send(bytes([i]) * (100 + i))
    for i, client in enumerate(clients):
        assert client.answer().body == bytes([i]) * (100 + i)


def test_a_body_that_never_begins_costs_nothing_and_is_forgotten(wire):
    client = apart(wire.client(), head(b"echo", 5))
    assert wire.call(lambda: wire.server.hub.in_flight_bytes) == 0
    client.sock.close()
    wire.until(lambda: wire.server.hub.connections == 0)
    assert wire.handlers.calls == 0


def test_a_body_that_never_begins_is_not_waited_for(start):
    client = start(body_idle_timeout_s=0.2).client().send(head(b"echo", 5))
    assert [answer.status for answer in client.answers()] == [408]


@pytest.mark.parametrize("framing", [b"Content-Length: 9\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n9\r\n"])
def test_a_body_that_stops_has_its_time_also_if_earlier_requests_take_long(start, framing):
    """Its memory is given back, though its answer has to wait for theirs."""
    wire = start(body_idle_timeout_s=0.2)
    client = wire.known_client()
    client.send(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\nPOST /echo HTTP/1.1\r\nHost: a\r\n" + framing + b"stops")
    wire.until(lambda: len(wire.handlers.held) == 1 and wire.server.hub.in_flight_bytes == 5)
    wire.until(lambda: wire.server.hub.in_flight_bytes == 0)
    wire.call(wire.handlers.held[0].respond, 200, b"first")
    first, second = client.answer(), client.answer()
    assert (first.status, second.status, second.headers["connection"]) == (200, 408, "close")


def test_a_client_that_waits_to_be_asked_for_a_body_has_its_time_from_then_on(start):
    wire = start(body_idle_timeout_s=1.0, upload_timeout_s=1.0)
    client = wire.known_client()
    expecting = b"POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    client.send(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n" + expecting)
    wire.until(lambda: len(wire.handlers.held) == 1)
    time.sleep(2)  # longer than either limit
    wire.call(wire.handlers.held[0].respond, 200, b"first")
    assert client.answer().body == b"first"
    assert client.answer().status == 100
    time.sleep(0.3)  # some ticks of the clock that ends connections
    assert client.send(b"ok").answer().body == b"ok"


def test_draining_waits_for_a_body_whose_head_is_here(start):
    wire = start()
    client = apart(wire.client(), head(b"echo", 5))
    drained = wire.drain()
    wire.until(lambda: wire.server.draining)
    client.send(b"hello" + head(b"echo", 5) + b"again")
    assert [answer.body for answer in client.answers()] == [b"hello", b"again"]
    assert drained.result(5)


@pytest.mark.parametrize("json_size", [0, 1, 63, 64, 119, SIZE])
@pytest.mark.parametrize("first", [None, 0, 1])
def test_tensors_in_large_bodies_are_aligned(wire, kept, json_size, first):
    message = head(b"keep", SIZE, b"Inference-Header-Content-Length: %d\r\n" % json_size)
    body = bytes(SIZE)
    if first is None:
        client = wire.client().send(message + body)
    else:
        client = apart(wire.client(), message, body[:first]).send(body[first:])
    assert client.answer().body == b"kept"
    assert (kept[0].ctypes.data + json_size) % 64 == 0


@pytest.mark.parametrize("value", [b"-1", b"x", b"1" * 19, b"", b"\xb2"])
def test_a_bad_length_of_json_is_left_to_the_handler(wire, value):
    message = head(b"echo", SIZE, b"Inference-Header-Content-Length: %b\r\n" % value)
    assert wire.client().send(message + bytes(SIZE)).answer().body == bytes(SIZE)


def test_memory_is_used_again_but_never_while_somebody_looks_at_it(wire, kept):
    client = wire.client()
    a, b = b"a" * SIZE, b"b" * SIZE
    client.send(head(b"keep", SIZE) + a).answer()
    place = kept[0].ctypes.data
    for _ in range(5):
        assert client.send(head(b"echo", SIZE) + b).answer().body == b
    client.send(head(b"keep", SIZE) + b).answer()
    assert kept[0].tobytes() == a
    assert kept[1].ctypes.data != place
    kept.clear()
    for _ in range(2):
        client.send(head(b"keep", SIZE) + a).answer()
    assert place in [view.ctypes.data for view in kept]


def test_a_body_in_used_memory_shows_nothing_of_the_last_one(wire, kept):
    client = wire.client()
    client.send(head(b"echo", SIZE) + b"a" * SIZE).answer()
    client.send(head(b"keep", SIZE - 5000) + b"b" * (SIZE - 5000)).answer()
    assert set(kept[0].tobytes()) == set(b"b") and kept[0].size == SIZE - 5000


def test_kept_memory_is_bounded(start):
    wire = start()
    bodies = wire.server.hub.bodies
    client = wire.client()
    size = 4 * 1024 * 1024
    for _ in range(bodies.max_bytes // size + 3):
        client.send(head(b"keep", size) + bytes(size)).answer()
    assert wire.call(lambda: bodies.kept_bytes) == 0
    wire.call(wire.handlers.kept.clear)
    assert bodies.max_bytes - 2 * size <= wire.call(lambda: bodies.kept_bytes) <= bodies.max_bytes
    for i in range(100):
        client.send(head(b"keep", 70_000 + 1000 * i) + bytes(70_000 + 1000 * i)).answer()
    wire.call(wire.handlers.kept.clear)
    assert 0 < wire.call(lambda: bodies.kept_bytes) <= bodies.max_bytes


def test_kept_memory_that_nobody_uses_is_given_up(start):
    wire = start()
    bodies = wire.server.hub.bodies
    size = 1024 * 1024
    clients = [wire.client().send(head(b"keep", size) + bytes(size)) for _ in range(4)]
    for client in clients:
        client.answer()
    wire.call(wire.handlers.kept.clear)
    assert wire.call(lambda: bodies.kept_bytes) >= 4 * size
    for _ in range(100):
        clients[0].send(head(b"echo", size) + bytes(size)).answer()
        if wire.call(lambda: bodies.kept_bytes) < 2 * size:
            break
        time.sleep(0.1)
    assert wire.call(lambda: bodies.kept_bytes) >= size  # that one is in use
    wire.until(lambda: bodies.kept_bytes == 0)


def test_a_promise_costs_no_memory(start):
    wire = start()
    before = resident_bytes()
    size = 4 * 1024 * 1024
    clients = [wire.client().send(head(b"echo", size) + b"x" * 1000) for _ in range(100)]
    wire.until(lambda: wire.server.hub.in_flight_bytes == 100_000)
    assert resident_bytes() - before < 20 * 1024 * 1024
    for client in clients[:3]:
        assert client.send(b"y" * (size - 1000)).answer().body == b"x" * 1000 + b"y" * (size - 1000)


def test_a_body_that_comes_in_many_pieces_is_whole(wire):
    body = np.random.default_rng(1).bytes(1_000_000)
    client = wire.client().send(head(b"echo", len(body)))
    for start in range(0, len(body), 9973):
        client.send(body[start : start + 9973])
    assert client.answer().body == body
