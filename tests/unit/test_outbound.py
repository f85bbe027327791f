"""Answers to bytes without a socket: in the order of requests, joined, in pieces."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Iterator

import pytest

from fastinfer.base.limits import MAX_AWAITED_ANSWER_BYTES, HttpLimits
from fastinfer.http.exchange import RequestHead
from fastinfer.http.hub import Hub
from fastinfer.http.outbound import JOINED_BYTES, HttpExchange, Outbound, Sink
from tests.wire.conftest import Match


class Owner(Sink):
    """Takes the answers when they come, as a connection does."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.outbound = Outbound(hub, self)
        self.written: list[bytes] = []
        self.ended = False
        self.in_pieces = 0

    def on_answers(self) -> None:
        taken = self.outbound.take()
        if taken is not None:
            self.written.append(b"".join(taken) if isinstance(taken, list) else bytes(taken))

    def on_pieces(self) -> None:
        self.in_pieces += 1

    def has_ended(self) -> bool:
        return self.ended

    def ask(self, head: RequestHead | None = None) -> HttpExchange:
        exchange = HttpExchange(self.outbound, head or plain_head(), b"body", True)
        self.outbound.expect(exchange)
        return exchange


class Router:
    def resolve(self, method: str, path: bytes) -> Match:
        raise NotImplementedError


def plain_head(method: str = "GET") -> RequestHead:
    head = RequestHead(method, False, {})
    head.plain = method != "HEAD"
    return head


@pytest.fixture
def owner() -> Iterator[Owner]:
    loop = asyncio.new_event_loop()
    hub = Hub(Router(), HttpLimits(), loop)
    yield Owner(hub)
    hub.close()
    loop.close()


def bodies(written: list[bytes]) -> list[bytes]:
    return [each.rpartition(b"\r\n\r\n")[2] for each in written]


def test_answers_leave_in_the_order_of_requests(owner: Owner) -> None:
    first, second, third = owner.ask(), owner.ask(), owner.ask()
    third.respond(200, b"3")
    second.respond(404, b"2")
    assert owner.written == [] and owner.outbound.queue == [first, second, third]
    first.respond(200, b"1")
    (whole,) = owner.written  # one write for all
    assert [whole.count(b"\r\n\r\n" + each) for each in (b"1HTTP", b"2HTTP", b"3")] == [1, 1, 1]
    assert whole.index(b"\r\n1") < whole.index(b"\r\n2") < whole.index(b"\r\n3")
    assert owner.outbound.queue == [] and first.body == b""


def test_collects_for_one_write(owner: Owner) -> None:
    owner.outbound.collecting = True
    for text in (b"1", b"2"):
        owner.ask().respond(200, text)
    assert owner.written == []
    taken = owner.outbound.take()
    assert isinstance(taken, bytes) and taken.count(b"HTTP/1.1 200 OK") == 2
    assert owner.outbound.size == 0 and owner.outbound.take() is None


def test_large_parts_are_not_copied(owner: Owner) -> None:
    owner.outbound.collecting = True
    large = bytes(JOINED_BYTES + 1)
    owner.ask().respond(200, [large, b"", b"x"])
    taken = owner.outbound.take()
    assert isinstance(taken, list) and [len(each) for each in taken[1:]] == [len(large), 1]
    assert isinstance(taken[1], memoryview) and taken[1].obj is large
    assert b"Content-Length: %d\r\n" % (len(large) + 1) in bytes(taken[0])


def test_the_last_answer_says_so(owner: Owner) -> None:
    first, second = owner.ask(), owner.ask()
    owner.ended = True
    first.respond(200, b"1")
    second.respond(200, b"2")
    assert [b"Connection: close" in each for each in owner.written] == [False, True]


def test_a_head_request_gets_no_body(owner: Owner) -> None:
    owner.ask(plain_head("HEAD")).respond(200, b"12345")
    (whole,) = owner.written
    assert b"Content-Length: 5\r\n" in whole and whole.endswith(b"\r\n\r\n")


def test_what_cannot_be_written_is_a_500(owner: Owner) -> None:
    owner.ask().respond(200, b"x", fields=((b"X", b"a\r\nb"),))
    owner.ask().respond(200, b"2")
    assert [each[9:12] for each in owner.written] == [b"500", b"200"] and bodies(owner.written)[1] == b"2"


def test_compresses_for_a_client_that_accepts_it(owner: Owner) -> None:
    head = plain_head()
    head.accepted, head.compress_from = b"gzip", 100
    for size in (99, 100):
        owner.ask(head).respond(200, b"a" * size)
    short, long = owner.written
    assert bodies([short]) == [b"a" * 99]
    assert b"Content-Encoding: gzip" in long and gzip.decompress(long.partition(b"\r\n\r\n")[2]) == b"a" * 100


def test_reports_are_sent_in_pieces_and_keep_their_place(owner: Owner) -> None:
    first, second = owner.ask(), owner.ask()
    first.in_pieces = True
    report = bytes(range(256)) * (2 * JOINED_BYTES // 256) + b"end"
    second.respond(200, b"2")
    first.respond(200, report)
    assert owner.in_pieces == 1 and owner.written[0].endswith(b"\r\n\r\n")
    pieces = []
    while owner.outbound.pieces:
        pieces.append(bytes(owner.outbound.next_piece()))
    assert [len(each) for each in pieces] == [JOINED_BYTES, JOINED_BYTES, 3] and b"".join(pieces) == report
    assert owner.outbound.queue == [first, second] and not owner.outbound.is_full()
    owner.outbound.end_pieces()
    owner.on_answers()
    assert owner.outbound.queue == [] and bodies(owner.written)[-1] == b"2"


def test_nothing_is_written_for_a_client_that_is_gone(owner: Owner) -> None:
    first, second = owner.ask(), owner.ask()
    second.respond(200, b"2")
    assert owner.outbound.close() == [first, second]
    first.respond(200, b"1")
    assert owner.written == [] and owner.outbound.size == 0 and first.answered and second.reply is None


def test_large_answers_allow_few_requests_at_once_also_if_they_are_sent_in_pieces(owner: Owner) -> None:
    for in_pieces in (False, True):
        outbound = Outbound(owner.hub, owner)
        owner.outbound = outbound
        first = owner.ask()
        assert outbound.is_full()  # its answer's size is not known yet
        first.in_pieces = in_pieces
        first.respond(200, bytes(MAX_AWAITED_ANSWER_BYTES // 2))
        while outbound.pieces:
            outbound.next_piece()
            if not outbound.pieces:
                outbound.end_pieces()
        assert not outbound.is_full()
        owner.ask()
        assert not outbound.is_full()
        owner.ask()
        assert outbound.is_full()
