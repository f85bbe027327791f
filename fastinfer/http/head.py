"""Parses the head of an HTTP request: bytes to a checked RequestHead, or an ApiError. Pure: no socket, clock or state.

httptools splits the fields. This module refuses everything that httptools accepts and that two parties could read
differently, so that no request can be smuggled: the grammar is RFC 9112's, without its leniencies. It is checked from
left to right, so that the error is that of the first invalid byte, however the head is cut into packets.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from fastinfer.base.errors import ApiError
from fastinfer.base.limits import MAX_SKIPPED_BODY_BYTES, HttpLimits
from fastinfer.http.exchange import Exchange, RequestHead

CHUNKED = -1
"""``RequestHead.body_size`` of a chunked body."""

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
TEXT = rb"[\t\x20-\x7e\x80-\xff]"

_MAX_METHOD_BYTES = 32  # longer than any registered name
# CONNECT is missing because the server is not a proxy.
_METHODS = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")}
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)(.*)", re.IGNORECASE)
# A comma is refused although a host may hold one: it may come from two fields that a proxy has joined.
_AUTHORITY = re.compile(rb"(?:(?:[A-Za-z0-9\-._~!$&'()*+;=]|%[0-9A-Fa-f]{2})+|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{0,5}))?")
_WEIGHTED = re.compile(rb"[ \t]*(" + TOKEN + rb")[ \t]*(?:;[ \t]*[qQ]=([01](?:\.[0-9]{0,3})?)[ \t]*)?")


def _prefixes(*parts: bytes) -> bytes:
    """Return a pattern that matches every prefix of the sequence of parts."""
    pattern = b""
    for part in reversed(parts):
        pattern = part + b"(?:" + pattern + b")?"
    return pattern


_REQUEST_LINE = re.compile(b"(" + TOKEN + rb") ([!-~]++) HTTP/([0-9])\.([0-9])\r\n")
_PARTIAL_LINE = re.compile(
    _prefixes(TOKEN, b" ", b"[!-~]++", b" ", b"H", b"T", b"T", b"P", b"/", b"[0-9]", rb"\.", b"[0-9]", rb"\r")
)
_METHOD_AND_TARGET = re.compile(b"(" + TOKEN + b")(?: ([!-~]*+))?")
_FIELD_LINES = re.compile(b"(?:" + TOKEN + b":" + TEXT + rb"*+\r\n)*+")
_PARTIAL_FIELD = re.compile(b"(?:" + _prefixes(TOKEN, b":", TEXT + b"*+", rb"\r") + rb"|\r)?")

_SINGLE = frozenset(
    (
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"expect",
        b"host",
        b"inference-header-content-length",
        b"transfer-encoding",
    )
)
"""Fields that affect framing or meaning. They are refused if repeated, and so are names that a gateway could turn into
them (``Transfer_Encoding``)."""


class Match(Protocol):
    """A route, as the router found it."""

    @property
    def handler(self) -> Callable[[Exchange], Coroutine[Any, Any, None] | None]: ...
    @property
    def max_body_bytes(self) -> int: ...
    @property
    def arguments(self) -> tuple[str, ...]: ...
    @property
    def compress_from(self) -> int | None: ...


class Router(Protocol):
    """Finds the handler. The result must depend on the arguments alone, because it is cached with the head."""

    def resolve(self, method: str, path: bytes) -> Match:
        """Return the route of a request. ApiError 404 or 405. ``path`` has no query string."""


def parse(raw: bytes, limits: HttpLimits, router: Router) -> RequestHead:
    """Parses a request's head.

    Args:
        raw: from the request line to the empty line, included.
        limits: applied here, except the size of the head, which the caller has checked.
        router: called only if the head is valid.

    Raises:
        ApiError: the head is malformed; the start of the next message is unknown.
    """
    line = _request_line(raw, limits)
    if line is None:
        raise _malformed_line()
    check_fields(raw, line.end(), "request head")
    if raw.count(b"\n") - 2 > limits.max_headers:
        raise ApiError(431, f"more than {limits.max_headers} header fields")
    fields = _Fields()
    try:
        HttpRequestParser(fields).feed_data(raw)
    except HttpParserUpgrade:
        pass  # a server may ignore Upgrade
    except HttpParserError as error:
        if fields.error is not None:
            raise fields.error from None
        raise ApiError(400, f"malformed request head: {error}") from None
    head = RequestHead(_METHODS[line[1]], line[4] == b"0", fields.values)
    path = _path(head.method, line[2])
    _check_host(head)
    _read_framing(head)
    _read_connection(head)
    head.error = _route(head, path, router, limits)
    head.plain = head.keep_alive and not head.version_10 and head.method != "HEAD"
    return head


def check_partial(raw: bytes, checked: int, limits: HttpLimits) -> int:
    """Checks a head that is incomplete or too large; raises as soon as it cannot become valid.

    Args:
        raw: the bytes that have arrived.
        checked: the result of the previous call for this head, 0 at first.
        limits: the limits of its parts, and of its size.

    Returns:
        How many of its bytes, whole lines, need not be checked again.

    Raises:
        ApiError: it is malformed.
    """
    part = raw[: limits.max_head_bytes + 1]
    if not checked:
        line = _request_line(part, limits)
        checked = 0 if line is None else line.end()
    if checked:
        checked = check_fields(part, checked, "request head")
    if len(raw) > limits.max_head_bytes:
        raise ApiError(431, f"the request head is larger than {limits.max_head_bytes} bytes")
    return checked


def _request_line(raw: bytes, limits: HttpLimits) -> re.Match[bytes] | None:
    """Match the first line of a head; None if it is incomplete."""
    start = _METHOD_AND_TARGET.match(raw)
    if start is not None:
        if len(start[1]) > _MAX_METHOD_BYTES:
            raise _unknown_method()
        if len(start[2] or b"") > limits.max_target_bytes:
            raise ApiError(414, f"the request target is longer than {limits.max_target_bytes} bytes")
    line = _REQUEST_LINE.match(raw)
    if line is None:
        if _PARTIAL_LINE.fullmatch(raw):
            return None
        raise _malformed_line()
    if line[3] != b"1" or line[4] not in b"01":
        raise ApiError(505, "the server speaks HTTP/1.1 and HTTP/1.0")
    if line[1] not in _METHODS:
        raise _unknown_method()
    return line


def _malformed_line() -> ApiError:
    return ApiError(400, "malformed request line")


def _unknown_method() -> ApiError:
    return ApiError(501, "unknown method")


def check_fields(raw: bytes, start: int, place: str) -> int:
    """Checks lines of fields. The last one may be incomplete, or the empty line after them.

    Args:
        raw: bytes up to the end, or the bytes that have arrived.
        start: where the first line starts.
        place: what the lines are part of, for the error's sentence.

    Returns:
        Where the incomplete or empty line starts.

    Raises:
        ApiError: 400.
    """
    start = _end(_FIELD_LINES, raw, start)
    wrong = _end(_PARTIAL_FIELD, raw, start)
    if wrong < len(raw) and raw[start:] != b"\r\n":
        raise ApiError(400, f"malformed {place}: {_what_is_wrong(raw, start, wrong)}")
    return start


def _end(pattern: re.Pattern[bytes], raw: bytes, start: int) -> int:
    found = pattern.match(raw, start)
    return start if found is None else found.end()


def _what_is_wrong(raw: bytes, start: int, wrong: int) -> str:
    """Describe the error: ``raw[wrong]`` is the first invalid byte of the field line that begins at ``start``."""
    byte = raw[wrong]
    if raw[wrong - 1 : wrong] == b"\r" or (byte == 10 and b":" in raw[start:wrong]):
        return "lines end with CR LF"
    if wrong == start and byte in b" \t":
        return "folded header field"
    if byte not in b"\t\r\n" and (byte < 32 or byte == 127):
        return "control character"
    return "header field without a name and a colon"


class _Fields:
    """Collects the fields from httptools."""

    __slots__ = ("error", "values")

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.error: ApiError | None = None

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        values = self.values
        if name in values:
            if name in _SINGLE:
                self._fail(ApiError(400, f"header field {name.decode()} is given twice"))
            values[name] += b", " + value.strip(b" \t")
        else:
            if b"_" in name and name.replace(b"_", b"-") in _SINGLE:
                self._fail(ApiError(400, f"header field {name.decode()} is misspelt"))
            values[name] = value.strip(b" \t")

    def _fail(self, error: ApiError) -> None:
        self.error = error
        raise error


def _path(method: str, target: bytes) -> bytes:
    if not target.startswith(b"/"):
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is not None and _is_authority(absolute[1]):
            target = absolute[2]
            if target == b"" and method == "OPTIONS":
                target = b"*"
            elif not target.startswith(b"/"):
                target = b"/" + target
        elif target != b"*" or method != "OPTIONS":
            raise ApiError(400, "malformed request target")
    if b"#" in target:
        raise ApiError(400, "malformed request target")
    return target.partition(b"?")[0]


def _is_authority(value: bytes) -> bool:
    """Whether it is a host, with or without a port. User information is not allowed in HTTP's URIs."""
    found = _AUTHORITY.fullmatch(value)
    if found is None or int(found[2] or 0) > 65535:
        return False
    if found[1] is None:
        return True
    try:
        ipaddress.IPv6Address(found[1].decode())
    except ValueError:
        return False
    return True


