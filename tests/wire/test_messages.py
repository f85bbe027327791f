"""Sound messages: each whole, byte by byte and cut at random places, and many in one segment."""

from __future__ import annotations

import gzip
import zlib

import numpy as np
import pytest

POST = b"POST /echo HTTP/1.1\r\nHost: a\r\n"
BIG = bytes(range(256)) * 1200  # does not fit into the read buffer


def test_body_announced(wire, split):
    client = wire.client()
    for body in (b"", b"x", b'{"a":1}' * 9):
        client.send_pieces(split(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body))
        answer = client.answer()
        assert (answer.status, answer.body) == (200, body)
        assert answer.headers == {"content-type": "application/json", "content-length": str(len(body))}


@pytest.mark.parametrize("first", [0, 1, 4096, 65536, 200_000])
def test_large_body(wire, first):
    client = wire.client()
    client.send(POST + b"Content-Length: %d\r\n\r\n" % len(BIG) + BIG[:first])
    client.send(BIG[first:] + POST + b"Content-Length: 2\r\n\r\nok")
    assert client.answer().body == BIG
    assert client.answer().body == b"ok"


@pytest.mark.parametrize(
    "chunks",
    [
        b"0\r\n\r\n",
        b"3\r\nabc\r\n0\r\n\r\n",
        b'3\r\nabc\r\n00000000000000A;x="y\\"; \xff" ;\tz = 1;q\r\n0123456789\r\n000\r\n\r\n',
        b"3\r\n\r\n0\r\n0\r\nHostess: a\r\nInference-Header-Content-Length: 7\r\nX-Empty:\r\nX-Text: \xff\r\n\r\n",
    ],
)
def test_chunked(wire, split, chunks):
    client = wire.client()
    message = POST + b"Transfer-Encoding: Chunked\r\n\r\n" + chunks
    client.send_pieces(split(message + POST + b"Content-Length: 2\r\n\r\nok"))
    expected = {b"0\r\n\r\n"[:1]: b"", b"3": b"abc"}[chunks[:1]]
    if b"0123456789" in chunks:
        expected += b"0123456789"
    if chunks.startswith(b"3\r\n\r\n0"):
        expected = b"\r\n0"
    assert client.answer().body == expected
    assert client.answer().body == b"ok"


@pytest.mark.parametrize(
    "message",
    [
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"OPTIONS http://a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"OPTIONS * HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    ],
)
def test_options_of_the_server(wire, split, message):
    client = wire.client().send_pieces(split(message + POST + b"Content-Length: 1\r\n\r\nx"))
    answer = client.answer()
    assert (answer.status, answer.headers["allow"], answer.body) == (200, "GET, HEAD, POST", b"")
    assert client.answer().body == b"x"


