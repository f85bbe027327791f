"""Calls on threads, of which each has a time limit.

A thread that waits for a disk cannot be ended, nor can one inside of a foreign library. When its time is over, its call
fails for whoever waits, and another thread takes its place; the thread itself is *stuck* until the call returns, whose
result is dropped then. Of stuck threads there is a most; while it is reached, further calls are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from fastinfer.base.errors import ApiError

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class _Call:
    """One call; ``done`` is its end for whoever waits."""

    def __init__(self, what: str, function: Callable[[], Any], done: asyncio.Future[Any]) -> None:
        self.what = what
        self.function = function
        self.done = done
        self.began = 0.0
        self.limit: asyncio.TimerHandle | None = None
        self.stuck = False
        self.thread: threading.Thread | None = None


class BoundedThreads:
    """Runs a few calls at a time, each on a thread of its own. Loop's thread only.

    Args:
        name: of the threads.
        threads: calls that run at a time; others wait for their turn, in order.
        timeout_s: what one call may take from its beginning.
        most_stuck: calls that have taken longer and still run.
    """

    def __init__(self, name: str, threads: int, timeout_s: float, most_stuck: int) -> None:
        self._name = name
        self._threads = threads
        self._timeout_s = timeout_s
        self._most_stuck = most_stuck
        self._waiting: deque[_Call] = deque()
        self._running: set[_Call] = set()
        self._stuck: set[_Call] = set()

    @property
    def stuck(self) -> int:
        """How many threads there are whose calls were given up."""
        return len(self._stuck)

    async def call(self, what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function.

        Args:
            what: it does, for the log and the client: ``loading model 'm'``.
            function: called with the other arguments.

        Raises:
            ApiError: 504 if it has taken too long; 503 if it was not begun, because too many others are stuck.
        """
        self._check()
        loop = asyncio.get_running_loop()
        call = _Call(what, lambda: function(*args, **kwargs), loop.create_future())
        self._waiting.append(call)
        self._begin()
        try:
            result: T = await call.done
            return result
        finally:
            if call in self._waiting:
                self._waiting.remove(call)

    def _check(self) -> None:
        if len(self._stuck) >= self._most_stuck:
            raise self._refusal()

    def _refusal(self) -> ApiError:
        first = next(iter(self._stuck)).what
        return ApiError(503, f"{len(self._stuck)} calls have not returned, the first of them {first}", retry_after_s=10)

    def _begin(self) -> None:
        while self._waiting and len(self._running) < self._threads:
            call = self._waiting.popleft()
            call.began = time.monotonic()
            call.limit = call.done.get_loop().call_later(self._timeout_s, self._give_up, call)
            self._running.add(call)
            # A daemon: the process's end does not wait for it.
            call.thread = threading.Thread(target=self._run, args=(call,), name=self._name, daemon=True)
            try:
                call.thread.start()
            except RuntimeError:  # the system has no room for another thread
                self._ended(call, None, ApiError(503, f"{call.what}: there is no thread for it", retry_after_s=1))

    def _run(self, call: _Call) -> None:
        """On the thread."""
        result: Any = None
        error: BaseException | None = None
        try:
            result = call.function()
        except BaseException as raised:
            _let_go(raised)
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed
            call.done.get_loop().call_soon_threadsafe(self._ended, call, result, error)
        error = None  # whose traceback holds this frame

    def _ended(self, call: _Call, result: Any, error: BaseException | None) -> None:
        if call.limit is not None:
            call.limit.cancel()
        if call.stuck:
            self._stuck.discard(call)
            log.warning("%s: has returned after all, after %.0f s", call.what, time.monotonic() - call.began)
            return
        self._running.discard(call)
        if not call.done.done():
            if error is None:
                call.done.set_result(result)
            else:
                call.done.set_exception(error)
        self._begin()

    def _give_up(self, call: _Call) -> None:
        call.stuck = True
        self._running.discard(call)
        self._stuck.add(call)
        message = f"{call.what} has not ended in {self._timeout_s:g} s"
        log.error("%s: it is given up, at %s; its thread goes on", message, _place(call.thread))
        if not call.done.done():
            call.done.set_exception(ApiError(504, message))
        if len(self._stuck) >= self._most_stuck:
            log.error("no further calls like this are begun before one of %d returns", len(self._stuck))
            for waiting in self._waiting:
                if not waiting.done.done():
                    waiting.done.set_exception(self._refusal())
            self._waiting.clear()
        self._begin()

    def join(self) -> None:
        """Waits for what runs, but for what is stuck."""
        for call in list(self._running):
            if call.thread is not None:
                call.thread.join()


def _let_go(error: BaseException | None) -> None:
    """Empties the frames that an exception and its causes hold: a refused model, some gigabytes perhaps, would stay in
    them until Python's collector of cycles looks at old objects, which on a server may be never."""
    seen: set[int] = set()
    ahead = [error]
    while ahead:
        error = ahead.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            traceback.clear_frames(error.__traceback__)
            ahead += [error.__cause__, error.__context__]


def _place(thread: threading.Thread | None) -> str:
    """Where a thread is, as a place in the code."""
    frame = sys._current_frames().get(thread.ident or 0) if thread is not None else None
    if frame is None:
        return "an unknown place"
    return f"{frame.f_code.co_qualname}:{frame.f_lineno}"