def _check_host(head: RequestHead) -> None:
    host = head.headers.get(b"host")
    if host is None:
        if not head.version_10:
            raise ApiError(400, "header field host is missing")
    elif not _is_authority(host):
        raise ApiError(400, "header field host is malformed")


def _read_framing(head: RequestHead) -> None:
    length = head.headers.get(b"content-length")
    coding = head.headers.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            raise ApiError(400, "both transfer-encoding and content-length are given")
        if head.version_10:
            raise ApiError(400, "transfer-encoding in an HTTP/1.0 request")
        codings = [part.strip(b" \t") for part in coding.lower().split(b",")]
        if codings[-1] != b"chunked" or b"chunked" in codings[:-1]:
            raise ApiError(400, "header field transfer-encoding must end with chunked")
        if len(codings) > 1:
            raise ApiError(501, "unknown transfer coding")
        head.body_size = CHUNKED
    elif length is not None:
        if not length.isdigit() or len(length) > 19 or int(length) >= 1 << 63:
            raise ApiError(400, "header field content-length is malformed")
        head.body_size = int(length)


def _read_connection(head: RequestHead) -> None:
    headers = head.headers
    value = headers.get(b"connection")
    if value is not None:
        options = [part.strip(b" \t") for part in value.lower().split(b",")]
        if b"close" in options:
            head.keep_alive = False
        elif b"keep-alive" in options:
            head.keep_alive = True
    value = headers.get(b"accept-encoding")
    if value is not None:
        head.accepted = accepted_coding(value)


