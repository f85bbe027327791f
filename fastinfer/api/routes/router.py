"""Finds the handler for a method and a path.

A route is a template such as ``/v2/models/{model}/versions/{version}/infer``: literal parts match themselves, captured
ones are percent-decoded once and checked before any file is touched (names: ``[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}``,
versions: a positive decimal without leading zero). One trailing slash is accepted; ``GET`` routes answer ``HEAD`` too.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from time import monotonic_ns
from typing import Any
from urllib.parse import unquote_to_bytes

from fastinfer.base import limits
from fastinfer.base.errors import ApiError
from fastinfer.base.near import Near
from fastinfer.http.exchange import Exchange

Handler = Callable[[Exchange], Coroutine[Any, Any, None] | None]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,18}")
_SHOWN = 128  # characters of a part of a path, ...
_MAX_SHOWN_PARTS = 8  # ... and parts, in a suggestion
_WORDS = {"predict": "infer", "invocations": "infer"}  # of other servers
_MAX_CACHED = 1024  # paths; the cache is emptied when it is full, so that hostile paths cannot fill memory


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint.

    Attributes:
        methods: the HTTP methods it answers; ``HEAD`` is added to ``GET``.
        template: its path, with captured parts in braces: ``{model}``, ``{worker}``, ``{asset}`` or ``{version}``.
        handler: called with the exchange; a coroutine is run as a task. An ApiError that it raises is the answer.
        max_body_bytes: a larger body is refused with 413 before it is read; None: the router's limit.
        compress_from: answers from this many bytes on are compressed if the client accepts it; None: never. (Triton's
            asyncio client accepts it with every request, but inflates only answers to inference.)
    """

    methods: tuple[str, ...]
    template: str
    handler: Handler
    max_body_bytes: int | None = None
    compress_from: int | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """A matching route, and the captured parts."""

    handler: Handler
    max_body_bytes: int
    arguments: tuple[str, ...]
    compress_from: int | None


@dataclass(slots=True)
class _Node:
    """A node of the path tree: children by literal part, the child for a captured part, routes that end here."""

    literal: dict[bytes, _Node] = field(default_factory=dict)
    captured: tuple[str, _Node] | None = None
    methods: dict[str, Route] = field(default_factory=dict)


def with_deadline(timeout_s: float, handler: Callable[[Exchange], Coroutine[Any, Any, None]]) -> Handler:
    """Wraps the handler of a read-only route: it fails with 504 this many seconds after the request's first byte.

    The handler waits for a disk, another process or a report, and any of these may never come.
    """

    async def timed(exchange: Exchange) -> None:
        left_s = timeout_s - (monotonic_ns() - exchange.arrived_ns) / 1e9
        try:
            async with asyncio.timeout(left_s):
                await handler(exchange)
        except TimeoutError:
            raise ApiError(504, "Request timeout expired") from None

    timed.__name__ = handler.__name__
    return timed


class Router:
    """A tree of routes; literal parts win over captured ones.

    Args:
        routes: all of them.
        max_control_body_bytes: the largest body if a route does not set one.
    """

    def __init__(self, routes: Iterable[Route], max_control_body_bytes: int = limits.MAX_CONTROL_BODY_BYTES) -> None:
        self.routes: Sequence[Route] = tuple(routes)
        self._max_control_body_bytes = max_control_body_bytes
        self._root = _Node()
        self._cache: dict[tuple[str, bytes], Match] = {}
        for route in self.routes:
            self._add(route)

    def _add(self, route: Route) -> None:
        node = self._root
        for part in route.template.strip("/").split("/"):
            if part.startswith("{"):
                kind = part[1:-1]
                if node.captured is None:
                    node.captured = (kind, _Node())
                if (node.captured[0] == "version") != (kind == "version"):
                    raise ValueError(f"{route.template}: {{{kind}}} and {{{node.captured[0]}}} at the same place")
                node = node.captured[1]
            else:
                node = node.literal.setdefault(part.encode(), _Node())
        for method in route.methods:
            if method in node.methods:
                raise ValueError(f"two routes for {method} {route.template}")
            node.methods[method] = route
        if "GET" in route.methods:
            node.methods.setdefault("HEAD", route)

    def resolve(self, method: str, path: bytes) -> Match:
        """Return the route of a request.

        Args:
            method: as sent.
            path: as sent, without the query string.

        Raises:
            ApiError: 404 for an unknown path, 405 with ``Allow`` for a method that the path does not have.
        """
        match = self._cache.get((method, path))
        if match is not None:
            return match
        match = self._find(method, path)
        if len(self._cache) >= _MAX_CACHED:
            self._cache.clear()
        self._cache[(method, path)] = match
        return match

    def _find(self, method: str, path: bytes) -> Match:
        parts = path.split(b"/")
        if parts[0] != b"":
            raise _not_found()
        del parts[0]
        if len(parts) > 1 and parts[-1] == b"":
            parts.pop()
        node = self._root
        arguments: list[str] = []
        for place, part in enumerate(parts):
            decoded = unquote_to_bytes(part) if b"%" in part else part
            following = node.literal.get(decoded)
            if following is None:
                if node.captured is None:
                    raise _not_found(_meant(node, parts, place))
                kind, following = node.captured
                arguments.append(_checked(kind, decoded))
            node = following
        route = node.methods.get(method)
        if route is None:
            if not node.methods:
                raise _not_found(_meant(node, parts, len(parts)))
            allowed = ", ".join(sorted(node.methods)).encode()
            raise ApiError(405, f"method {method} is not allowed here", headers=((b"Allow", allowed),))
        max_body_bytes = route.max_body_bytes or self._max_control_body_bytes
        return Match(route.handler, max_body_bytes, tuple(arguments), route.compress_from)


def _not_found(hint: str = "") -> ApiError:
    return ApiError(404, f"no such path{hint}")


def _meant(node: _Node, parts: Sequence[bytes], place: int) -> str:
    """Return which path was meant, as the end of a sentence.

    Args:
        node: the last node that was found.
        parts: the path.
        place: of the part that the node does not have.
    """
    names = [part[:_SHOWN].decode("ascii", "replace") for part in parts[:_MAX_SHOWN_PARTS]]
    if names[:1] == ["v1"]:
        model = names[2].partition(":")[0] if names[1:2] == ["models"] and names[2:] else "NAME"
        return f": this server speaks the V2 protocol, POST /v2/models/{model}/infer"
    if place >= len(names):
        return ""
    word = Near([name.decode() for name in node.literal]).to(_WORDS.get(names[place], names[place]))
    corrected = [*names[:place], word or "", *names[place + 1 :]]
    if word is None or not _leads_to_a_route(node, corrected[place:]):
        if place or not _leads_to_a_route(node, ["v2", *names]):
            return ""
        corrected = ["v2", *names]
    return f"; did you mean '/{'/'.join(corrected)}'?"


def _leads_to_a_route(node: _Node | None, parts: Sequence[str]) -> bool:
    for part in parts:
        if node is None:
            return False
        node = node.literal.get(part.encode()) or (node.captured[1] if node.captured is not None else None)
    return node is not None and bool(node.methods)


def _checked(kind: str, part: bytes) -> str:
    text = part.decode("ascii", "replace")
    if kind == "version":
        if not _VERSION.fullmatch(text):
            raise ApiError(404, "a version is a positive decimal number of at most 19 digits, without leading zeros")
    elif not _NAME.fullmatch(text):
        raise ApiError(
            404,
            f"the name of a {kind} has 1 to 128 letters, digits, '_', '.' and '-', and does not start with '.' or '-'",
        )
    return text
