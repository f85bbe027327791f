"""What clients do to connections: closing halves, vanishing, reading slowly, sending slowly, being too many."""

from __future__ import annotations

import socket
import time

import pytest

from fastinfer.base.errors import ApiError

POST = b"POST /%b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
HOLD = b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n"
ECHO = POST % (b"echo", 2) + b"ok"


def finals(client):
    return [answer for answer in client.answers() if answer.status != 100]


def test_half_closed_client_gets_its_answers(wire):
    client = wire.client()
    client.send(b"".join(POST % (b"later", 2) + b"%d" % (50 - number) for number in range(40)))
    client.sock.shutdown(socket.SHUT_WR)
    assert [answer.body for answer in finals(client)] == [b"%d" % (50 - number) for number in range(40)]


def test_half_closed_client_is_asked_and_gets_its_answer(wire):
    client = wire.client().send(HOLD)
    client.sock.shutdown(socket.SHUT_WR)
    assert client.answer().status == 100
    wire.call(wire.handlers.held[0].respond, 200, b"late")
    assert client.answer().body == b"late"
    assert client.closed()
    assert wire.handlers.abandoned == 0


@pytest.mark.parametrize("sent", [b"", b"GET /echo HTTP/1.1\r\n", POST % (b"echo", 9) + b"x", POST % (b"no", 9) + b"x"])
def test_half_closed_in_the_middle_of_a_message(wire, sent):
    client = wire.client().send(ECHO + sent)
    client.sock.shutdown(socket.SHUT_WR)
    assert [answer.status for answer in client.answers()][:1] == [200]


@pytest.mark.parametrize("way", ["reset", "close"])
def test_client_gone_while_its_requests_are_handled(wire, way):
    client = wire.known_client().send(HOLD * 3 + POST % (b"hold", 100_000) + bytes(100_000))
    wire.until(lambda: len(wire.handlers.held) == 4)
    if way == "reset":
        client.reset()
    else:
        client.sock.close()
    wire.until(lambda: wire.handlers.abandoned == 4)
    wire.until(lambda: wire.server.hub.connections == 0)
    assert wire.call(lambda: wire.server.hub.in_flight_bytes) == 0
    for exchange in wire.handlers.held:
        wire.call(exchange.respond, 200, b"too late")


def test_client_gone_with_a_part_of_it_answered(wire):
    client = wire.known_client().send(HOLD * 2)
    wire.until(lambda: len(wire.handlers.held) == 2)
    wire.call(wire.handlers.held[1].respond, 200, b"second")
    client.reset()
    wire.until(lambda: wire.handlers.abandoned == 1)


def test_clients_gone_in_the_middle_of_their_uploads(wire):
    start = POST % (b"echo", 1_000_000)
    for size in (0, 1, 5000, 200_000, 900_000):
        wire.client().send(start + bytes(size)).reset()
        wire.client().send(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nF0000\r\n" + bytes(size)
        ).reset()
    # Some may not have been accepted yet while the others are gone already: both at once.
    wire.until(lambda: wire.server.hub.connections == wire.server.hub.in_flight_bytes == 0)
    assert wire.handlers.calls == 0


def test_slow_reader_has_one_answer_buffered(wire):
    size = 16 * 1024 * 1024
    client = wire.client().send(b"GET /large/%d HTTP/1.1\r\nHost: a\r\n\r\n" % size * 20)
    before = wire.call(lambda: wire.server.hub.answers[2])
    wire.until(lambda: wire.server.hub.answers[2] > 0)
    assert wire.client().send(ECHO).answer().body == b"ok"
    assert wire.call(lambda: wire.server.hub.answers[2]) <= before + 2
    for _ in range(20):
        assert len(client.answer().body) == size