def _route(head: RequestHead, path: bytes, router: Router, limits: HttpLimits) -> ApiError | None:
    headers = head.headers
    expectation = headers.get(b"expect")
    if expectation and not head.version_10:
        head.expects_continue = head.body_size != 0
        if expectation.lower() != b"100-continue":
            return ApiError(417, "the only expectation understood is 100-continue")
    if path == b"*":
        head.handler = _answer_options
        head.max_body_bytes = MAX_SKIPPED_BODY_BYTES
        return too_large(head.max_body_bytes) if head.body_size > head.max_body_bytes else None
    try:
        match = router.resolve(head.method, path)
    except ApiError as error:
        return error.with_traceback(None)
    head.handler = match.handler
    head.arguments = match.arguments
    if match.compress_from is None:
        head.accepted = None
    else:
        head.compress_from = match.compress_from
    head.max_body_bytes = min(match.max_body_bytes, limits.max_body_bytes)
    if head.body_size > head.max_body_bytes:
        return too_large(head.max_body_bytes)
    coding = headers.get(b"content-encoding", b"identity").lower()
    if coding in (b"gzip", b"x-gzip"):
        head.coding = b"gzip"
    elif coding == b"deflate":
        head.coding = b"deflate"
    elif coding not in (b"identity", b""):
        return ApiError(415, "the content codings understood are gzip and deflate")
    return None


def _answer_options(exchange: Exchange) -> None:
    """Answers ``OPTIONS *``: the methods of the whole server."""
    exchange.respond(200, content_type=b"text/plain", fields=((b"Allow", b"GET, HEAD, POST"),))


def too_large(limit: int) -> ApiError:
    """The error for a body that is longer than its route allows."""
    return ApiError(413, f"the body is larger than {limit} bytes")


def accepted_coding(value: bytes) -> bytes | None:
    """Return the coding of the answer: gzip or deflate, whichever the client prefers, or None for neither."""
    weights: dict[bytes, float] = {}
    for part in value.lower().split(b","):
        token = _WEIGHTED.fullmatch(part)
        if token is not None:
            weights[token[1]] = float(token[2] or 1)
    other = weights.get(b"*", 0.0)
    gzip = max(weights.get(b"gzip", other), weights.get(b"x-gzip", 0.0))
    deflate = weights.get(b"deflate", other)
    best = max(gzip, deflate)
    if best <= 0 or best < weights.get(b"identity", 0.0):
        return None
    return b"gzip" if gzip == best else b"deflate"
