"""Calls on threads that may hang: each is given up in time, and those that hang are counted."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Awaitable, Callable

import pytest

from fastinfer.base import waits
from fastinfer.base.bounded import BoundedThreads
from fastinfer.base.errors import ApiError


def run(test: Callable[[BoundedThreads], Awaitable[None]], threads: int = 2, timeout_s: float = 0.05) -> None:
    async def main() -> None:
        await asyncio.wait_for(test(BoundedThreads("t", threads, timeout_s, 2)), 20)

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_results_and_errors_are_the_callers() -> None:
    async def test(threads: BoundedThreads) -> None:
        assert await threads.call("adding", sum, [1, 2]) == 3
        with pytest.raises(ValueError, match="invalid literal"):
            await threads.call("reading", int, "x")
        assert await asyncio.gather(*(threads.call("adding", sum, [n, n]) for n in range(9))) == [*range(0, 18, 2)]

    run(test, timeout_s=20)


def test_so_many_at_a_time() -> None:
    async def test(threads: BoundedThreads) -> None:
        gate, begun = threading.Event(), []

        def wait() -> None:
            begun.append(1)
            gate.wait()

        calls = [asyncio.ensure_future(threads.call("waiting", wait)) for _ in range(5)]
        await until(lambda: len(begun) == 2)
        await asyncio.sleep(0.02)
        assert len(begun) == 2
        gate.set()
        await asyncio.gather(*calls)

    run(test, timeout_s=20)


def test_what_hangs_is_given_up_and_another_takes_its_place(caplog: pytest.LogCaptureFixture) -> None:
    async def test(threads: BoundedThreads) -> None:
        gate = threading.Event()
        with pytest.raises(ApiError, match=r"reading 'a' has not ended in 0\.05 s") as caught:
            await threads.call("reading 'a'", gate.wait)
        assert caught.value.status == 504
        assert threads.stuck == 1
        threads._timeout_s = 20  # of what does not hang: the machine may be busy
        assert await threads.call("adding", sum, [1, 2]) == 3
        threads._timeout_s = 0.05
        hanging = asyncio.ensure_future(threads.call("reading 'b'", gate.wait))
        waiting = asyncio.ensure_future(threads.call("adding", sum, [1, 2]))
        with pytest.raises(ApiError, match="reading 'b' has not ended"):
            await hanging
        # There is a most of them; what waited, and what comes later, is refused with the reason.
        reason = r"2 calls have not returned, the first of them reading '[ab]'"
        with pytest.raises(ApiError, match=reason) as refused:
            await waiting
        assert refused.value.status == 503
        with pytest.raises(ApiError, match=reason):
            await threads.call("adding", sum, [1, 2])
        gate.set()  # the mount answers again
        await until(lambda: threads.stuck == 0)
        threads._timeout_s = 20
        assert await threads.call("adding", sum, [1, 2]) == 3

    run(test, threads=1)
    assert "reading 'a' has not ended in 0.05 s: it is given up, at Event.wait" in caplog.text or (
        "it is given up, at Condition.wait" in caplog.text
    )
    assert "reading 'a': has returned after all" in caplog.text


def test_where_there_is_no_thread_the_call_fails_and_the_next_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(threads: BoundedThreads) -> None:
        def fail(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            calls = [asyncio.ensure_future(threads.call("adding", sum, [1, 2])) for _ in range(3)]
            for call in calls:
                with pytest.raises(ApiError, match="adding: no thread can be started") as caught:
                    await call
                assert caught.value.status == 503
        assert await threads.call("adding", sum, [1, 2]) == 3

    run(test, timeout_s=20)


def test_a_caller_that_goes_away_leaves_nothing_behind() -> None:
    async def test(threads: BoundedThreads) -> None:
        gate = threading.Event()
        running = asyncio.ensure_future(threads.call("waiting", gate.wait))
        waiting = asyncio.ensure_future(threads.call("waiting", gate.wait))
        await asyncio.sleep(0.01)
        running.cancel()
        waiting.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        gate.set()
        assert await threads.call("adding", sum, [1, 2]) == 3
        assert threads.stuck == 0

    run(test, threads=1, timeout_s=20)


def test_waiting_is_logged_once_and_at_growing_intervals(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        with waits.logged(lambda: "nothing lasts", 20):
            await asyncio.sleep(0)
        with waits.logged(lambda: "a load waits", 0.01):
            while caplog.text.count("a load waits") < 3:
                await asyncio.sleep(0.001)

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    assert "nothing lasts" not in caplog.text
    assert "a load waits: ended after" in caplog.text


def test_an_error_keeps_nothing_of_what_the_call_had_in_hand() -> None:
    """A refused model, some gigabytes perhaps, would stay in the frames of the traceback, in a cycle."""

    class Model:
        pass

    kept: list[weakref.ref[Model]] = []

    def load() -> None:
        model = Model()
        kept.append(weakref.ref(model))

        def check() -> None:
            other = Model()
            kept.append(weakref.ref(other))
            raise ValueError(f"{other} is wrong")

        try:
            check()
        except ValueError as error:
            raise ApiError(400, "wrong") from error

    async def test(threads: BoundedThreads) -> None:
        for _ in range(3):
            with pytest.raises(ApiError, match="wrong"):
                await threads.call("loading", load)
        threads.join()

    gc.collect()
    gc.disable()
    try:
        run(test, timeout_s=20)
        assert len(kept) == 6
        assert [each() for each in kept] == [None] * 6
    finally:
        gc.enable()
