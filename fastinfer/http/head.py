"""The head of an HTTP request: bytes to a checked Head, or an ApiError. Pure: no socket, no clock, no state.

httptools splits the fields; everything that it lets pass and that two parties could read differently is refused here,
so that nobody can smuggle a request: the grammar is RFC 9112's, without its leniencies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from fastinfer._ext.exchange import Head
from fastinfer.errors import ApiError
from fastinfer.http.exchange import Exchange
from fastinfer.limits import HttpLimits

CHUNKED = -1
"""``Head.body_size`` of a body whose size is not announced."""

LINE_BYTES = 64
"""What a request line may hold beside its target."""

_METHODS = {
    name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT")
}
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([!-~]+) HTTP/([0-9])\.([0-9])\r\n")
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)(.*)", re.IGNORECASE)
_HOST = re.compile(rb"(?:[A-Za-z0-9\-._~%!$&'()*+,;=]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_TOKEN = re.compile(rb"[ \t]*([!#$%&'*+\-.^_`|~0-9A-Za-z]+)[ \t]*(?:;[ \t]*[qQ]=([01](?:\.[0-9]{0,3})?)[ \t]*)?")

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
"""Fields that decide about framing or meaning: given twice they are refused, and so are names that a gateway could
turn into them (``Transfer_Encoding``)."""


class Match(Protocol):
    """What the router found."""

    @property
    def handler(self) -> Callable[[Exchange], Coroutine[Any, Any, None] | None]: ...
    @property
    def max_body_bytes(self) -> int: ...
    @property
    def arguments(self) -> tuple[str, ...]: ...
    @property
    def compressible(self) -> bool: ...


class Router(Protocol):
    """Finds the handler. The answer may depend on nothing but the arguments: it is remembered with the head."""

    def resolve(self, method: str, path: bytes) -> Match:
        """The route of a request, or ApiError 404 or 405. ``path`` comes without the query string."""


def parse(raw: bytes, limits: HttpLimits, router: Router) -> Head:
    """Understands a request's head.

    Args:
        raw: from the request line to the empty line, included.
        limits: its size is checked by the caller already, the rest here.
        router: asked only if the head is sound.

    Raises:
        ApiError: the head is unsound; where the next message starts is unknown.
    """
    line = request_line(raw, limits)
    lines = raw.count(b"\r\n")
    if raw.count(b"\n") != lines or raw.count(b"\r") != lines:
        raise ApiError(400, "malformed request head: lines end with CR LF")
    if lines - 2 > limits.max_headers:
        raise ApiError(431, f"more than {limits.max_headers} header fields")
    if b"\n " in raw or b"\n\t" in raw:
        raise ApiError(400, "malformed request head: folded header field")
    if _CONTROL.search(raw):
        raise ApiError(400, "malformed request head: control character")
    fields = _Fields()
    try:
        HttpRequestParser(fields).feed_data(raw)
    except HttpParserUpgrade:
        pass  # an invitation that nobody has to accept; CONNECT is the router's business
    except HttpParserError as error:
        if fields.error is not None:
            raise fields.error from None
        raise ApiError(400, f"malformed request head: {error}") from None
    head = Head(_METHODS[line[1]], line[4] == b"0", fields.values)
    path = _path(head.method, line[2])
    _check_host(head)
    _read_framing(head)
    _read_connection(head)
    head.error = _route(head, path, router, limits)
    head.plain = head.keep_alive and not head.version_10 and head.method != "HEAD"
    return head


def request_line(raw: bytes, limits: HttpLimits) -> re.Match[bytes]:
    """Checks the first line of a head, which may be incomplete after it."""
    line = _REQUEST_LINE.match(raw)
    if line is None:
        if len(raw.partition(b"\r\n")[0]) > limits.max_target_bytes + LINE_BYTES:
            raise target_too_long(limits)
        raise ApiError(400, "malformed request line")
    if line[3] != b"1" or line[4] not in b"01":
        raise ApiError(505, "the server speaks HTTP/1.1 and HTTP/1.0")
    if line[1] not in _METHODS:
        raise ApiError(501, "unknown method")
    if len(line[2]) > limits.max_target_bytes:
        raise target_too_long(limits)
    return line


def target_too_long(limits: HttpLimits) -> ApiError:
    """The answer to a target, or to a request line that may still be going on."""
    return ApiError(414, f"the request target is longer than {limits.max_target_bytes} bytes")


class _Fields:
    """Collects what httptools finds."""

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
        if absolute is not None and _HOST.fullmatch(absolute[1]):
            target = absolute[2]
            if not target.startswith(b"/"):
                target = b"/" + target
        elif not (target == b"*" and method == "OPTIONS") and method != "CONNECT":
            raise ApiError(400, "malformed request target")
    if b"#" in target:
        raise ApiError(400, "malformed request target")
    return target.partition(b"?")[0]


def _check_host(head: Head) -> None:
    host = head.headers.get(b"host")
    if host is None:
        if not head.version_10:
            raise ApiError(400, "header field host is missing")
    elif not _HOST.fullmatch(host):
        raise ApiError(400, "header field host is malformed")


def _read_framing(head: Head) -> None:
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


def _read_connection(head: Head) -> None:
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


def _route(head: Head, path: bytes, router: Router, limits: HttpLimits) -> ApiError | None:
    headers = head.headers
    expectation = headers.get(b"expect")
    if expectation is not None and not head.version_10:
        head.expects_continue = head.body_size != 0
        if expectation.lower() != b"100-continue":
            return ApiError(417, "the only expectation understood is 100-continue")
    if path == b"*":
        return ApiError(405, "method OPTIONS is not allowed here", headers=((b"Allow", b"GET, HEAD, POST"),))
    try:
        match = router.resolve(head.method, path)
    except ApiError as error:
        return error.with_traceback(None)
    head.handler = match.handler
    head.arguments = match.arguments
    if not match.compressible:
        head.accepted = None
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


def too_large(limit: int) -> ApiError:
    """The answer to a body that is longer than its route allows."""
    return ApiError(413, f"the body is larger than {limit} bytes")


def accepted_coding(value: bytes) -> bytes | None:
    """The coding to answer with: gzip or deflate, whichever the client likes better, or None for neither."""
    weights: dict[bytes, float] = {}
    for part in value.lower().split(b","):
        token = _TOKEN.fullmatch(part)
        if token is not None:
            weights[token[1]] = float(token[2] or 1)
    other = weights.get(b"*", 0.0)
    gzip = max(weights.get(b"gzip", other), weights.get(b"x-gzip", 0.0))
    deflate = weights.get(b"deflate", other)
    best = max(gzip, deflate)
    if best <= 0 or best < weights.get(b"identity", 0.0):
        return None
    return b"gzip" if gzip == best else b"deflate"
