"""Calls between two ends: answers, errors, order, and an end that goes away."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fastinfer.base.errors import ApiError
from fastinfer.supervisor.channel import Channel, ChannelClosedError


def run(test: Callable[[Channel, Channel], Awaitable[None]], **handlers: Callable[..., Any]) -> None:
    async def main() -> None:
        one, other = socket.socketpair()
        ends = await Channel.open(one, {}), await Channel.open(other, handlers)
        try:
            await asyncio.wait_for(test(*ends), 20)
        finally:
            for end in ends:
                end.close()
            await asyncio.sleep(0)

    asyncio.run(main())


def test_calls_are_answered() -> None:
    async def slow(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    async def test(one: Channel, _: Channel) -> None:
        assert await one.call("add", a=1, b=[2]) == [1, 2]
        assert await asyncio.gather(one.call("slow", seconds=0.02), one.call("slow", seconds=0)) == [0.02, 0]
        large = "x" * 3_000_000
        assert await one.call("add", a=large, b=[]) == [large]

    run(test, add=lambda a, b: [a, *b], slow=slow)


def test_errors_arrive_as_they_were() -> None:
    def fail(retry: int | None) -> None:
        raise ApiError(503, "not ‘now’", retry_after_s=retry)

    async def bug() -> None:
        raise KeyError("x")

    async def test(one: Channel, _: Channel) -> None:
        with pytest.raises(ApiError, match="not ‘now’") as caught:
            await one.call("fail", retry=3)
        assert (caught.value.status, caught.value.headers) == (503, ((b"Retry-After", b"3"),))
        with pytest.raises(ApiError, match="internal error"):
            await one.call("bug")

    run(test, fail=fail, bug=bug)


def test_handlers_run_in_the_order_of_the_calls() -> None:
    seen: list[int] = []

    async def test(one: Channel, _: Channel) -> None:
        for number in range(100):
            one.notify("note", number=number)
        await one.call("note", number=100)
        assert seen == list(range(101))

    run(test, note=lambda number: seen.append(number))


def test_an_end_that_goes_away() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    async def test(one: Channel, other: Channel) -> None:
        waiting = asyncio.ensure_future(one.call("never"))
        await asyncio.sleep(0.01)
        other.close()
        with pytest.raises(ChannelClosedError):
            await waiting
        await one.closed
        with pytest.raises(ChannelClosedError):
            await one.call("never")
        one.notify("never")

    run(test, never=never)