def test_large_chunked(wire):
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (BIG[:70_000], BIG[70_000:70_001], BIG[70_001:])
    )
    client = wire.client().send(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
    assert client.answer().body == BIG


def test_trailers_do_not_overwrite_headers(wire):
    client = wire.client()
    client.send(
        b"POST /headers HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nInference-Header-Content-Length: 1\r\n\r\n"
        b"1\r\nx\r\n0\r\nInference-Header-Content-Length: 9\r\nX: y\r\n\r\n"
    )
    assert (
        client.answer().body
        == repr(
            [(b"host", b"a"), (b"inference-header-content-length", b"1"), (b"transfer-encoding", b"chunked")]
        ).encode()
    )


def test_headers_are_joined_and_stripped(wire, split):
    client = wire.client()
    client.send_pieces(split(b"GET /headers HTTP/1.1\r\nHOST: a\r\nX-A:  1\t \r\nx-a: 2\r\nx-empty:\r\n\r\n"))
    assert client.answer().body == repr([(b"host", b"a"), (b"x-a", b"1, 2"), (b"x-empty", b"")]).encode()


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"/echo?x=1&y=/../", 200),
        (b"/echo/", 200),
        (b"http://example.org:80/echo?x", 200),
        (b"HTTPS://[::1]/echo", 200),
        (b"http://example.org", 404),
        (b"/nothing", 404),
        (b"//echo", 200),
    ],
)
def test_targets(wire, target, status):
    client = wire.client()
    client.send(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n" * 1)
    assert client.answer().status == status
    assert client.send(POST + b"Content-Length: 1\r\n\r\nx").answer().body == b"x"


@pytest.mark.parametrize(
    "host", [b"a", b"a.b-c_d:65535", b"127.0.0.1:1", b"[::1]:8000", b"xn--n3h.example:", b"a%20b", b"[::ffff:1.2.3.4]"]
)
def test_hosts(wire, host):
    assert wire.client().send(b"GET /echo HTTP/1.1\r\nHost: " + host + b"\r\n\r\n").answer().status == 200


def test_empty_lines_between_messages(wire, split):
    message = POST + b"Content-Length: 1\r\n\r\nx"
    client = wire.client().send_pieces(split(b"\r\n\r\n" + message + b"\r\n" + message))
    assert [client.answer().body, client.answer().body] == [b"x", b"x"]


def test_an_invitation_to_upgrade_is_ignored(wire):
    client = wire.client()
    client.send(
        b"POST /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\nContent-Length: 1\r\n\r\nx"
    )
    assert client.answer().body == b"x"
    assert client.send(POST + b"Content-Length: 1\r\n\r\ny").answer().body == b"y"


def test_head(wire, split):
    client = wire.client()
    client.send_pieces(split(b"HEAD /large/100000 HTTP/1.1\r\nHost: a\r\n\r\n" + POST + b"Content-Length: 1\r\n\r\nx"))
    answer = client.answer(head_only=True)
    assert (answer.status, answer.headers["content-length"]) == (200, "100000")
    assert client.answer().body == b"x"


def test_head_of_a_missing_path(wire):
    client = wire.client().send(b"HEAD /nothing HTTP/1.1\r\nHost: a\r\n\r\n" + POST + b"Content-Length: 1\r\n\r\nx")
    assert client.answer(head_only=True).status == 404
    assert client.answer().body == b"x"


def test_http_10(wire, split):
    client = wire.client().send_pieces(split(b"POST /echo HTTP/1.0\r\nContent-Length: 1\r\n\r\nx"))
    answer = client.answer()
    assert (answer.body, answer.headers["connection"]) == (b"x", "close")
    assert client.closed()


def test_http_10_keep_alive(wire):
    client = wire.client()
    for _ in range(2):
        client.send(b"POST /echo HTTP/1.0\r\nConnection: Keep-Alive\r\nContent-Length: 1\r\n\r\nx")
        answer = client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"x", "keep-alive")


def test_connection_close(wire, split):
    message = POST + b"Connection: foo , Close\r\nContent-Length: 1\r\n\r\nx"
    client = wire.client().send_pieces(split(message)).send(b"GET /fail HTTP/1.1\r\nHost: a\r\n\r\n")
    answer = client.answer()
    assert (answer.body, answer.headers["connection"]) == (b"x", "close")
    assert client.closed()


def test_large_answer(wire):
    client = wire.client().send(b"GET /large/3000000 HTTP/1.1\r\nHost: a\r\n\r\n" * 3)
    for _ in range(3):
        answer = client.answer()
        assert (len(answer.body), answer.headers["x-size"]) == (3_000_000, "3000000")


