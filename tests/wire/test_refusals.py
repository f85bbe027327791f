"""Unsound messages: one clear answer, then the connection ends; never a second answer."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest

SECOND = b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

UNSOUND = {
    # The request line.
    "HTTP/0.9": (b"GET /echo\r\n\r\n", 400),
    "HTTP/2.0": (b"GET /echo HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    "HTTP/1.2": (b"GET /echo HTTP/1.2\r\nHost: a\r\n\r\n", 505),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "not a number": (b"GET /echo HTTP/x.1\r\nHost: a\r\n\r\n", 400),
    "lower-case http": (b"GET /echo http/1.1\r\nHost: a\r\n\r\n", 400),
    "unknown method": (b"BREW /echo HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    "lower-case method": (b"get /echo HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    "CONNECT": (b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 501),
    "CONNECT to a path": (b"CONNECT /echo HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    "long method": (b"A" * 300 + b" /echo HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    "endless method": (b"A" * 20_000, 501),
    "unknown method, malformed line": (b"BREW /echo HTTP/x\r\nHost: a\r\n\r\n", 400),
    "unknown method, other version": (b"BREW /echo HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    "no target": (b"GET  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "two spaces": (b"GET  /echo HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "space behind": (b"GET /echo HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
    "space before": (b" GET /echo HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "tab": (b"GET\t/echo HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "NUL in target": (b"GET /ec\0ho HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "bytes above ASCII in target": (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "fragment": (b"GET /echo#x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "relative target": (b"GET echo HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "asterisk": (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "other scheme": (b"GET ftp://a/echo HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "user in absolute target": (b"GET http://u@a/echo HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "bad address in absolute target": (b"GET http://[:::]/echo HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "three empty lines": (b"\r\n\r\n\r\n" + SECOND, 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    # Line ends.
    "bare LF": (b"GET /echo HTTP/1.1\nHost: a\n\n", 400),
    "bare LF in one field": (b"GET /echo HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400),
    "bare LF at the end": (b"GET /echo HTTP/1.1\r\nHost: a\r\n\n", 400),
    "bare CR": (b"GET /echo HTTP/1.1\r\nHost: a\rX: y\r\n\r\n", 400),
    "CR CR LF": (b"GET /echo HTTP/1.1\r\nHost: a\r\r\n\r\n", 400),
    # Fields.
    "space before colon": (b"GET /echo HTTP/1.1\r\nHost : a\r\n\r\n", 400),
    "folded": (b"GET /echo HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", 400),
    "folded with tab": (b"GET /echo HTTP/1.1\r\nHost: a\r\nX: y\r\n\tz\r\n\r\n", 400),
    "folded at the end": (b"GET /echo HTTP/1.1\r\nHost: a\r\n \r\n\r\n", 400),
    "folded at once": (b"GET /echo HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    "no colon": (b"GET /echo HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400),
    "no name": (b"GET /echo HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", 400),
    "bad name": (b"GET /echo HTTP/1.1\r\nHost: a\r\nX(y): z\r\n\r\n", 400),
    "NUL in value": (b"GET /echo HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
    "control character in value": (b"GET /echo HTTP/1.1\r\nHost: a\r\nX: a\x1bb\r\n\r\n", 400),
    # Host.
    "no host": (b"GET /echo HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /echo HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", 400),
    "empty host": (b"GET /echo HTTP/1.1\r\nHost:\r\n\r\n", 400),
    "two hosts in one": (b"GET /echo HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    "two hosts joined without a space": (b"GET /echo HTTP/1.1\r\nHost: a,b\r\n\r\n", 400),
    "path in host": (b"GET /echo HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "user in host": (b"GET /echo HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    "half an escape in host": (b"GET /echo HTTP/1.1\r\nHost: a%4\r\n\r\n", 400),
    "IPv4 address in brackets": (b"GET /echo HTTP/1.1\r\nHost: [1.2.3.4]\r\n\r\n", 400),
    "two abbreviations in an address": (b"GET /echo HTTP/1.1\r\nHost: [1::2::3]\r\n\r\n", 400),
    "port above all": (b"GET /echo HTTP/1.1\r\nHost: a:65536\r\n\r\n", 400),
    "bad port": (b"GET /echo HTTP/1.1\r\nHost: a:b\r\n\r\n", 400),
    "bad host on 1.0": (b"GET /echo HTTP/1.0\r\nHost: a b\r\n\r\n", 400),
    # Framing: what two parties could read differently.
    "length and coding": (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "coding and length": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
    "length twice": (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400),
    "same length twice": (POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
    "two lengths in one": (POST + b"Content-Length: 1, 1\r\n\r\nx", 400),
    "length +1": (POST + b"Content-Length: +1\r\n\r\nx", 400),
    "length -1": (POST + b"Content-Length: -1\r\n\r\nx", 400),
    "length 0x1": (POST + b"Content-Length: 0x1\r\n\r\nx", 400),
    "length 1e1": (POST + b"Content-Length: 1e1\r\n\r\nx", 400),
    "length 1 1": (POST + b"Content-Length: 1 1\r\n\r\nx", 400),
    "length in other digits": (POST + "Content-Length: ١\r\n\r\nx".encode(), 400),
    "no length": (POST + b"Content-Length:\r\n\r\nx", 400),
    "length 2^63": (POST + b"Content-Length: 9223372036854775808\r\n\r\nx", 400),
    "length 2^64 + 1": (POST + b"Content-Length: 18446744073709551617\r\n\r\nx", 400),
    "length of 1000 digits": (POST + b"Content-Length: " + b"1" * 1000 + b"\r\n\r\nx", 400),
    "content_length": (POST + b"Content_Length: 5\r\n\r\n", 400),
    "transfer_encoding": (POST + b"Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "coding xchunked": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "coding chunked, identity": (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    "coding chunked twice": (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "coding with vertical tab": (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "coding gzip, chunked": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "no coding": (POST + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n", 400),
    "coding on 1.0": (b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "type twice": (POST + b"Content-Type: a/b\r\nContent-Type: c/d\r\n\r\n", 400),
    "header length twice": (
        POST
        + b"Inference-Header-Content-Length: 1\r\nInference-Header-Content-Length: 2\r\nContent-Length: 2\r\n\r\nxx",
        400,
    ),
    "inference_header_content_length": (POST + b"Inference_Header_Content_Length: 1\r\n\r\n", 400),
    # Chunks.
    "no chunk size": (CHUNKED + b"\r\n", 400),
    "chunk size -1": (CHUNKED + b"-1\r\n", 400),
    "chunk size +1": (CHUNKED + b"+1\r\nx\r\n0\r\n\r\n", 400),
    "chunk size 0x1": (CHUNKED + b"0x1\r\nx\r\n0\r\n\r\n", 400),
    "chunk size with space": (CHUNKED + b"1 \r\nx\r\n0\r\n\r\n", 400),
    "chunk size of 17 digits": (CHUNKED + b"00000000000000001\r\nx\r\n0\r\n\r\n", 400),
    "chunk size 2^64": (CHUNKED + b"10000000000000000\r\nx\r\n0\r\n\r\n", 400),
    "chunk size with LF": (CHUNKED + b"1\nx\r\n0\r\n\r\n", 400),
    "extension without a name": (CHUNKED + b"1;\r\nx\r\n0\r\n\r\n", 400),
    "extension of the last chunk without a name": (CHUNKED + b"0;;a\r\n\r\n", 400),
    "extension without a value": (CHUNKED + b"1;a=\r\nx\r\n0\r\n\r\n", 400),
    "extension with a bad value": (CHUNKED + b"1;a=b c\r\nx\r\n0\r\n\r\n", 400),
    "extension with an open quotation": (CHUNKED + b'1;a="b\\"\r\nx\r\n0\r\n\r\n', 400),
    "extension with space behind": (CHUNKED + b"1;a \r\nx\r\n0\r\n\r\n", 400),
    "CR in extension": (CHUNKED + b"1;a\rb\r\nx\r\n0\r\n\r\n", 400),
    "LF in extension": (CHUNKED + b"1;a\nx\r\n0\r\n\r\n", 400),
    "chunk too long": (CHUNKED + b"1\r\nxx\r\n0\r\n\r\n", 400),
    "chunk with LF behind": (CHUNKED + b"1\r\nx\n0\r\n\r\n", 400),
    "bad trailer": (CHUNKED + b"0\r\nX : y\r\n\r\n", 400),
    "length as trailer": (CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n", 400),
    "coding as trailer": (CHUNKED + b"0\r\nX: y\r\ntransfer-encoding: chunked\r\n\r\n", 400),
    "host as trailer": (CHUNKED + b"0\r\nHOST: b\r\n\r\n", 400),
    "folded trailer": (CHUNKED + b"0\r\nX: y\r\n z\r\n\r\n", 400),
    "trailer with CR": (CHUNKED + b"0\r\nX: y\rz\r\n\r\n", 400),
    "trailer with LF": (CHUNKED + b"0\r\nX: y\n\r\n", 400),
    "chunk above the limit": (CHUNKED + b"400001\r\nx", 413),
    "huge chunk": (CHUNKED + b"ffffffffffffffff\r\nx", 413),
    "extension flood": (CHUNKED + b"1;" + b"x" * 20_000 + b"\r\nx\r\n0\r\n\r\n", 400),
    "extensions flood": (CHUNKED + (b"1;" + b"x" * 100 + b"\r\nx\r\n") * 1000 + b"0\r\n\r\n", 400),
    "trailer flood": (CHUNKED + b"0\r\n" + b"x: y\r\n" * 100_000 + b"\r\n", 400),
    "endless trailer": (CHUNKED + b"0\r\nx: " + b"y" * 100_000, 400),
    "tiny chunks": (CHUNKED + b"1\r\nx\r\n" * 70_000 + b"0\r\n\r\n", 400),
    # Limits.
    "target too long": (b"GET /" + b"x" * 8192 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "endless target": (b"GET /" + b"x" * 10_000, 414),
    "head too large": (b"GET /echo HTTP/1.1\r\nHost: a\r\n" + (b"X: " + b"x" * 1000 + b"\r\n") * 17 + b"\r\n", 431),
    "bad field beyond the limit": (b"GET /echo HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 16_384 + b"\0\r\n\r\n", 431),
    "bad field within the limit": (b"GET /echo HTTP/1.1\r\nHost: a\r\n(: " + b"x" * 16_384 + b"\r\n\r\n", 400),
    "endless head": (b"GET /echo HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000, 431),
    "too many fields": (b"GET /echo HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100 + b"\r\n", 431),
    "body too large": (POST + b"Content-Length: 1000000000000\r\n\r\n" + b"x" * 100_000, 413),
    "body too large for no route": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n", 413),
    "body too large for its route": (
        b"POST /tiny HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70_000,
        413,
    ),
    "body too large, expected": (POST + b"Expect: 100-continue\r\nContent-Length: 4194305\r\n\r\n", 413),
    "other expectation": (POST + b"Expect: 200-ok\r\nContent-Length: 1\r\n\r\nx", 417),
    "two expectations": (POST + b"Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx", 400),
    "unknown path, body expected": (
        b"POST /no HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n",
        404,
    ),
    "unknown path, chunked": (
        b"POST /no HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        404,
    ),
    "unknown coding": (POST + b"Content-Encoding: br\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70_000, 415),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_unsound(wire, name):
    message, status = UNSOUND[name]
    client = wire.client()
    if b"HTTP/1." in message or b"HTTP/2" in message or name == "HTTP/0.9":
        client.send(SECOND)  # a sound one before it is answered
        assert client.answer().status == 200
    wire.handlers.calls = 0
    client.send(message + SECOND)
    answers = client.answers()
    assert [answer.status for answer in answers] == [status]
    assert answers[0].headers["content-type"] == "application/json"
    assert answers[0].headers["connection"] == "close"
    error = json.loads(answers[0].body)
    assert list(error) == ["error"] and 0 < len(error["error"]) <= 512
    assert wire.handlers.calls == 0


SMALL = sorted(name for name, (message, _) in UNSOUND.items() if len(message) < 400)


def byte_by_byte(client, message):
    try:
        client.send_pieces([message[i : i + 1] for i in range(len(message))])
    except (BrokenPipeError, ConnectionResetError):
        pytest.fail("the server did not linger")
    return client.answers()


@pytest.mark.parametrize("name", SMALL)
def test_unsound_byte_by_byte(wire, name):
    message, status = UNSOUND[name]
    answers = byte_by_byte(wire.client(), message)
    assert [answer.status for answer in answers] == [status]
    assert answers == wire.client().send(message).answers()


STARTED = {
    "TLS": b"\x16",
    "space first": b" ",
    "CR first": b"\rG",
    "LF first": b"\n",
    "method in quotes": b'"',
    "bytes above ASCII in target": b"GET /\xc3",
    "other protocol": b"GET / I",
    "lower-case http": b"GET /echo h",
    "version of two digits": b"GET /echo HTTP/11",
    "space behind": b"GET /echo HTTP/1.1 ",
    "CR in the line": b"GET /echo HTTP/1.1\rH",
    "space at once": b"GET /echo HTTP/1.1\r\n ",
    "space before colon": b"GET /echo HTTP/1.1\r\nHost: a\r\nX ",
    "bad name": b"GET /echo HTTP/1.1\r\nX(",
    "no colon": b"GET /echo HTTP/1.1\r\nX\r",
    "no name": b"GET /echo HTTP/1.1\r\n:",
    "folded": b"GET /echo HTTP/1.1\r\nX: y\r\n\t",
    "NUL in value": b"GET /echo HTTP/1.1\r\nX: y\0",
    "LF in value": b"GET /echo HTTP/1.1\r\nX: y\n",
    "CR in value": b"GET /echo HTTP/1.1\r\nX: y\rz",
    "CR and more at the end": b"GET /echo HTTP/1.1\r\nHost: a\r\n\rG",
    "chunk size": CHUNKED + b"5x",
    "chunk size with CR": CHUNKED + b"5\rh",
    "chunk size of 17 digits": CHUNKED + b"0" * 17,
    "extension with CR": CHUNKED + b"5;a\rh",
    "extension with NUL": CHUNKED + b"5;a\0",
    "CR behind a chunk": CHUNKED + b"1\r\nx\rx",
    "trailer without colon": CHUNKED + b"0\r\nX\r",
    "trailer with space": CHUNKED + b"0\r\nX ",
    "length as trailer": CHUNKED + b"0\r\nContent-Length:",
}


@pytest.mark.parametrize("name", STARTED)
def test_what_cannot_become_sound_is_refused_at_once(wire, name):
    """The last byte is the one too many: without it nothing is said."""
    message = STARTED[name]
    waiting = wire.client().send(SECOND + message[:-1])
    assert waiting.answer().status == 200
    answers = byte_by_byte(wire.client(), message)
    assert [answer.status for answer in answers] == [400]
    assert answers == wire.client().send(message).answers()
    waiting.sock.settimeout(0.02)
    with pytest.raises(TimeoutError):
        waiting.answer()


@pytest.mark.parametrize(
    "name", ["TLS", "bare LF", "length and coding", "chunk too long", "bad trailer", "body too large"]
)
def test_a_megabyte_behind_what_is_refused_does_not_cost_the_answer(wire, name):
    """It is read and thrown away: were it left in the socket, closing would reset what the client has yet to read."""
    message, status = UNSOUND[name]
    client = wire.client().send(message + SECOND * (1024 * 1024 // len(SECOND)))
    assert [answer.status for answer in client.answers()] == [status]


@pytest.mark.parametrize(
    "message", [b"HEAD /echo HTTP/1.1\r\n\r\n", b"HEAD /echo HTTP/1.1\r\nX(", b"HEAD /echo HTTP/2.0\r\n"]
)
def test_an_answer_to_an_unsound_head_request_has_no_body(wire, message):
    client = wire.client().send(message)
    answer = client.answer(head_only=True)
    assert answer.status in (400, 505) and int(answer.headers["content-length"]) > 0
    assert client.closed()


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (b"POST /no HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n", 404),
        (b"PUT /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n", 405),
        (b"POST /tiny HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n", 413),
        (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Encoding: br\r\nContent-Length: 9\r\n\r\n", 415),
        (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip, gzip\r\nContent-Length: 9\r\n\r\n", 415),
        (b"OPTIONS /echo HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"TRACE /echo HTTP/1.1\r\nHost: a\r\n\r\n", 405),
    ],
)
def test_answered_before_a_small_body_that_is_thrown_away(wire, message, status):
    client = wire.client().send(message)
    answer = client.answer()
    assert answer.status == status
    assert "connection" not in answer.headers
    if status == 405:
        assert answer.headers["allow"] == "GET, HEAD, POST"
    size = next((int(line[15:]) for line in message.split(b"\r\n") if line.startswith(b"Content-Length")), 0)
    client.send(SECOND[:size] + SECOND)
    assert client.answer().status == 200
    assert wire.handlers.calls == 1


@pytest.mark.parametrize(
    ("coding", "body", "status"),
    [
        (b"gzip", b"nonsense", 400),
        (b"deflate", b"nonsense", 400),
        (b"gzip", gzip.compress(b"x" * 100, mtime=0)[:-1], 400),
        (b"gzip", gzip.compress(b"x", mtime=0) + b"x", 400),
        (b"gzip", gzip.compress(b"x", mtime=0) * 2, 400),
        (b"gzip", bytes(5000), 400),
        (b"gzip", gzip.compress(bytes(4 * 1024 * 1024 + 1), mtime=0), 413),
        (b"deflate", zlib.compress(bytes(100 * 1024 * 1024)), 413),
    ],
)
def test_bad_compressed_body(wire, coding, body, status):
    client = wire.client()
    client.send(POST + b"Content-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (coding, len(body)) + body + SECOND)
    assert [client.answer().status, client.answer().status] == [status, 200]
    assert wire.handlers.calls == 1


def test_a_head_at_the_limits_is_taken(wire):
    target = b"/echo?" + b"x" * (8192 - 6)
    start = b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 98
    last = b"X: " + b"y" * (16 * 1024 - len(start) - 7) + b"\r\n\r\n"
    assert len(start + last) == 16 * 1024
    client = wire.client().send(start + last)
    assert client.answer().status == 200
    client.send(start + last.replace(b"y", b"yy", 1))
    assert [answer.status for answer in client.answers()] == [431]
