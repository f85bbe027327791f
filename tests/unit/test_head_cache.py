"""Heads that differ from a known one in values that decide about nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastinfer.base.errors import ApiError
from fastinfer.base.limits import MAX_CACHED_HEAD_BYTES, MAX_CACHED_HEADS, HttpLimits
from fastinfer.http.exchange import RequestHead
from fastinfer.http.head import parse
from fastinfer.http.head_cache import HeadCache

LIMITS = HttpLimits()
FIELDS = {
    "Host": "a:80",
    "User-Agent": "b",
    "X-Request-Id": "0123",
    "Traceparent": "00-1-2-01",
    "Content-Type": "application/json",
    "Content-Length": "17",
    "Accept-Encoding": "gzip",
}


class Found:
    arguments = ("m",)
    max_body_bytes = 1000
    compress_from = 10

    def handler(self, exchange: Any) -> None: ...


class Routes:
    found = Found()

    def resolve(self, method: str, path: bytes) -> Any:  # noqa: ARG002
        if path != b"/found":
            raise ApiError(404, "not found")
        return self.found


def written(fields: dict[str, str] | list[tuple[str, str]], line: str = "POST /found HTTP/1.1") -> bytes:
    pairs = fields.items() if isinstance(fields, dict) else fields
    return "".join(f"{each}\r\n" for each in (line, *(f"{name}: {value}" for name, value in pairs), "")).encode(
        "latin-1"
    )


def understood(raw: bytes) -> RequestHead:
    return parse(raw, LIMITS, Routes())


def meaning(head: RequestHead) -> dict[str, Any]:
    names = [name for name in dir(RequestHead) if not name.startswith("_")]
    return {name: getattr(head, name) for name in names if hasattr(head, name)} | {"order": list(head.headers)}


def known(*raws: bytes) -> HeadCache:
    cache = HeadCache()
    for raw in raws:
        cache.remember(raw, understood(raw))
    return cache


def test_an_equal_head_is_the_same_one() -> None:
    cache = known(written(FIELDS))
    assert cache.get(written(FIELDS)) is cache.get(written(FIELDS)) is not None
    assert len(cache) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"X-Request-Id": "another"},
        {"X-Request-Id": ""},
        {"X-Request-Id": " \t in spaces\t "},
        {"Traceparent": "00-" + "f" * 500, "X-Request-Id": "é\xff"},
        {"Content-Length": "18"},
        {"Content-Length": "0"},
        {"Content-Length": "1000"},
        {"Content-Type": "text/plain", "Content-Length": "017"},
        {"User-Agent": "a: b\tc"},
    ],
)
def test_other_values_mean_what_they_would_if_they_were_parsed(changes: dict[str, str]) -> None:
    raw = written(FIELDS | changes)
    found = known(written(FIELDS)).get(raw)
    assert found is not None
    assert meaning(found) == meaning(understood(raw))


@pytest.mark.parametrize(
    "changes",
    [
        {"Content-Length": value}
        for value in ("1001", "", "-1", "+1", "1 2", "0x1", "1e3", "٣".encode().decode("latin-1"), "9" * 19)
    ]
    + [
        {"Host": "b"},
        {"Host": "a b"},
        {"Accept-Encoding": "identity"},
        {"Connection": "close"},
        {"Expect": "100-continue"},
    ]
    + [{"X-Request-Id": value} for value in ("a\0b", "a\x7fb", "a\rb", "a\nb", "a\r\n b", "\x1b[0m", "a\r\nb")]
    + [{"Transfer-Encoding": "chunked"}, {"content_length": "3"}, {"X-Request-Id ": "a"}, {"x" * 5000: "a"}],
)
def test_what_decides_is_left_to_the_parser(changes: dict[str, str]) -> None:
    assert known(written(FIELDS)).get(written(FIELDS | changes)) is None


def test_another_request_line_method_or_order_is_another_head() -> None:
    cache = known(written(FIELDS))
    for line in ("POST /found HTTP/1.0", "GET /found HTTP/1.1", "POST /other HTTP/1.1", "POST  /found HTTP/1.1"):
        assert cache.get(written(FIELDS, line)) is None
    assert cache.get(written(list(reversed(FIELDS.items())))) is None
    assert cache.get(written({name.lower(): value for name, value in FIELDS.items()})) is None
    assert cache.get(written(FIELDS)[:-2]) is None
    assert cache.get(b"") is None


def test_repeated_fields_and_expectations_are_known_only_as_they_are() -> None:
    for more in (("X-A", "2"), ("Expect", "100-continue")):
        fields = [*FIELDS.items(), ("X-A", "1"), more]
        cache = known(written(fields))
        assert cache.get(written(fields)) is not None
        assert cache.get(written([*fields[:-1], (more[0], "100-Continue")])) is None
        assert cache.get(written([("Host", "a:80"), ("User-Agent", "c"), *fields[2:]])) is None


def test_values_of_one_request_are_not_another_ones() -> None:
    cache = known(written(FIELDS))
    heads = [cache.get(written(FIELDS | {"X-Request-Id": str(number)})) for number in range(3)]
    assert [head and head.headers[b"x-request-id"] for head in heads] == [b"0", b"1", b"2"]
    assert cache.get(written(FIELDS)).headers[b"x-request-id"] == b"0123"  # type: ignore[union-attr]


def test_memory_is_bounded() -> None:
    cache = HeadCache()
    for number in range(3 * MAX_CACHED_HEADS):
        raw = written(FIELDS | {f"X-{number}": ""})
        cache.remember(raw, understood(raw))
    assert 0 < len(cache) <= MAX_CACHED_HEADS
    long = written(FIELDS | {"X-Long": "a" * MAX_CACHED_HEAD_BYTES})
    cache = known(long)
    assert len(cache) == 0
    assert cache.get(long) is None


NAMES = [
    *FIELDS,
    "content-length",
    "HOST",
    "X-A",
    "X_A",
    "Expect",
    "Connection",
    "transfer-encoding",
    "Content_Length",
    "",
]
VALUES = [
    *FIELDS.values(),
    "",
    "close",
    "chunked",
    "100-continue",
    "18",
    "1000",
    "1001",
    "a\rb",
    "a\nb",
    "é",
    "\0",
    "x" * 90,
    " 5 ",
]
HEADS = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=8)


@given(HEADS, st.lists(st.tuples(st.integers(0, 7), st.sampled_from(VALUES)), max_size=3))
def test_whatever_is_found_is_what_the_parser_says(
    extra: list[tuple[str, str]], changes: list[tuple[int, str]]
) -> None:
    fields = [("Host", "a:80"), *extra]
    other = list(fields)
    for place, value in changes:
        if place < len(other):
            other[place] = (other[place][0], value)
    cache = HeadCache()
    try:
        head = understood(written(fields))
    except ApiError:
        return
    if head.error is None:
        cache.remember(written(fields), head)
    found = cache.get(written(other))
    if found is not None:
        assert meaning(found) == meaning(understood(written(other)))
