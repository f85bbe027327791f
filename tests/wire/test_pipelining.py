"""Pipelined requests whose answers come later: whatever their order, reading goes on, and the client's end is seen."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest

from fastinfer.base.limits import KIB, HttpLimits
from tests.wire.conftest import Client, WireServer

HOST = b" HTTP/1.1\r\nHost: a\r\n"
FAILING = b"GET /failing_task" + HOST + b"\r\n"


def later(ms: int) -> bytes:
    body = b"%d" % ms
    return b"POST /later" + HOST + b"Content-Length: %d\r\n\r\n" % len(body) + body


def answered(client: Client, count: int) -> list[int]:
    return [client.answer().status for _ in range(count)]


LIMIT = HttpLimits().max_pipelined
CONVERSATIONS = {
    "the first fails": [FAILING, later(5)],
    "two fail": [FAILING, FAILING],
    "twice as many as may run, the first of each half last": [
        later(60 if place % (LIMIT // 2) == 0 else 1) for place in range(LIMIT)
    ],
    "three times as many as may run": [later(place % 7) for place in range(3 * LIMIT)],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_connection_goes_on_after_answers_that_came_later(wire: WireServer, name: str) -> None:
    client = wire.client().send(b"".join(CONVERSATIONS[name]))
    assert len(answered(client, len(CONVERSATIONS[name]))) == len(CONVERSATIONS[name])
    for _ in range(3):
        assert client.send(later(1)).answer().body == b"1"


@pytest.mark.parametrize("most", [1, 2])
def test_few_at_once(start: Callable[..., WireServer], most: int) -> None:
    client = start(max_pipelined=most).client()
    for count in (2, 3, 5):
        assert answered(client.send(later(2) * count), count) == [200] * count


def test_large_answers(wire: WireServer) -> None:
    large = b"GET /large/1200000" + HOST + b"\r\n"
    client = wire.client()
    for requests in (large, large + large, large + later(1) + large, later(1)):
        for _ in range(requests.count(HOST)):
            assert client.send(requests if requests else b"").answer().status == 200
            requests = b""


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_client_that_ends_its_side_is_closed_after_the_last_answer(wire: WireServer, name: str) -> None:
    client = wire.client().send(b"".join(CONVERSATIONS[name]))
    client.sock.shutdown(socket.SHUT_WR)
    answered(client, len(CONVERSATIONS[name]))
    assert client.closed()


def test_a_client_that_reads_steadily_is_not_taken_for_one_that_has_stopped(start: Callable[..., WireServer]) -> None:
    """Its answers are made as fast as it reads them, so the waiting bytes do not become fewer."""
    wire = start(write_timeout_s=1.0)
    client = wire.client()
    asked, count = b"GET /large/%d" % (30 * KIB) + HOST + b"\r\n", 900
    client.send(asked * count)
    whole = 0
    while whole < count * 30 * KIB:
        data = client.sock.recv(64 * KIB)  # some 6 MB a second
        assert data, f"closed after {whole} bytes"
        whole += len(data)
        time.sleep(0.01)


def test_a_slow_refused_body_is_not_cut_off(start: Callable[..., WireServer]) -> None:
    client = start(body_idle_timeout_s=0.4, body_min_bytes_per_s=1000).client()
    client.send(b"POST /nothing" + HOST + b"Content-Length: 12000\r\n\r\n")
    assert client.answer().status == 404
    for _ in range(20):
        client.send(b"x" * 600)
        time.sleep(0.1)
    assert client.send(later(1)).answer().status == 200


def test_a_refused_body_that_stops_ends_the_connection(start: Callable[..., WireServer]) -> None:
    client = start(body_idle_timeout_s=0.2, linger_s=0.1).client()
    client.send(b"POST /nothing" + HOST + b"Content-Length: 12000\r\n\r\nabc")
    assert client.answer().status == 404
    assert client.closed()