def test_pipelined_requests_are_answered_in_order(wire, split):
    parts = []
    for number in range(100):
        body = b"%d" % (number * 7 % 10)
        path = b"/later" if number % 3 else b"/echo"
        parts.append(b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n%b" % (path, body))
    client = wire.client().send_pieces(split(b"".join(parts)))
    assert [client.answer().body for _ in parts] == [b"%d" % (number * 7 % 10) for number in range(100)]


def test_no_more_than_sixteen_are_in_flight(wire):
    client = wire.known_client().send(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n" * 40)
    held = wire.handlers.held
    wire.until(lambda: len(held) == 16)
    assert wire.call(lambda: len(held)) == 16
    for first in (0, 16, 32):
        wire.until(lambda first=first: len(held) >= min(first + 16, 40))

        def answer_backwards(first=first):
            for number in reversed(range(first, min(first + 16, 40))):
                held[number].respond(200, b"%d" % number)

        wire.call(answer_backwards)
    assert [client.answer().body for _ in range(40)] == [b"%d" % number for number in range(40)]


def test_a_bad_one_in_the_middle_of_a_thousand(wire):
    good = POST + b"Content-Length: 3\r\n\r\n%03d"
    client = wire.client()
    client.send(
        b"".join(good % n for n in range(500)) + b"GET / HTTP/1.1\r\n\r\n" + b"".join(good % n for n in range(500))
    )
    answers = client.answers()
    assert [answer.body for answer in answers[:-1]] == [b"%03d" % n for n in range(500)]
    assert answers[-1].status == 400
    assert wire.handlers.calls == 500


def test_a_bad_one_behind_unanswered_ones(wire):
    client = wire.client().send(b"POST /later HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n20" + b"GARBAGE\r\n\r\n")
    assert [answer.status for answer in client.answers()] == [200, 400]


def test_handlers_that_fail(wire, caplog):
    client = wire.client()
    for path, status in ((b"/fail", 500), (b"/refuse", 503), (b"/failing_task", 400), (b"/task", 200), (b"/echo", 200)):
        answer = client.send(b"POST " + path + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").answer()
        assert answer.status == status
        if status == 500:
            assert answer.body == b'{"error":"internal error"}'
        if status == 503:
            assert answer.headers["retry-after"] == "7"
        if status == 200:
            assert answer.body == b"x"
    assert [record.exc_info[0] for record in caplog.records] == [ValueError]


@pytest.mark.parametrize("what", [b"text", b"field", b"view"])
def test_answers_that_cannot_be_written(wire, caplog, what):
    client = wire.client().send(
        b"GET /misbehave/" + what + b" HTTP/1.1\r\nHost: a\r\n\r\n" + POST + b"Content-Length: 1\r\n\r\nx"
    )
    first = client.answer()
    assert (first.status, first.body) == (500, b'{"error":"internal error"}')
    assert "set-cookie" not in first.headers
    assert client.answer().body == b"x"
    assert len(caplog.records) == 1


@pytest.mark.parametrize("size", [2, 100_000])
def test_answers_of_tensors(wire, size):
    client = wire.client().send(b"GET /tensors/%d HTTP/1.1\r\nHost: a\r\n\r\n" % size)
    assert client.answer().body == np.arange(size, dtype=np.float32).tobytes() + b"x"


def test_a_kept_body_is_not_overwritten(wire):
    client = wire.client()
    for body in (b"first", b"second"):
        message = b"POST /keep HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        assert client.send(message).answer().body == b"kept"
    kept = wire.call(lambda: [bytes(view) for view in wire.handlers.kept])
    assert kept == [b"first", b"second"]


def test_a_body_in_the_read_buffer_is_gone_with_its_handler(wire):
    client = wire.client().send(b"POST /hold HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nfirst")
    wire.until(lambda: wire.handlers.held)
    exchange = wire.handlers.held[0]
    assert not exchange.body_is_stable
    with pytest.raises(ValueError):
        wire.call(memoryview, exchange.body)
    wire.call(exchange.respond, 200, b"held")
    assert client.answer().body == b"held"


def test_heads_that_begin_alike_are_told_apart(wire):
    """The last head is looked for first: a longer and a shorter one, and one of the same size, are others."""
    client = wire.client()
    for path in (b"headers", b"headers", b"echo", b"headers/x", b"headers"):
        for field in (b"", b"X: 1\r\n", b"X: 2\r\n", b"X: 2\r\n"):
            client.send(b"GET /%b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (path, field))
            fields = [(b"host", b"a"), *([(b"x", field[3:4])] if field else [])]
            assert client.answer().body == (b"" if path == b"echo" else repr(fields).encode())


@pytest.mark.parametrize("size", [1, 300, 300_000])
@pytest.mark.parametrize(
    ("coding", "compress"),
    [
        (b"gzip", gzip.compress),
        (b"X-GZIP", gzip.compress),
        (b"deflate", zlib.compress),
        (b"deflate", lambda data: zlib.compress(data, wbits=-15)),
        (b"identity", bytes),
    ],
)
def test_compressed_body(wire, size, coding, compress):
    body = BIG[:size]
    packed = compress(body)
    start = POST + b"Content-Encoding: " + coding + b"\r\n"
    client = wire.client()
    client.send(start + b"Content-Length: %d\r\n\r\n" % len(packed) + packed)
    client.send(start + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(packed), packed))
    assert [client.answer().body, client.answer().body] == [body, body]


@pytest.mark.parametrize("size", [1024, 300_000])
@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        (b"gzip, deflate", "gzip"),
        (b"deflate", "deflate"),
        (b"gzip;q=0.1, deflate;q=0.5, *;q=0", "deflate"),
        (b"*", "gzip"),
        (b"identity, br", None),
        (b"gzip;q=0", None),
        (b"gzip;q=0.5, identity;q=1.0", None),
        (b"nonsense;;;,,", None),
    ],
)
def test_compressed_answer(wire, size, accept, coding):
    body = BIG[:size]
    client = wire.client()
    message = POST + b"Accept-Encoding: " + accept + b"\r\nContent-Length: %d\r\n\r\n" % size + body
    client.send(message * 2)
    for _ in range(2):
        answer = client.answer()
        assert answer.headers.get("content-encoding") == coding
        assert zlib.decompress(answer.body, 47) == body if coding else answer.body == body


def test_answers_of_some_routes_are_never_compressed(wire):
    head = b"POST /plain HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BIG)
    answer = wire.client().send(head + BIG).answer()
    assert answer.body == BIG
    assert "content-encoding" not in answer.headers


def test_small_answers_are_not_compressed(wire):
    client = wire.client().send(POST + b"Accept-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc")
    assert client.answer().body == b"abc"


def test_continue(wire):
    client = wire.client()
    start = POST + b"Expect: 100-Continue\r\n"
    client.send(start + b"Content-Length: 5\r\n\r\n")
    assert client.answer().status == 100
    assert client.send(b"hello").answer().body == b"hello"
    client.send(start + b"Transfer-Encoding: chunked\r\n\r\n")
    assert client.answer().status == 100
    assert client.send(b"5\r\nhello\r\n0\r\n\r\n").answer().body == b"hello"
    # Nobody waits for it where the body is there already.
    assert client.send(start + b"Content-Length: 5\r\n\r\nhello").answer().body == b"hello"
    assert client.send(start + b"Content-Length: 0\r\n\r\n").answer().body == b""
    # An empty list expects nothing.
    assert client.send(POST + b"Expect:\r\nContent-Length: 1\r\n\r\nx").answer().body == b"x"


def test_continue_waits_for_earlier_answers(wire):
    client = wire.client()
    client.send(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n" + POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    wire.until(lambda: len(wire.handlers.held) == 1)
    wire.call(wire.handlers.held[0].respond, 200, b"first")
    assert client.answer().body == b"first"
    assert client.answer().status == 100
    assert client.send(b"ok").answer().body == b"ok"


def test_counters(wire):
    before = wire.call(lambda: (list(wire.server.hub.answers), wire.server.hub.connections_total))
    client = wire.client()
    for path in (b"echo", b"nothing", b"fail"):
        client.send(b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % path)
    assert [client.answer().status for _ in range(3)] == [200, 404, 500]
    after = wire.call(lambda: (list(wire.server.hub.answers), wire.server.hub.connections_total))
    assert [b - a for a, b in zip(before[0], after[0], strict=True)] == [0, 0, 1, 0, 1, 1]
    assert after[1] == before[1] + 1
    assert wire.call(lambda: wire.server.hub.connections) == 1
