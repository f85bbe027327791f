"""A request arrives with its own first byte, however it is cut and whatever it waits for.

Each test lets the server read some bytes, reads the clock, then sends more: what came before is older than that time.
"""

import gzip
import time

import pytest

GET = b"GET /times HTTP/1.1\r\nHost: a\r\n\r\n"
HOLD = b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n"
SIZED = b"POST /times HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n"
CHUNKED = b"POST /times HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
ZIPPED = gzip.compress(bytes(1_000_000))


def read_so_far(wire, condition):
    """Waits until the server has read what was sent; what comes from now on is newer than the time it returns."""
    wire.until(lambda: any(condition(each) for bucket in wire.server.hub._buckets for each in bucket))
    return time.monotonic_ns()


def times(client):
    answer = client.answer()
    assert answer.status == 200
    arrived, handled = map(int, answer.body.split())
    assert arrived <= handled
    return arrived, handled


def test_a_request_that_comes_at_once(wire):
    client = wire.client()
    for _ in range(3):  # of a connection that is kept alive, each has its own arrival
        before = time.monotonic_ns()
        arrived, handled = times(client.send(GET))
        assert before < arrived == handled < time.monotonic_ns()


@pytest.mark.parametrize("size", [1, 20, len(GET) - 1])
def test_a_head_in_pieces(wire, size):
    client = wire.client().send(GET[:size])
    first = read_so_far(wire, lambda it: it.inbound.pending)
    arrived, handled = times(client.send(GET[size:]))
    assert arrived < first < handled


def test_a_head_in_many_pieces(wire):
    client = wire.client().send(GET[:3])
    first = read_so_far(wire, lambda it: it.inbound.pending)
    for size in range(4, len(GET)):
        client.send(GET[size - 1 : size])
        read_so_far(wire, lambda it, size=size: len(it.inbound.pending) == size)
    arrived, handled = times(client.send(GET[-1:]))
    assert arrived < first < handled


@pytest.mark.parametrize("begun", [b"", GET[:5]])
def test_empty_lines_before_a_request_are_none_of_it(wire, begun):
    client = wire.client().send(b"\r\n\r\n")
    empty = read_so_far(wire, lambda it: it.inbound.pending)
    if begun:
        client.send(begun)
        read_so_far(wire, lambda it: len(it.inbound.pending) > 4)
    arrived, _ = times(client.send(GET[len(begun) :]))
    assert empty < arrived


BODIES = {
    "small": (SIZED % 100 + b"\r\n", bytes(100)),
    "large": (SIZED % 500_000 + b"\r\n", bytes(500_000)),
    "chunked": (CHUNKED, b"5\r\nabcde\r\n0\r\n\r\n"),
    "compressed": (SIZED % len(ZIPPED) + b"Content-Encoding: gzip\r\n\r\n", ZIPPED),
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_body_after_its_head(wire, kind):
    head, body = BODIES[kind]
    client = wire.client().send(head)
    first = read_so_far(wire, lambda it: it.inbound.upload is not None)
    arrived, handled = times(client.send(body))
    assert arrived < first < handled
    arrived, _ = times(client.send(GET))
    assert first < arrived


@pytest.mark.parametrize("kind", ["large", "chunked"])
def test_a_body_in_pieces(wire, kind):
    head, body = BODIES[kind]
    client = wire.client().send(head[:9])
    first = read_so_far(wire, lambda it: it.inbound.pending)
    client.send(head[9:] + body[:8])
    second = read_so_far(wire, lambda it: it.inbound.upload is not None and it.inbound.upload.received)
    arrived, handled = times(client.send(body[8:]))
    assert arrived < first < second < handled


def test_the_rest_of_a_request_and_the_next_one_in_one_read(wire):
    client = wire.known_client().send(GET[:9])
    first = read_so_far(wire, lambda it: it.inbound.pending)
    client.send(GET[9:] + GET)
    one, two = times(client), times(client)
    assert one[0] < first < two[0] == two[1]


def test_pipelined_requests_arrive_when_their_bytes_do(wire):
    """Sixteen are run at once; the others wait in memory, and the last is only begun."""
    client = wire.known_client().send(HOLD * 16 + GET * 2 + GET[:7])
    wire.until(lambda: len(wire.handlers.held) == 16)
    read = read_so_far(wire, lambda it: it.inbound.pending)
    wire.call(lambda: [exchange.respond(200) for exchange in wire.handlers.held])
    for _ in range(16):
        assert client.answer().status == 200
    client.send(GET[7:] + GET)
    waited = [times(client) for _ in range(4)]
    assert all(arrived < read < handled for arrived, handled in waited[:3])
    assert read < waited[3][0]


def test_what_waits_again_keeps_its_arrival(wire):
    client = wire.known_client().send(GET[:7])
    first = read_so_far(wire, lambda it: it.inbound.pending)
    client.send(GET[7:] + HOLD * 20 + GET)
    wire.until(lambda: len(wire.handlers.held) == 16)
    second = time.monotonic_ns()
    for count in (16, 4):
        wire.until(lambda count=count: len(wire.handlers.held) == count)
        held, wire.handlers.held = wire.handlers.held, []
        wire.call(lambda held=held: [exchange.respond(200) for exchange in held])
    began, _ = times(client)
    for _ in range(20):
        assert client.answer().status == 200
    last, handled = times(client)
    assert began < first < last < second < handled
