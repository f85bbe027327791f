"""Exchanges by themselves; with a connection they are tried in tests/wire."""

from __future__ import annotations

from typing import Any

import pytest

from fastinfer.base.errors import ApiError
from fastinfer.http.exchange import JSON, Exchange


class Recorder:
    def __init__(self) -> None:
        self.answers: list[tuple[Any, ...]] = []

    def answer(self, _: Exchange, *answer: Any) -> None:
        self.answers.append(answer)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def exchange(recorder: Recorder) -> Exchange:
    return Exchange(recorder, "POST", ("simple", "1"), {b"host": b"a"}, b"body", True)


def test_attributes(exchange: Exchange) -> None:
    assert (exchange.method, exchange.arguments, exchange.headers) == ("POST", ("simple", "1"), {b"host": b"a"})
    assert (exchange.body, exchange.body_is_stable) == (b"body", True)
    assert exchange.answered is False and exchange.on_client_gone is None


def test_is_answered_once(exchange: Exchange, recorder: Recorder) -> None:
    exchange.on_client_gone = lambda: None
    exchange.respond(200, b"one")
    exchange.respond(200, b"two", b"text/plain", ((b"a", b"b"),))
    exchange.fail(ApiError(500, "three"))
    assert recorder.answers == [(200, JSON, b"one", ())]
    assert exchange.answered is True and exchange.on_client_gone is None  # it is not called when the client goes


def test_answers_with_all_that_it_is_given(exchange: Exchange, recorder: Recorder) -> None:
    exchange.respond(status=201, body=[b"x", b"y"], content_type=b"text/plain", fields=((b"a", b"b"),))
    assert recorder.answers == [(201, b"text/plain", [b"x", b"y"], ((b"a", b"b"),))]


def test_guard_answers_with_what_a_step_raises(exchange: Exchange, recorder: Recorder) -> None:
    def step(message: str) -> None:
        raise ApiError(503, message, retry_after_s=1)

    exchange.guard(step, "later")
    assert recorder.answers == [(503, JSON, b'{"error":"later"}', ((b"Retry-After", b"1"),))]


def test_guard_hides_bugs(exchange: Exchange, recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    exchange.guard({}.__getitem__, "secret")
    assert recorder.answers == [(500, JSON, b'{"error":"internal error"}', ())]
    assert "could not be answered" in caplog.text


def test_guard_leaves_a_good_step_alone(exchange: Exchange, recorder: Recorder) -> None:
    exchange.guard(exchange.respond, 204)
    assert recorder.answers == [(204, JSON, b"", ())]


def test_nothing_can_be_added(exchange: Exchange) -> None:
    with pytest.raises(AttributeError):
        exchange.bodi = b""  # type: ignore[attr-defined]