@pytest.mark.parametrize("known", [False, True])
def test_requests_of_a_connection_are_run_at_once_when_their_answers_are_known_to_be_small(wire, known):
    client = (wire.known_client if known else wire.client)().send(HOLD * 3)
    held = wire.handlers.held
    wire.until(lambda: len(held) == (3 if known else 1))
    assert wire.client().send(ECHO).answer().body == b"ok"
    assert wire.call(lambda: len(held)) == (3 if known else 1)
    wire.call(held[0].fail, ApiError(500, "tells nothing about other answers"))
    if not known:
        wire.until(lambda: len(held) == 2)
        assert wire.client().send(ECHO).answer().body == b"ok"
        assert wire.call(lambda: len(held)) == 2
    wire.call(held[1].respond, 200, bytes(300_000))
    wire.until(lambda: len(held) == 3)
    wire.call(held[2].respond, 200, b"last")
    assert [len(client.answer().body) for _ in range(3)][1:] == [300_000, 4]

    held.clear()
    client.send(HOLD * 9)  # of answers like the largest, four are more than is kept for one that does not read
    wire.until(lambda: len(held) == 4)
    assert wire.client().send(ECHO).answer().body == b"ok"
    assert wire.call(lambda: len(held)) == 4


@pytest.mark.parametrize("way", ["reset", "close", "shutdown"])
def test_client_gone_while_nothing_is_read_from_it(start, way):
    wire = start(head_timeout_s=0.4)
    client = wire.client().send(HOLD + ECHO)
    wire.until(lambda: len(wire.handlers.held) == 1)
    if way == "reset":
        client.reset()
    elif way == "close":
        client.sock.close()
    else:
        client.sock.shutdown(socket.SHUT_WR)  # this one waits for its answers
        assert client.answer().status == 100
        wire.call(wire.handlers.held[0].respond, 200, b"first")
        assert [answer.body for answer in finals(client)] == [b"first", b"ok"]
    wire.until(lambda: wire.server.hub.connections == 0)
    assert wire.handlers.abandoned == (way != "shutdown")


def test_slow_reader_of_small_answers(wire):
    client = wire.client()
    body = bytes(60_000)
    wire.handlers.calls = 0

    client.sock.settimeout(0.5)
    sent = 0
    message = POST % (b"echo", len(body)) + body
    try:
        for _ in range(1000):
            client.sock.sendall(message)
            sent += 1
    except TimeoutError:
        pass
    assert sent < 1000, "the server has read on and on"
    client.sock.settimeout(10)
    for _ in range(sent):
        assert client.answer().body == body


def test_timer_head(start):
    wire = start(head_timeout_s=0.2)
    client = wire.client().send(ECHO + b"GET /echo HT")
    assert [answer.status for answer in client.answers()] == [200, 408]


def test_timer_head_that_drips(start):
    wire = start(head_timeout_s=0.3)
    client = wire.client()
    client.sock.settimeout(0.02)
    for byte in b"GET /echo HTTP/1.1\r\nX: " + b"y" * 400:
        client.send(bytes((byte,)))
        try:
            client.rest += client.sock.recv(1000)
        except TimeoutError:
            continue
        break
    else:
        pytest.fail("every byte gave it more time")
    client.sock.settimeout(10)
    assert [answer.status for answer in client.answers()] == [408]


