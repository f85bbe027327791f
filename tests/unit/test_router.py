"""Paths to handlers: names are decoded once and checked before anything looks at the disk."""

import asyncio

import pytest

from fastinfer.api.routes.router import Route, Router, with_deadline
from fastinfer.base.errors import ApiError
from fastinfer.http.exchange import Exchange


def handler(exchange):
    del exchange


ROUTER = Router(
    [
        Route(("GET",), "/v2", handler),
        Route(("GET",), "/v2/models", handler),
        Route(("GET",), "/v2/models/stats", handler),
        Route(("GET",), "/v2/models/{model}", handler),
        Route(("POST",), "/v2/models/{model}/infer", handler, 7),
        Route(("POST",), "/v2/models/{model}/versions/{version}/infer", handler),
        Route(("GET", "POST"), "/v2/hardware", handler),
    ]
)


@pytest.mark.parametrize(
    ("method", "path", "arguments"),
    [
        ("GET", b"/v2", ()),
        ("GET", b"/v2/", ()),
        ("HEAD", b"/v2", ()),
        ("GET", b"/v2/models", ()),
        ("GET", b"/v2/models/", ()),
        ("GET", b"/v2/models/stats", ()),
        ("GET", b"/v2/models/a", ("a",)),
        ("GET", b"/v2/models/a/", ("a",)),
        ("GET", b"/v2/models/%61", ("a",)),
        ("GET", b"/%762/models/a.b-c_D9", ("a.b-c_D9",)),
        ("GET", b"/v2/models/" + b"x" * 128, ("x" * 128,)),
        ("POST", b"/v2/models/m/infer", ("m",)),
        ("POST", b"/v2/models/m/versions/12/infer", ("m", "12")),
        ("POST", b"/v2/hardware", ()),
    ],
)
def test_found(method, path, arguments):
    assert ROUTER.resolve(method, path).arguments == arguments
    assert ROUTER.resolve(method, path).arguments == arguments  # once more, out of the cache


@pytest.mark.parametrize(
    "path",
    [
        b"", b"/", b"v2", b"//v2", b"/V2", b"/v2//", b"/v2/nope", b"/v2/models/a/nope", b"/v2/models//infer",
        b"/v2/models/..", b"/v2/models/.", b"/v2/models/.hidden", b"/v2/models/-x", b"/v2/models/%2e%2e",
        b"/v2/models/..%2f..%2fetc", b"/v2/models/a%00", b"/v2/models/a%2561", b"/v2/models/%c3%a9",
        b"/v2/models/" + b"x" * 129, b"/v2/models/a b", b"/v2/models/a%0d%0ab",
        b"/v2/models/m/versions/0/infer", b"/v2/models/m/versions/01/infer", b"/v2/models/m/versions/-1/infer",
        b"/v2/models/m/versions/../infer", b"/v2/models/m/versions/1e3/infer", b"/v2/models/m/versions/%31%2f/infer",
        b"/v2/models/m/versions/" + b"9" * 31 + b"/infer", b"/v2/models/m/versions",
    ],
)  # fmt: skip
def test_not_found(path):
    for method in ("GET", "POST"):
        with pytest.raises(ApiError) as caught:
            ROUTER.resolve(method, path)
        assert caught.value.status == 404


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", b"/v2", b"GET, HEAD"),
        ("DELETE", b"/v2/hardware", b"GET, HEAD, POST"),
        ("GET", b"/v2/models/m/infer", b"POST"),
        ("OPTIONS", b"/v2/models/m/infer", b"POST"),
    ],
)
def test_wrong_method(method, path, allow):
    with pytest.raises(ApiError) as caught:
        ROUTER.resolve(method, path)
    assert caught.value.status == 405
    assert (b"Allow", allow) in caught.value.headers


def test_the_cache_does_not_grow_without_bound():
    router = Router(ROUTER.routes)
    for number in range(5000):
        router.resolve("GET", b"/v2/models/m%d" % number)
    assert len(router._cache) <= 1024


def test_two_routes_at_one_place_are_refused():
    with pytest.raises(ValueError, match="two routes"):
        Router([Route(("GET",), "/a", handler), Route(("GET",), "/a", handler)])


def test_an_answer_that_does_not_come_is_504():
    """The time runs from the request's first byte."""

    async def never(exchange):
        del exchange
        await asyncio.Event().wait()

    async def at_once(exchange):
        exchange.respond(200)

    class Connection:
        def __init__(self):
            self.statuses = []

        def answer(self, exchange, status, *rest):  # noqa: ARG002
            self.statuses.append(status)

    async def ask(handler, timeout_s, age_s=0.0):
        connection = Connection()
        exchange = Exchange(connection, "GET", (), {}, b"", True)
        exchange.arrived_ns -= int(age_s * 1e9)
        await with_deadline(timeout_s, handler)(exchange)
        return connection.statuses

    assert asyncio.run(ask(at_once, 60)) == [200]
    for timeout_s, age_s in ((0.02, 0.0), (60.0, 61.0)):
        with pytest.raises(ApiError) as caught:
            asyncio.run(ask(never, timeout_s, age_s))
        assert caught.value.status == 504
    assert with_deadline(1, never).__name__ == "never"
