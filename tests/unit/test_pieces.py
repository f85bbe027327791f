"""Work that is done a piece at a time: turns, ends, errors."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator

import pytest

from fastinfer.base.errors import ApiError
from fastinfer.http.pieces import Pieces


def with_pieces(threads: int, main: Callable[[Pieces], Awaitable[None]]) -> None:
    async def run() -> None:
        pieces = Pieces(asyncio.get_running_loop(), threads)
        try:
            await asyncio.wait_for(main(pieces), 30)
        finally:
            pieces.close()

    asyncio.run(run())


def steps(record: list[str], name: str, count: int) -> Iterator[None]:
    for _ in range(count):
        record.append(name)
        yield


def test_a_small_task_never_waits_for_a_large_one() -> None:
    async def main(pieces: Pieces) -> None:
        record: list[str] = []
        begun, go = threading.Event(), threading.Event()

        def large() -> Iterator[None]:
            begun.set()
            go.wait(30)
            yield from steps(record, "large", 50)

        ends: list[asyncio.Future[ApiError | None]] = [asyncio.get_running_loop().create_future() for _ in range(4)]
        pieces.submit(large(), ends[0].set_result)
        assert await asyncio.to_thread(begun.wait, 30)
        for end, name in zip(ends[1:], ("one", "two", "three"), strict=True):
            pieces.submit(steps(record, name, 2), end.set_result)
        go.set()
        assert await asyncio.gather(*ends) == [None] * 4
        assert record == ["large", "one", "two", "three"] * 2 + ["large"] * 48

    with_pieces(1, main)


def test_a_task_that_is_terminated_ends_with_its_piece_and_is_not_told() -> None:
    async def main(pieces: Pieces) -> None:
        record: list[str] = []
        told: list[object] = []
        begun = threading.Event()

        def endless() -> Iterator[None]:
            while True:
                begun.set()
                time.sleep(0.001)
                yield

        task = pieces.submit(endless(), told.append)
        assert await asyncio.to_thread(begun.wait, 30)
        task.terminate()
        end: asyncio.Future[ApiError | None] = asyncio.get_running_loop().create_future()
        pieces.submit(steps(record, "next", 3), end.set_result)
        assert await end is None
        assert told == []

    with_pieces(1, main)


@pytest.mark.parametrize(
    ("error", "status"), [(ApiError(413, "too large"), 413), (MemoryError(), 503), (ValueError("a bug"), 500)]
)
def test_what_a_step_raises_is_told_as_an_answer(error: Exception, status: int) -> None:
    async def main(pieces: Pieces) -> None:
        def fails() -> Iterator[None]:
            yield
            raise error

        end: asyncio.Future[ApiError | None] = asyncio.get_running_loop().create_future()
        pieces.submit(fails(), end.set_result)
        told = await end
        assert told is not None
        assert told.status == status
        assert told.__traceback__ is None

    with_pieces(2, main)


def test_what_has_ended_holds_no_memory() -> None:
    class Memory:
        pass

    async def main(pieces: Pieces) -> None:
        alive: list[weakref.ref[Memory]] = []

        def uses(memory: Memory, count: int) -> Iterator[None]:
            alive.append(weakref.ref(memory))
            for _ in range(count):
                time.sleep(0.0005)
                yield

        gc.disable()
        try:
            for count in (1, 2, 3, 10) * 5:
                end: asyncio.Future[ApiError | None] = asyncio.get_running_loop().create_future()
                pieces.submit(uses(Memory(), count), end.set_result)
                await end
            while any(memory() is not None for memory in alive):  # also in threads that wait
                await asyncio.sleep(0.001)
        finally:
            gc.enable()

    with_pieces(3, main)
