"""Threads for work that is done in pieces: the task with the fewest finished pieces goes next.

So a small body waits at most for pieces of large bodies, never for a whole one, however many there are. Work that
nobody waits for any more ends after its current piece.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Final

from fastinfer.base.errors import ApiError

log = logging.getLogger(__name__)

_IDLE_S: Final = 10.0  # an idle thread ends after this time


class Task:
    """Work in steps. After ``terminate``, ``done`` is not called."""

    __slots__ = ("_done", "_error", "_number", "_pieces", "_steps", "terminated")

    def __init__(self, steps: Iterator[None], done: Callable[[ApiError | None], None], number: int) -> None:
        self._steps = steps
        self._done = done
        self._error: ApiError | None = None
        self._number = number
        self._pieces = 0
        self.terminated = False

    def __lt__(self, other: Task) -> bool:
        return (self._pieces, self._number) < (other._pieces, other._number)

    def terminate(self) -> None:
        """Ends the work after the current step, because nobody waits any more."""
        self.terminated = True

    def step(self) -> bool:
        """Runs one step, on any thread; returns whether there are more. Never raises."""
        if self.terminated:
            return False
        try:
            next(self._steps)
        except StopIteration:
            return False
        except ApiError as error:
            # The traceback is dropped because its frames hold memory.
            self._error = error.with_traceback(None)
            return False
        except MemoryError:
            self._error = ApiError(503, "out of memory for the request", retry_after_s=1)
            return False
        except Exception:
            log.exception("inflating or compressing failed")
            self._error = ApiError(500, "internal error")
            return False
        self._pieces += 1
        return True

    def report(self) -> None:
        """Calls ``done``. Loop's thread."""
        if not self.terminated:
            self._done(self._error)


class Pieces:
    """The threads, which run the steps of all tasks.

    Args:
        loop: ``done`` is called on its thread; all public methods are called there, too.
        threads: maximum number; they start when they are needed, and end when they are idle.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: int) -> None:
        self._loop = loop
        self._most = threads
        self._change = threading.Condition()  # guards the fields below
        self._waiting: list[Task] = []  # a heap
        self._threads = 0
        self._idle = 0
        self._closed = False
        self._submitted = 0

    def submit(self, steps: Iterator[None], done: Callable[[ApiError | None], None]) -> Task:
        """Runs the steps, then calls ``done`` with None, or with the error that a step has raised."""
        self._submitted += 1
        task = Task(steps, done, self._submitted)
        with self._change:
            heapq.heappush(self._waiting, task)
            if self._idle:
                self._change.notify()
            elif self._threads < self._most:
                self._threads += 1
                threading.Thread(target=self._work, name="fastinfer-pieces", daemon=True).start()
        return task

    def close(self) -> None:
        """Ends the threads after their current steps; waiting tasks are dropped."""
        with self._change:
            self._closed = True
            self._waiting.clear()
            self._change.notify_all()

    def _work(self) -> None:
        while self._do_piece():
            pass

    def _do_piece(self) -> bool:
        """Runs a step of the next task; False: this thread ends.

        This is a separate function so that a waiting thread holds no reference to a task and its memory.
        """
        task = self._next()
        if task is None:
            return False
        more = task.step()
        with self._change:
            if self._closed:
                return False
            if more:
                heapq.heappush(self._waiting, task)
            elif not task.terminated:
                self._loop.call_soon_threadsafe(task.report)
        return True

    def _next(self) -> Task | None:
        with self._change:
            self._idle += 1
            try:
                while not self._waiting and not self._closed:
                    if not self._change.wait(_IDLE_S) and not self._waiting:
                        break
                task = None if self._closed or not self._waiting else heapq.heappop(self._waiting)
            finally:
                self._idle -= 1
            if task is None:
                self._threads -= 1
            return task