def test_timer_body(start):
    wire = start(body_idle_timeout_s=0.2, body_min_bytes_per_s=1000)
    for start_of_body in (b"", b"xxx"):
        client = wire.client().send(POST % (b"echo", 5000) + start_of_body)
        assert [answer.status for answer in client.answers()] == [408]
    client = wire.client().send(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab")
    assert [answer.status for answer in client.answers()] == [408]
    client = wire.client().send(POST % (b"no", 5000))
    assert [answer.status for answer in client.answers()] == [404]
    assert wire.call(lambda: wire.server.hub.in_flight_bytes) == 0


def test_timer_whole_upload(start):
    wire = start(upload_timeout_s=0.3, body_min_bytes_per_s=1)
    client = wire.client().send(POST % (b"echo", 100_000))
    for _ in range(200):
        try:
            client.send(b"x" * 10)
        except OSError:
            break
        time.sleep(0.005)
    assert [answer.status for answer in client.answers()] == [408]


def test_timer_keep_alive(start):
    wire = start(keep_alive_timeout_s=0.2)
    fresh, used, busy, empty_line = wire.client(), wire.client(), wire.client(), wire.client()
    assert used.send(ECHO).answer().body == b"ok"
    empty_line.send(b"\r\n")
    busy.send(HOLD)
    for client in (fresh, used, empty_line):
        assert client.closed()
    wire.call(wire.handlers.held[0].respond, 200, b"in time")
    assert busy.answer().body == b"in time"
    assert busy.closed()


def test_timer_write(start):
    wire = start(write_timeout_s=0.3)
    wire.client().send(b"GET /large/50000000 HTTP/1.1\r\nHost: a\r\n\r\n")
    wire.until(lambda: wire.server.hub.connections_total == 1)
    wire.until(lambda: wire.server.hub.connections == 0)


def test_lingering_ends(start):
    wire = start(linger_s=0.2)
    client = wire.client().send(b"nonsense\r\n\r\n")
    assert client.answer().status == 400
    wire.until(lambda: wire.server.hub.connections == 0)


def test_lingering_lasts_while_the_client_sends(start):
    client = start(linger_s=1.0).client().send(b"nonsense\r\n\r\n")
    for _ in range(50):
        client.send(b"x")
        time.sleep(0.05)
    assert client.answer().status == 400
    assert client.closed()


def test_lingering_ends_though_the_client_sends(start):
    wire = start(linger_s=0.1, head_timeout_s=0.5)  # the clock ticks more often, too
    client = wire.client().send(b"nonsense\r\n\r\n")
    for _ in range(1000):
        try:
            client.send(b"x")
        except OSError:
            break
        time.sleep(0.01)
    else:
        pytest.fail("it lingered for ever")
    wire.until(lambda: wire.server.hub.connections == 0)


def test_too_many_connections(start):
    wire = start(max_connections=2)
    first, second = wire.client(), wire.client()
    for client in (first, second):
        assert client.send(ECHO).answer().body == b"ok"
    third = wire.client().send(ECHO)
    answer = third.answer()
    assert (answer.status, answer.headers["retry-after"], answer.headers["connection"]) == (503, "1", "close")
    assert third.closed()
    third.sock.close()
    first.sock.close()
    wire.until(lambda: wire.server.hub.connections == 1)
    assert wire.client().send(ECHO).answer().body == b"ok"
    assert second.send(ECHO).answer().body == b"ok"


def test_very_many_connections_wait_in_the_queue(start):
    wire = start(max_connections=2)
    clients = [wire.client() for _ in range(200)]
    for client in clients:
        client.send(ECHO)
    statuses = []
    for client in clients:
        statuses.append(client.answer().status)
        client.sock.close()
    assert set(statuses) <= {200, 503} and statuses[:2] == [200, 200]


def test_budget_of_bytes_in_flight(start):
    wire = start(in_flight_bytes=100_000)
    held = wire.client().send(POST % (b"hold", 90_000) + bytes(90_000))
    wire.until(lambda: len(wire.handlers.held) == 1)
    for message in (
        POST % (b"echo", 1_000_000) + bytes(90_000),
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nF0000\r\n" + bytes(90_000),
    ):
        answers = wire.client().send(message).answers()
        assert [(answer.status, answer.headers["retry-after"]) for answer in answers] == [(503, "1")]
    assert wire.client().send(ECHO).answer().body == b"ok"  # needs no buffer
    wire.call(wire.handlers.held[0].respond, 200, b"done")
    assert held.answer().body == b"done"
    assert wire.call(lambda: wire.server.hub.in_flight_bytes) == 0
    assert len(wire.client().send(POST % (b"echo", 90_000) + bytes(90_000)).answer().body) == 90_000


def test_many_heads_do_not_fill_memory(wire):
    client = wire.client()
    for number in range(2000):
        client.send(b"GET /echo HTTP/1.1\r\nHost: a\r\nX-%d: 1\r\n\r\n" % number)
        client.answer()
    assert wire.call(lambda: len(wire.server.hub.heads)) <= 512


def test_heads_that_differ_in_a_value_are_remembered_once(wire):
    client = wire.client()
    before = wire.call(lambda: len(wire.server.hub.heads))
    for number in range(100):
        text = b"x" * (number % 7)
        head = b"POST /echo HTTP/1.1\r\nHost: a\r\nX-Own-Id: %d\r\nContent-Length: %d\r\n\r\n" % (number, len(text))
        client.send(head + text)
        assert client.answer().status == 200
    assert wire.call(lambda: len(wire.server.hub.heads)) == before + 1
